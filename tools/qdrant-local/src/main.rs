//! `qdrant-local`: the official vector engine, the crate qdrant-edge, behind Qdrant's own gRPC API.
//!
//! It is for development and tests on machines where no Qdrant server is to be had: programs that speak to a Qdrant
//! server through qdrant-client speak to this one unchanged. What it does not support it refuses, see `refuse`.

mod catalog;
mod collection;
mod convert;
mod error;
mod files;
mod flush;
mod home;
mod journal;
mod keeper;
mod refuse;
mod repair;
mod serve;
mod service;
mod settings;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;
use tracing_subscriber::EnvFilter;

/// The official vector engine of Qdrant behind Qdrant's gRPC API, for development and tests.
#[derive(Debug, Parser)]
#[command(version)]
struct Arguments {
    /// The folder that holds the collections; it is made where it is missing, and used by one process at a time.
    #[arg(long, value_name = "DIR")]
    home: PathBuf,
    /// The address to serve gRPC at; port 0 takes a free one.
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:6334")]
    listen: SocketAddr,
    /// A file that gets the number of the port, once the server answers.
    #[arg(long, value_name = "PATH")]
    port_file: Option<PathBuf>,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).init();
    flush::quieten_expected_panics();
    match serve::run(&arguments.home, arguments.listen, arguments.port_file.as_deref()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("qdrant-local: {error}");
            ExitCode::FAILURE
        }
    }
}
