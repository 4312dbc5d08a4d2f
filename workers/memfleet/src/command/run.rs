//! `memfleet run`

use anyhow::Context;
use clap::Args;
use config::Settings;
use tokio::signal::unix::{SignalKind, signal};

use crate::fleet::{Fleet, WorkerName};
use crate::health;

/// Runs workers until SIGTERM, SIGHUP or Ctrl-C. Any number of processes may run the same worker: they share its work.
#[derive(Debug, Args)]
pub struct RunArgs {
    /// Which workers; all of them if none is named, without vector-indexer where vectors.url is not set.
    #[arg(value_enum, value_name = "WORKER")]
    workers: Vec<WorkerName>,
}

/// Carries out `memfleet run`.
///
/// # Errors
/// If a worker cannot start or breaks down.
pub async fn execute(args: RunArgs, settings: &Settings) -> anyhow::Result<()> {
    let names = if args.workers.is_empty() { WorkerName::of(settings) } else { args.workers };
    let listener = health::listen(settings).await?;
    let mut fleet = Fleet::start(&names, settings);
    let _health = fleet.tell_health(listener);
    let ended = tokio::select! {
        ended = fleet.ended() => ended,
        interrupted = interrupted() => interrupted,
    };
    // The first failure is the cause; what stopping the others says comes second.
    let stopped = fleet.stop().await;
    ended.and(stopped)
}

/// Waits for SIGTERM, SIGINT, or the end of the terminal (SIGHUP).
///
/// # Errors
/// If signals cannot be listened for.
pub async fn interrupted() -> anyhow::Result<()> {
    let mut terminate = signal(SignalKind::terminate()).context("SIGTERM cannot be listened for")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("SIGINT cannot be listened for")?;
    let mut hang_up = signal(SignalKind::hangup()).context("SIGHUP cannot be listened for")?;
    tokio::select! {
        _ = hang_up.recv() => tracing::info!("SIGHUP"),
        _ = terminate.recv() => tracing::info!("SIGTERM"),
        _ = interrupt.recv() => tracing::info!("SIGINT"),
    }
    Ok(())
}
