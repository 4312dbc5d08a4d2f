//! Stores retention policies and legal holds, and removes what they do not keep. Files what a person asks for by law.
//!
//! It processes the stream `RETENTION`, whose requests set policies and holds (`store/policies.rs`) or are filed for an operator
//! (`store/privacy.rs`, docs/adr/0062), and the job `retention-sweep`.
//! Which rows are due is decided by functions of the database (`sec.due_…`), which the job grants, the sweep and the preview share
//! (docs/adr/0052). A run takes a slice of the users, and at most 2,000 rows (`store/sweep.rs`):
//!
//! 1. it locks the row of its progress, so that one run is under way at a time;
//! 2. it removes what has been archived before (`archives.rs`), if nothing has changed it since;
//! 3. it expires, deletes or anonymises what is due, children before the rows that they refer to, and leaves out what another
//!    transaction holds;
//! 4. it moves on to the next slice if nothing is left in this one, and after some runs in any case (`store/progress.rs`).
//!
//! All of it is one transaction, with an event for each session from which something was removed. While there are such events, the next
//! run follows at once. A tick whose grants were minted, or whose archives were read, before another run removed the same rows comes again. A run that is killed leaves nothing, and the next one finds the same rows.
//!
//! What a policy archives is written into files, and read back, before that transaction (`archives.rs`, docs/adr/0053). Archives that it
//! does not name are deleted after it.
//!
//! The job `maintenance` (`maintenance.rs`, docs/adr/0054) acts for no user: it calls functions of the database that create partitions,
//! roll up figures, search them for anomalies and delete what has aged out, each bounded and in a transaction of its own.
//!
//! Points of removed memories are deleted from the vector store before the next transaction (`points.rs`): until then the memory's row
//! says that there are some, and no search finds them.

mod archives;
mod item;
mod maintenance;
mod points;
mod preview;
mod store;

use std::time::Duration;

use ::archive::{ArchiveError, Keys};
use ::store::job_runs::Counts;
use ::store::{Connection, Fault, Pool, PoolOptions};
use chrono::{TimeDelta, Utc};
use config::{ArchiveSettings, Settings};
use contract::{RETENTION_CLEANER, WorkerInfo};
use keys::DataKeys;
use runtime::readiness::probe;
use runtime::{Dependency, Ended, ExternalWorker, ProbeResults, Reason, Retry, Verdict, Written};
use uuid::Uuid;
use vectors::VectorStore;

pub use archives::Archives;
pub use item::{Job, RetentionItem};
pub use maintenance::Steps;
pub use points::Removed;
pub use preview::preview;
pub use store::archive::{TableColumn, columns};
use store::sweep::sweep_with;
pub use store::sweep::{Effect, Line, ROWS, Swept, sweep};

pub(crate) type Message = runtime::Message<RetentionItem>;

/// The connections for what is read and written outside the transaction: one tick of each job at a time.
const CONNECTIONS: usize = 2;

/// For how long a tick comes again if other runs keep removing what it has grants of. Then it is left to the schedule.
const AGAIN_WITHIN: TimeDelta = TimeDelta::seconds(20);
const AGAIN_AFTER: TimeDelta = TimeDelta::milliseconds(500);

/// The worker.
pub struct RetentionCleaner {
    pool: Pool,
    /// `None`: none is configured, and there are no points to remove.
    vectors: Option<VectorStore>,
    archive: ArchiveSettings,
}

impl std::fmt::Debug for RetentionCleaner {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RetentionCleaner").finish_non_exhaustive()
    }
}

/// What was done before the transaction of a tick.
#[derive(Debug, Default)]
pub struct Prepared {
    removed: Removed,
    archives: Archives,
    steps: Option<Steps>,
}

