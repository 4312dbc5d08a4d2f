//! `memfleet`: see `memfleet --help`.

use std::process::ExitCode;

use clap::Parser;
use cli::errln;
use runtime::broker;

#[tokio::main]
async fn main() -> ExitCode {
    let arguments = memfleet::arguments::Arguments::parse();
    let ended = memfleet::dispatch::execute(arguments).await;
    broker::forwarded().await;
    match ended {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            errln!("memfleet: {error:#}");
            ExitCode::FAILURE
        }
    }
}
