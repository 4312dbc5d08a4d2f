//! A collection: a shard of the engine, with its writes, flushes and optimizer.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::SyncSender;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use qdrant_edge::{
    EdgeShard, Filter, PayloadOps, PointId, PointOperations, ScrollRequest, SetPayloadOp, ShardInfo,
    UpdateOperation, WithPayloadInterface, WithVector,
};

use crate::error::Problem;
use crate::files;
use crate::flush::{self, FlushGate};
use crate::journal::Journal;
use crate::recovery;
use crate::settings::Settings;

/// How often a flush is tried, a millisecond apart, until the locks of the engine are free. The optimizer holds them
/// for less time.
const FLUSH_TRIES: u32 = 2000;

/// An open collection.
#[derive(Debug)]
pub(crate) struct Collection {
    pub(crate) settings: Settings,
    shard: EdgeShard,
    /// Locked for every write and flush, because a flush panics during a write.
    journal: Mutex<Journal>,
    gate: FlushGate,
    /// The number of writes, and how many of them the optimizer has processed.
    written: AtomicU64,
    settled: AtomicU64,
    /// Whether the optimizer is running, which includes merging of indexed segments.
    optimizing: AtomicBool,
    /// How many writes are durable. It starts at the largest number, so that a new collection is flushed too.
    flushed: AtomicU64,
    /// Why the last run of the optimizer failed, if it did.
    failure: Mutex<Option<String>>,
    maintenance: Mutex<Option<SyncSender<()>>>,
    /// Dropped after the shard, which writes to the folder when it closes.
    folder: Folder,
}

/// The folder of a collection. If the collection is deleted, the folder is removed on drop.
#[derive(Debug)]
struct Folder {
    path: PathBuf,
    deleted: AtomicBool,
}

impl Drop for Folder {
    fn drop(&mut self) {
        if self.deleted.load(Ordering::Acquire)
            && let Err(error) = files::remove_folder(&self.path)
        {
            tracing::warn!(folder = %self.path.display(), %error, "cannot remove the folder of a deleted collection; the next start removes it");
        }
    }
}

impl Collection {
    /// Creates an empty collection in a new folder.
    pub(crate) fn create(folder: &Path, settings: Settings) -> Result<Self, Problem> {
        fs::create_dir_all(folder).map_err(|source| Problem::file("create the folder", folder, source))?;
        let shard = EdgeShard::new(folder, settings.engine_config())?;
        let collection = Self::from_shard(shard, folder, settings);
        collection.flush()?;
        files::sync_folder_of(folder).map_err(|source| Problem::file("make durable", folder, source))?;
        Ok(collection)
    }

    /// Opens the collection in a folder, with recovery after a crash.
    pub(crate) fn load(folder: &Path, settings: Settings) -> Result<Self, Problem> {
        recovery::remove_leftovers(folder)?;
        let shard = EdgeShard::load(folder, Some(settings.engine_config()))?;
        let collection = Self::from_shard(shard, folder, settings);
        if collection.journal().exists() {
            collection.recover()?;
        }
        // The optimizer may have been interrupted, or never started.
        collection.written.store(1, Ordering::Release);
        Ok(collection)
    }

    fn from_shard(shard: EdgeShard, folder: &Path, settings: Settings) -> Self {
        Self {
            settings,
            shard,
            journal: Mutex::new(Journal::new(folder)),
            gate: FlushGate::default(),
            written: AtomicU64::new(0),
            settled: AtomicU64::new(0),
            optimizing: AtomicBool::new(false),
            flushed: AtomicU64::new(u64::MAX),
            failure: Mutex::new(None),
            maintenance: Mutex::new(None),
            folder: Folder { path: folder.to_path_buf(), deleted: AtomicBool::new(false) },
        }
    }

    fn recover(&self) -> Result<(), Problem> {
        tracing::info!(folder = %self.folder.path.display(), "the optimizer was interrupted: applying its journal");
        recovery::remove_duplicates(&self.shard)?;
        let mut journal = self.journal();
        let replayed = journal.replay(|operation| {
            if let Err(error) = self.shard.update(operation) {
                // It failed when it was first applied, too.
                tracing::debug!(%error, "an operation of the journal failed again");
            }
        });
        replayed.map_err(|source| self.journal_problem("read the journal in", source))?;
        self.flush_holding(&mut journal)?;
        journal.end().map_err(|source| self.journal_problem("remove the journal in", source))
    }

    /// The shard of the engine, for reading.
    pub(crate) fn shard(&self) -> &EdgeShard {
        &self.shard
    }

    /// Applies a write. With `wait` it is durable on return; otherwise the maintenance thread flushes it soon.
    pub(crate) fn write(&self, operation: UpdateOperation, wait: bool) -> Result<(), Problem> {
        let done = self.apply(operation);
        self.wake_maintenance();
        done?;
        if wait { self.flush() } else { Ok(()) }
    }

    fn apply(&self, operation: UpdateOperation) -> Result<(), Problem> {
        let mut journal = self.journal();
        let operation = if journal.is_open() { self.record(&mut journal, operation)? } else { operation };
        let done = self.shard.update(operation);
        self.written.fetch_add(1, Ordering::AcqRel);
        Ok(done?)
    }

    /// Records an operation in the journal, with a filter replaced by the matching ids: when the journal is replayed,
    /// other points may match the filter.
    fn record(&self, journal: &mut Journal, operation: UpdateOperation) -> Result<UpdateOperation, Problem> {
        let operation = self.with_ids(operation)?;
        // New points are in a segment that the optimizer does not change. This keeps bulk loads out of the journal.
        // Once the journal contains an operation, the order matters, and every operation is recorded.
        if journal.is_empty()
            && let Some(ids) = operation.upsert_point_ids()
            && self.shard.retrieve(&ids, Some(WithPayloadInterface::Bool(false)), None)?.is_empty()
        {
            return Ok(operation);
        }
        journal.record(&operation).map_err(|source| self.journal_problem("write the journal in", source))?;
        Ok(operation)
    }

