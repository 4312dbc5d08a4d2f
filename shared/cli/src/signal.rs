//! Signals that end a command.

use anyhow::Context;
use tokio::signal::unix::{SignalKind, signal};

/// Waits for SIGTERM, SIGINT or SIGHUP (the terminal was closed).
///
/// # Errors
/// If a signal handler cannot be installed.
pub async fn interrupted() -> anyhow::Result<()> {
    let mut terminate = signal(SignalKind::terminate()).context("cannot handle SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("cannot handle SIGINT")?;
    let mut hang_up = signal(SignalKind::hangup()).context("cannot handle SIGHUP")?;
    tokio::select! {
        _ = hang_up.recv() => tracing::info!("SIGHUP"),
        _ = terminate.recv() => tracing::info!("SIGTERM"),
        _ = interrupt.recv() => tracing::info!("SIGINT"),
    }
    Ok(())
}
