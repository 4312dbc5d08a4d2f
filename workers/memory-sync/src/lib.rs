//! Carries the memory of one session into another, without losing either.

mod item;

use ::store::{Connection, Fault};
use config::Settings;
use contract::{MEMORY_SYNC, WorkerInfo};
use keys::DataKeys;
use runtime::{Verdict, Worker};

pub use item::{Job, SyncItem};

pub(crate) type Message = runtime::Message<SyncItem>;

/// The worker.
#[derive(Debug)]
pub struct MemorySync {}

/// The worker cannot start.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The rules cannot be read.
    #[error("memory-sync cannot start: {0}")]
    Rules(#[from] sync::RulesError),
}

impl MemorySync {
    /// Reads the rules.
    ///
    /// # Errors
    /// [`OpenError`].
    pub fn open(_: &Settings) -> Result<Self, OpenError> {
        sync::Rules::current()?;
        Ok(Self {})
    }
}

impl Worker for MemorySync {
    const INFO: &'static WorkerInfo = &MEMORY_SYNC;
    type Item = SyncItem;

    async fn write<'a>(
        &'a self,
        _: &'a mut Connection,
        batch: &'a [&'a Message],
        _: &'a DataKeys,
    ) -> Result<Vec<Verdict>, Fault> {
        Ok(batch.iter().map(|message| Verdict::missing_prerequisite(message)).collect())
    }
}
