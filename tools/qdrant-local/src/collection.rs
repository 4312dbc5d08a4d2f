//! One collection: a shard of the engine, its writes, and what it says about itself.

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
use crate::repair;
use crate::settings::Settings;

/// How often a flush tries to find the engine's locks free, a millisecond apart. The optimiser holds them for less.
const FLUSH_TRIES: u32 = 2000;

/// An open collection.
#[derive(Debug)]
pub(crate) struct Collection {
    pub(crate) settings: Settings,
    shard: EdgeShard,
    /// Held by whoever writes or flushes: a flush panics where a write is under way.
    journal: Mutex<Journal>,
    gate: FlushGate,
    /// Writes so far, and how many of them the optimiser has seen.
    written: AtomicU64,
    settled: AtomicU64,
    /// Whether the optimiser is at work, be it on what is indexed already: it merges segments.
    optimizing: AtomicBool,
    /// How many writes are durable; none is the most there can be, so that a new collection is flushed too.
    flushed: AtomicU64,
    /// Why the optimiser failed last, where it did.
    failure: Mutex<Option<String>>,
    keeper: Mutex<Option<SyncSender<()>>>,
    /// After the shard, which writes to it when it closes.
    folder: Folder,
}

/// The folder of a collection, which goes with the last user of a deleted collection.
#[derive(Debug)]
struct Folder {
    path: PathBuf,
    doomed: AtomicBool,
}

impl Drop for Folder {
    fn drop(&mut self) {
        if self.doomed.load(Ordering::Acquire)
            && let Err(error) = files::remove_folder(&self.path)
        {
            tracing::warn!(folder = %self.path.display(), %error, "a deleted collection stays until the next start");
        }
    }
}

impl Collection {
    /// Makes an empty collection in a new folder.
    pub(crate) fn create(folder: &Path, settings: Settings) -> Result<Self, Problem> {
        fs::create_dir_all(folder).map_err(|source| Problem::file("create the folder", folder, source))?;
        let shard = EdgeShard::new(folder, settings.engine_config())?;
        let collection = Self::over(shard, folder, settings);
        collection.flush()?;
        files::sync_folder_of(folder).map_err(|source| Problem::file("make durable", folder, source))?;
        Ok(collection)
    }

    /// Opens the collection in the folder, and makes good what a crash left.
    pub(crate) fn load(folder: &Path, settings: Settings) -> Result<Self, Problem> {
        repair::tidy(folder)?;
        let shard = EdgeShard::load(folder, Some(settings.engine_config()))?;
        let collection = Self::over(shard, folder, settings);
        if collection.journal().was_left() {
            collection.make_good()?;
        }
        // The optimiser may have been cut short, or never begun.
        collection.written.store(1, Ordering::Release);
        Ok(collection)
    }

    fn over(shard: EdgeShard, folder: &Path, settings: Settings) -> Self {
        Self {
            settings,
            shard,
            journal: Mutex::new(Journal::of(folder)),
            gate: FlushGate::default(),
            written: AtomicU64::new(0),
            settled: AtomicU64::new(0),
            optimizing: AtomicBool::new(false),
            flushed: AtomicU64::new(u64::MAX),
            failure: Mutex::new(None),
            keeper: Mutex::new(None),
            folder: Folder { path: folder.to_path_buf(), doomed: AtomicBool::new(false) },
        }
    }

    fn make_good(&self) -> Result<(), Problem> {
        tracing::info!(folder = %self.folder.path.display(), "the optimiser was cut short: applying its journal");
        repair::remove_duplicates(&self.shard)?;
        let mut journal = self.journal();
        let replayed = journal.replay(|operation| {
            if let Err(error) = self.shard.update(operation) {
                // It failed the first time too.
                tracing::debug!(%error, "an operation of the journal failed again");
            }
        });
        replayed.map_err(|source| self.journal_problem("read the journal in", source))?;
        self.flush_holding(&mut journal)?;
        journal.end().map_err(|source| self.journal_problem("remove the journal in", source))
    }

    /// The engine, to read from.
    pub(crate) fn shard(&self) -> &EdgeShard {
        &self.shard
    }

    /// Writes. Durable when it returns where `wait` says so; otherwise the keeper flushes it soon.
    pub(crate) fn write(&self, operation: UpdateOperation, wait: bool) -> Result<(), Problem> {
        let done = self.apply(operation);
        self.wake_keeper();
        done?;
        if wait { self.flush() } else { Ok(()) }
    }

    fn apply(&self, operation: UpdateOperation) -> Result<(), Problem> {
        let mut journal = self.journal();
        let operation = if journal.is_open() { self.keep(&mut journal, operation)? } else { operation };
        let done = self.shard.update(operation);
        self.written.fetch_add(1, Ordering::AcqRel);
        Ok(done?)
    }

    /// Puts the operation into the journal, with the ids in the place of a filter: when it is applied again, other points
    /// may fit the filter.
    fn keep(&self, journal: &mut Journal, operation: UpdateOperation) -> Result<UpdateOperation, Problem> {
        let operation = self.with_ids(operation)?;
        // New points are in a segment that the optimiser leaves alone. This keeps a bulk load out of the journal; once
        // something is in it, the order matters.
        if journal.is_empty()
            && let Some(ids) = operation.upsert_point_ids()
            && self.shard.retrieve(&ids, Some(WithPayloadInterface::Bool(false)), None)?.is_empty()
        {
            return Ok(operation);
        }
        journal.keep(&operation).map_err(|source| self.journal_problem("write the journal in", source))?;
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
        // Nobody writes while the journal is held.
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

    /// Builds indexes where the engine finds that there are enough points for it. Reads and writes go on meanwhile.
    pub(crate) fn optimize(&self) -> Result<(), Problem> {
        let seen = self.written.load(Ordering::Acquire);
        if self.settled.load(Ordering::Acquire) == seen {
            return Ok(());
        }
        self.journal().begin().map_err(|source| self.journal_problem("begin the journal in", source))?;
        self.optimizing.store(true, Ordering::Release);
        let done = self.shard.optimize();
        self.optimizing.store(false, Ordering::Release);
        // Also where it failed: the engine has then taken its changes back.
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

    /// Whether the optimiser has nothing to do: it has seen every write, or would find too little.
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

    /// Why the optimiser failed last, where it did.
    pub(crate) fn failure(&self) -> Option<String> {
        self.failure.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Has the folder removed once nobody uses the collection any more.
    pub(crate) fn doom(&self) {
        self.folder.doomed.store(true, Ordering::Release);
        *self.keeper.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }

    pub(crate) fn is_doomed(&self) -> bool {
        self.folder.doomed.load(Ordering::Acquire)
    }

    pub(crate) fn set_keeper(&self, keeper: SyncSender<()>) {
        *self.keeper.lock().unwrap_or_else(PoisonError::into_inner) = Some(keeper);
    }

    pub(crate) fn wake_keeper(&self) {
        if let Some(keeper) = &*self.keeper.lock().unwrap_or_else(PoisonError::into_inner) {
            // Full: it will look anyway. Closed: it has ended, with the collection.
            let _ = keeper.try_send(());
        }
    }

    fn journal(&self) -> MutexGuard<'_, Journal> {
        self.journal.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn journal_problem(&self, action: &'static str, source: std::io::Error) -> Problem {
        Problem::file(action, &self.folder.path, source)
    }
}
