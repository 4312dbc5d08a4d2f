//! Errors that end a worker.

use config::SettingsError;

use crate::process::startup_deadline::NotReady;

/// A worker cannot start or has failed.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// A dependency did not become available in time.
    #[error(transparent)]
    Startup(#[from] NotReady),
    /// The configuration is invalid.
    #[error(transparent)]
    Settings(#[from] SettingsError),
    /// The database pool cannot be created.
    #[error(transparent)]
    Pool(#[from] store::PoolError),
    /// The key store or the key provider cannot be used as configured.
    #[error(transparent)]
    Keys(#[from] keys::KeyError),
    /// The worker's entry in the catalogue has neither a stream nor jobs.
    #[error("{worker} cannot process messages: its entry in the catalogue names no stream and no jobs")]
    NoConsumer {
        /// The worker.
        worker: &'static str,
    },
    /// A stage panicked. Messages in flight are redelivered.
    #[error("{worker} failed: {problem}")]
    StageFailed {
        /// The worker.
        worker: &'static str,
        /// The panic of the stage.
        problem: String,
    },
}
