//! `memfleet`: see `memfleet --help`.

use std::process::ExitCode;

use clap::Parser;
use cli::errln;
use cli::output::printable;
use runtime::broker;

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
