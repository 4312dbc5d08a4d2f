//! `memfleet`: see `memfleet --help`.

use std::process::ExitCode;

use clap::Parser;
use cli::errln;
use runtime::broker;
use cli::output::printable;

#[tokio::main]
async fn main() -> ExitCode {
    let arguments = memfleet::arguments::Arguments::parse();
    let ended = memfleet::dispatch::execute(arguments).await;
    broker::forwarded().await;
    match ended {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // A server may have written the text, or a publisher.
            errln!("memfleet: {}", printable(&format!("{error:#}")));
            ExitCode::FAILURE
        }
    }
}
