//! Signals that end a command.

use anyhow::Context;
use tokio::signal::unix::{SignalKind, signal};

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
