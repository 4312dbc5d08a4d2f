//! `memfleet`: see `memfleet --help`.

use std::process::ExitCode;

use clap::Parser;
use cli::errln;

#[tokio::main]
async fn main() -> ExitCode {
    let arguments = memfleet::arguments::Arguments::parse();
    match memfleet::dispatch::execute(arguments).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            errln!("memfleet: {error:#}");
            ExitCode::FAILURE
        }
    }
}
