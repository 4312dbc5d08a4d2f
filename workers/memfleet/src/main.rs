//! `memfleet`: see `memfleet --help`.

use std::process::ExitCode;

use clap::Parser;

use memfleet::errln;

#[tokio::main]
async fn main() -> ExitCode {
    let cli = memfleet::cli::Cli::parse();
    match memfleet::command::execute(cli).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            errln!("memfleet: {error:#}");
            ExitCode::FAILURE
        }
    }
}