/// The worker cannot start.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The pool cannot be created.
    #[error(transparent)]
    Pool(#[from] ::store::PoolError),
    /// The vector store cannot be used as configured.
    #[error("retention-cleaner cannot start: {0}")]
    Vectors(#[from] vectors::VectorError),
    /// Archives cannot be signed.
    #[error("retention-cleaner cannot start: {0}")]
    Archive(#[from] ArchiveError),
}

impl RetentionCleaner {
    /// Connects to nothing yet.
    ///
    /// # Errors
    /// [`OpenError`].
    pub fn open(settings: &Settings) -> Result<Self, OpenError> {
        // The target itself may be away for a while, as a disk or a server may.
        if settings.archive.url.is_some() {
            Keys::signing(&settings.archive)?;
        }
        let pool = ::store::open_pool(
            &settings.postgres.url_of(&RETENTION_CLEANER.role()),
            &PoolOptions {
                name: "retention-cleaner look-up",
                size: CONNECTIONS,
                acquire_timeout: Duration::from_millis(settings.postgres.connect_timeout_ms),
                statement_timeout: Duration::from_millis(settings.postgres.statement_timeout_ms),
                lock_timeout: Duration::from_millis(settings.postgres.lock_timeout_ms),
            },
        )?;
        Ok(Self { pool, vectors: VectorStore::open(&settings.vectors)?, archive: settings.archive.clone() })
    }
}

impl ExternalWorker for RetentionCleaner {
    const INFO: &'static WorkerInfo = &RETENTION_CLEANER;
    const MAX_BATCH: usize = 64;
    type Item = RetentionItem;
    type Prepared = Prepared;
    /// An archive that the transaction named.
    type Finding = Uuid;

    async fn probe(&self) -> ProbeResults {
        let Some(vectors) = &self.vectors else { return ProbeResults::new() };
        let check = async { vectors.check().await.map_err(|error| error.to_string()) };
        vec![probe(Dependency::Qdrant, check).await]
    }

    async fn prepare<'a>(
        &'a self,
        batch: &'a [&'a Message],
        grants: &'a [&'a str],
    ) -> Result<Prepared, Fault> {
        match tick_of(batch) {
            Some((Job::Sweep, tick)) => {
                let removed = points::remove(&self.pool, self.vectors.as_ref(), grants).await?;
                let archives = archives::prepare(&self.pool, &self.archive, tick.request_id, grants).await?;
                Ok(Prepared { removed, archives, steps: None })
            }
            Some((Job::Maintain, _)) => {
                let steps = Some(maintenance::steps(&self.pool).await?);
                Ok(Prepared { steps, ..Prepared::default() })
            }
            None => Ok(Prepared::default()),
        }
    }

    fn join(&self, one: Prepared, other: Prepared) -> Prepared {
        Prepared {
            removed: one.removed.with(other.removed),
            archives: one.archives.with(other.archives),
            steps: one.steps.or(other.steps),
        }
    }

    async fn write<'a>(
        &'a self,
        connection: &'a mut Connection,
        batch: &'a [&'a Message],
        _: &'a DataKeys,
        prepared: &'a Prepared,
    ) -> Result<Written<Uuid>, Fault> {
        match tick_of(batch) {
            Some((Job::Sweep, tick)) => run(connection, tick, prepared).await,
            Some((Job::Maintain, tick)) => {
                maintenance::finish(connection, tick, prepared.steps.as_ref()).await
            }
            None => {
                let archives = self.archive.url.is_some();
                Ok(store::policies::write(connection, batch, archives).await?.into())
            }
        }
    }

    async fn clean_up<'a>(
        &'a self,
        ended: &'a [Ended<'a, RetentionItem, Uuid>],
        prepared: &'a Prepared,
    ) -> Result<(), Fault> {
        // A tick that is tried again has not ended, and may use them.
        if let [tick] = ended {
            archives::discard(&self.archive, &prepared.archives, tick.findings).await;
        }
        Ok(())
    }
}

/// The tick of a batch, which is a batch of its own, and its job.
fn tick_of<'a>(batch: &[&'a Message]) -> Option<(Job, &'a Message)> {
    let [message] = batch else { return None };
    match message.request {
        RetentionItem::Tick(job) => Some((job, *message)),
        RetentionItem::Request(_) => None,
    }
}

/// Has a tick come again, with other grants: another run has taken what it was to remove, and nobody else may have a reason to have the sweep
/// go on. Not one with archives, which are deleted only after a tick that ends; its rows were removed by a run whose events are a reason.
fn again(tick: &Message, prepared: &Prepared) -> Option<Verdict> {
    let now = Utc::now();
    if now > tick.stored_at + AGAIN_WITHIN || !prepared.archives.written.is_empty() {
        return None;
    }
    let retry = Retry::NotBefore { time: now + AGAIN_AFTER, deadline: tick.stored_at + AGAIN_WITHIN * 10 };
    Some(Verdict::Retry(retry, Reason::new("another run has taken what this one was to remove")))
}

async fn run(
    connection: &mut Connection,
    tick: &Message,
    prepared: &Prepared,
) -> Result<Written<Uuid>, Fault> {
    let unchanged = |reason: &'static str| {
        let verdicts = vec![Verdict::Unchanged(reason.into())];
        Written { counts: Some(Counts::default()), ..verdicts.into() }
    };
    let Some(progress) = store::progress::lock(connection).await? else {
        return Ok(unchanged("another run is under way"));
    };
    let is_outdated = prepared.archives.is_outdated(&store::progress::last_run(connection).await?);
    let users = store::progress::users(connection).await?;
    let Some(progress) = store::progress::slice(connection, progress, &users).await? else {
        let again = again(tick, prepared).map(|verdict| vec![verdict].into());
        return Ok(again.unwrap_or_else(|| unchanged("another run has moved on to other users")));
    };
    points::forget(connection, &prepared.removed).await?;
    let at = Utc::now();
    let (archives, failure) = prepared.archives.usable(at);
    let mut swept = sweep_with(connection, at, &users, ROWS, tick.request_id, &archives).await?;
    // Another run has removed rows that this one has grants of, or has read: what is left of them tells nothing of the rest of the slice. But
    // what cannot be removed now, as its archive cannot be written, keeps no other users from their turn.
    let leaves = failure.is_none()
        && !swept.has_more
        && (is_outdated || store::progress::has_due_beside(connection, progress, &users).await?);
    if leaves && swept.changed() == 0 {
        if is_outdated {
            return Ok(unchanged("another run has removed what this one has read"));
        }
        if let Some(verdict) = again(tick, prepared) {
            return Ok(vec![verdict].into());
        }
    } else {
        swept.has_more |= leaves;
    }
    swept.failure = failure;
    store::progress::advance(connection, progress, &swept).await?;
    let counts = Some(swept.counts());
    let findings = swept.archives.iter().map(|archive| (tick.event_id, *archive)).collect();
    let verdict = match swept.events.is_empty() {
        true => Verdict::unchanged(tick),
        false => Verdict::Applied(swept.events),
    };
    Ok(Written { verdicts: vec![verdict], findings, counts })
}