    fn with_ids(&self, operation: UpdateOperation) -> Result<UpdateOperation, Problem> {
        match operation {
            UpdateOperation::PointOperation(PointOperations::DeletePointsByFilter(filter)) => {
                let ids = self.ids_of(filter)?;
                Ok(UpdateOperation::PointOperation(PointOperations::DeletePoints { ids }))
            }
            UpdateOperation::PayloadOperation(PayloadOps::SetPayload(SetPayloadOp {
                payload,
                points: None,
                filter: Some(filter),
                key,
            })) => {
                let points = Some(self.ids_of(filter)?);
                let operation = SetPayloadOp { payload, points, filter: None, key };
                Ok(UpdateOperation::PayloadOperation(PayloadOps::SetPayload(operation)))
            }
            operation @ (UpdateOperation::PointOperation(_)
            | UpdateOperation::VectorOperation(_)
            | UpdateOperation::PayloadOperation(_)
            | UpdateOperation::FieldIndexOperation(_)
            | UpdateOperation::VectorNameOperation(_)) => Ok(operation),
        }
    }

    fn ids_of(&self, filter: Filter) -> Result<Vec<PointId>, Problem> {
        let all = ScrollRequest {
            offset: None,
            limit: Some(usize::MAX),
            filter: Some(filter),
            with_payload: Some(WithPayloadInterface::Bool(false)),
            with_vector: WithVector::Bool(false),
            order_by: None,
        };
        Ok(self.shard.scroll(all)?.0.into_iter().map(|record| record.id).collect())
    }

    /// Makes every write so far durable.
    pub(crate) fn flush(&self) -> Result<(), Problem> {
        if self.flushed.load(Ordering::Acquire) == self.written.load(Ordering::Acquire) {
            return Ok(());
        }
        self.gate.pass(|| self.flush_holding(&mut self.journal()))
    }

    fn flush_holding(&self, journal: &mut Journal) -> Result<(), Problem> {
        journal.sync().map_err(|source| self.journal_problem("make durable the journal in", source))?;
        // There are no writes while the journal is locked.
        let written = self.written.load(Ordering::Acquire);
        let mut last = String::new();
        for _ in 0..FLUSH_TRIES {
            match flush::catching(|| self.shard.flush()) {
                Ok(()) => {
                    self.flushed.store(written, Ordering::Release);
                    return Ok(());
                }
                Err(cause) => last = cause,
            }
            thread::sleep(Duration::from_millis(1));
        }
        Err(Problem::Internal(format!("cannot flush {}: {last}", self.folder.path.display())))
    }

    /// Runs the optimizer, which builds indexes of segments with enough points. Reads and writes continue meanwhile.
    pub(crate) fn optimize(&self) -> Result<(), Problem> {
        let seen = self.written.load(Ordering::Acquire);
        if self.settled.load(Ordering::Acquire) == seen {
            return Ok(());
        }
        self.journal().begin().map_err(|source| self.journal_problem("begin the journal in", source))?;
        self.optimizing.store(true, Ordering::Release);
        let done = self.shard.optimize();
        self.optimizing.store(false, Ordering::Release);
        // Also after a failure: the engine has then undone its changes.
        let mut journal = self.journal();
        self.flush_holding(&mut journal)?;
        journal.end().map_err(|source| self.journal_problem("remove the journal in", source))?;
        drop(journal);
        *self.failure.lock().unwrap_or_else(PoisonError::into_inner) =
            done.as_ref().err().map(ToString::to_string);
        self.settled.store(seen, Ordering::Release);
        done?;
        Ok(())
    }

    /// Whether the optimizer has nothing to do: it has processed every write, or too few points are unindexed.
    pub(crate) fn is_settled(&self, info: &ShardInfo) -> bool {
        if self.optimizing.load(Ordering::Acquire) {
            return false;
        }
        if self.settled.load(Ordering::Acquire) == self.written.load(Ordering::Acquire) {
            return true;
        }
        let unindexed = info.points_count.saturating_sub(info.indexed_vectors_count);
        unindexed < self.settings.points_worth_indexing()
    }

    /// Why the last run of the optimizer failed, if it did.
    pub(crate) fn failure(&self) -> Option<String> {
        self.failure.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Marks the collection as deleted: its folder is removed on drop, and its maintenance thread ends.
    pub(crate) fn mark_deleted(&self) {
        self.folder.deleted.store(true, Ordering::Release);
        *self.maintenance.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }

    pub(crate) fn is_deleted(&self) -> bool {
        self.folder.deleted.load(Ordering::Acquire)
    }

    pub(crate) fn set_maintenance(&self, wake: SyncSender<()>) {
        *self.maintenance.lock().unwrap_or_else(PoisonError::into_inner) = Some(wake);
    }

    pub(crate) fn wake_maintenance(&self) {
        if let Some(wake) = &*self.maintenance.lock().unwrap_or_else(PoisonError::into_inner) {
            // Full: it is already woken. Closed: it has ended with the collection.
            let _ = wake.try_send(());
        }
    }

    fn journal(&self) -> MutexGuard<'_, Journal> {
        self.journal.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn journal_problem(&self, action: &'static str, source: std::io::Error) -> Problem {
        Problem::file(action, &self.folder.path, source)
    }
}
