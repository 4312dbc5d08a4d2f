//! Carries the memory of one session into another, without losing either.
//!
//! It processes the stream `SYNC`. A session is a replica of its user's memory; `shared/sync` says what a sync writes, and this crate
//! reads and writes the rows. A round of a batch of syncs (`store/carry.rs`):
//!
//! 1. reads and locks, with a statement for each table, the keys of all sources that their targets may not know, and the targets' own
//!    (`store/cells.rs`);
//! 2. plans each sync by itself, on a thread that may be blocked, and as much of it as its share of the batch allows. Syncs that
//!    concern the same session are planned after each other;
//! 3. writes what the plans say: the cells of the targets, the states that the sources must keep, the conflicts and what is needed to
//!    take it back (`store/write.rs`), and how far the syncs are (`store/syncs.rs`).
//!
//! A transfer of up to 500 keys is complete with the transaction of its request. What is left, and a `state_sync` as long as its
//! sessions are open, is carried by the job `sync-carry` under job grants (`store/tick.rs`). That a source has something new shows in
//! its session clock, which each event of a session moves; what the target lacks of it shows in the rows. So a tick that is lost, or
//! one too many, changes nothing.
//!
//! Values that are stored encrypted are decrypted and encrypted again for their new row, under a request's token only (`prepare.rs`).
//! `sync.undo` is in `store/undo.rs`; removals that all sessions have seen are forgotten by the job `sync-forget` (`store/forget.rs`).

mod item;
mod prepare;
mod store;

use std::sync::Arc;
use std::time::Duration;

use ::store::{Connection, Fault};
use config::Settings;
use contract::{MEMORY_SYNC, WorkerInfo};
use keys::{DataKeys, KeyError, Keys, OpenKeys};
use prepare::WantedKeys;
use runtime::{Ended, ExternalWorker, ProbeResults, Written};
use sync::Rules;

pub use item::{Job, SyncItem};

pub(crate) type Message = runtime::Message<SyncItem>;

/// The worker.
#[derive(Debug)]
pub struct MemorySync {
    rules: Arc<Rules>,
    keys: Keys,
    wanted: WantedKeys,
}

/// The worker cannot start.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The rules cannot be read.
    #[error("memory-sync cannot start: {0}")]
    Rules(#[from] sync::RulesError),
    /// The keys cannot be used as configured.
    #[error("memory-sync cannot start: {0}")]
    Keys(#[from] KeyError),
}

impl MemorySync {
    /// Reads the rules. The key store is connected to with the first encrypted value.
    ///
    /// # Errors
    /// [`OpenError`].
    pub fn open(settings: &Settings) -> Result<Self, OpenError> {
        let acquire_timeout = Duration::from_millis(settings.postgres.connect_timeout_ms);
        let keys = Keys::open(&settings.keys, &MEMORY_SYNC.role(), MEMORY_SYNC.name, acquire_timeout)?;
        Ok(Self { rules: Arc::new(Rules::current()?), keys, wanted: WantedKeys::default() })
    }
}

impl ExternalWorker for MemorySync {
    const INFO: &'static WorkerInfo = &MEMORY_SYNC;
    const ENCRYPTS: bool = true;
    /// Each sync reads up to 500 keys of two sessions.
    const MAX_BATCH: usize = 64;
    type Item = SyncItem;
    type Prepared = OpenKeys;
    type Finding = ();

    async fn probe(&self) -> ProbeResults {
        // The runtime probes the key store.
        ProbeResults::new()
    }

    async fn prepare<'a>(
        &'a self,
        batch: &'a [&'a Message],
        grants: &'a [&'a str],
    ) -> Result<OpenKeys, Fault> {
        prepare::prepare(&self.keys, &self.wanted, batch, grants).await
    }

    fn join(&self, one: OpenKeys, other: OpenKeys) -> OpenKeys {
        one.with(other)
    }

    async fn write<'a>(
        &'a self,
        connection: &'a mut Connection,
        batch: &'a [&'a Message],
        _: &'a DataKeys,
        prepared: &'a OpenKeys,
    ) -> Result<Written<()>, Fault> {
        // A tick is a batch of its own.
        let job = batch.first().and_then(|message| match message.request {
            SyncItem::Tick(job) => Some((job, *message)),
            SyncItem::Request(_) => None,
        });
        let verdicts = match job {
            Some((job, tick)) => vec![store::tick(connection, &self.rules, job, tick).await?],
            None => store::requests(connection, &self.rules, batch, prepared, &self.wanted).await?,
        };
        Ok(verdicts.into())
    }

    async fn clean_up<'a>(&'a self, _: &'a [Ended<'a, SyncItem, ()>], _: &'a OpenKeys) -> Result<(), Fault> {
        Ok(())
    }
}
