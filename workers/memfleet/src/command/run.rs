//! `memfleet run`

use clap::Args;
use cli::signal::interrupted;
use config::Settings;
use fleet::{Fleet, WorkerName, health};

/// Runs workers until SIGTERM, SIGHUP or Ctrl-C. Several processes may run the same worker; they share its messages.
#[derive(Debug, Args)]
pub struct RunArgs {
    /// Workers to run. Default: all, except vector-indexer if vectors.url is not set.
    #[arg(value_enum, value_name = "WORKER")]
    workers: Vec<WorkerName>,
}

/// Runs `memfleet run`.
///
/// # Errors
/// If a worker cannot start or fails.
pub async fn execute(args: RunArgs, settings: &Settings) -> anyhow::Result<()> {
    let names = if args.workers.is_empty() { WorkerName::of(settings) } else { args.workers };
    let listener = health::listen(settings).await?;
    let mut fleet = Fleet::start(&names, settings);
    let _health = fleet.serve_health(listener);
    let ended = tokio::select! {
        ended = fleet.ended() => ended.map_err(anyhow::Error::from),
        interrupted = interrupted() => interrupted,
    };
    // The first failure is the cause; it takes precedence over errors while stopping.
    let stopped = fleet.stop().await;
    ended.and(stopped.map_err(Into::into))
}
