//! Why a worker ends.

use config::SettingsError;

use crate::process::startup_deadline::NotReady;

/// A worker cannot start, or broke down.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// Something it needs did not appear in time.
    #[error(transparent)]
    Startup(#[from] NotReady),
    /// The configuration is out of bounds.
    #[error(transparent)]
    Settings(#[from] SettingsError),
    /// The database pool cannot be made.
    #[error(transparent)]
    Pool(#[from] store::PoolError),
    /// The key store or the key provider cannot be used as configured.
    #[error(transparent)]
    Keys(#[from] keys::KeyError),
    /// Its entry in the catalogue has no stream.
    #[error("{worker} takes no messages: its entry in the catalogue names no stream")]
    NoStream {
        /// The worker.
        worker: &'static str,
    },
    /// A stage panicked. What was in flight is delivered again.
    #[error("{worker} broke down: {problem}")]
    BrokeDown {
        /// The worker.
        worker: &'static str,
        /// What the stage said.
        problem: String,
    },
}
