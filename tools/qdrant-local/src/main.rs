//! `qdrant-local`: Qdrant's vector engine, the crate qdrant-edge, behind Qdrant's gRPC API.
//!
//! It is for development and tests on machines without a Qdrant server. Programs that use a Qdrant server through
//! qdrant-client work with it unchanged. It rejects what it does not support, see `reject`.

mod api_key;
mod catalog;
mod collection;
mod convert;
mod error;
mod files;
mod flush;
mod journal;
mod maintenance;
mod recovery;
mod reject;
mod serve;
mod service;
mod settings;
mod storage;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;
use tracing_subscriber::EnvFilter;

use crate::api_key::ApiKey;

/// Qdrant's vector engine behind Qdrant's gRPC API, for development and tests.
#[derive(Debug, Parser)]
#[command(version)]
struct Arguments {
    /// The folder of the collections. It is created if it is missing, and only one process can use it at a time
    #[arg(long, value_name = "DIR")]
    home: PathBuf,
    /// The address to serve gRPC on; port 0 selects a free port
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:6334")]
    listen: SocketAddr,
    /// A file to which the port is written when the server is ready
    #[arg(long, value_name = "PATH")]
    port_file: Option<PathBuf>,
    /// A file with the API key that clients must send. Without it, every process that can connect can read and change
    /// everything
    #[arg(long, value_name = "PATH")]
    api_key_file: Option<PathBuf>,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).init();
    flush::silence_expected_panics();
    let run = || {
        let api_key = ApiKey::read(arguments.api_key_file.as_deref())?;
        serve::run(&arguments.home, arguments.listen, arguments.port_file.as_deref(), api_key)
    };
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("qdrant-local: {error}");
            ExitCode::FAILURE
        }
    }
}
