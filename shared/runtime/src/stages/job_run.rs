//! What is noted of the runs of jobs: of one that succeeds in its transaction, of one that fails afterwards.

use chrono::{DateTime, Utc};
use store::job_runs::{self, Counts, JobRun};
use store::{Connection, Fault};

use crate::stages::authorize::Authorized;
use crate::stages::disposition::Disposition;
use crate::stages::tick_grants::TickGrants;
use crate::stages::write::Writer;
use crate::worker::{ExternalWorker, Message, Retry, Source, Verdict, Written};

/// A run that is under way.
#[derive(Debug)]
pub(crate) struct Run {
    pub(crate) began: DateTime<Utc>,
    /// Why it was tried with fewer users.
    pub(crate) failure: Option<String>,
}

impl Run {
    pub(crate) fn begin() -> Self {
        Self { began: Utc::now(), failure: None }
    }
}

/// Notes a run that its transaction completes. Workers that count nothing themselves have changed as much as they tell by events.
pub(crate) async fn note<I, F>(
    connection: &mut Connection,
    message: &Message<I>,
    run: &Run,
    users: usize,
    written: &Written<F>,
) -> Result<(), Fault> {
    let Source::Tick(tick) = &message.source else { return Ok(()) };
    let (events, refused) = match written.verdicts.first() {
        Some(Verdict::Applied(events)) => (events.len(), None),
        // It waits, and has not run.
        Some(Verdict::Retry(Retry::NotBefore { .. }, _)) => return Ok(()),
        Some(
            Verdict::Retry(Retry::WithinBudget | Retry::Prerequisite, reason) | Verdict::Rejected(reason),
        ) => (0, Some(reason.to_string())),
        Some(Verdict::Unchanged(_)) | None => (0, None),
    };
    let count = |count: usize| u64::try_from(count).unwrap_or(u64::MAX);
    let counted = Counts { examined: count(users), changed: count(events), ..Counts::default() };
    let mut counts = written.counts.clone().unwrap_or(counted);
    counts.failure = refused.or(counts.failure).or_else(|| run.failure.clone());
    let run = JobRun { job: tick.job.as_str(), tick: message.request_id, began: run.began, counts };
    job_runs::note(connection, &run).await
}

impl<W: ExternalWorker> Writer<W> {
    /// Notes why a tick was not committed. One that waits, or that another replica takes, has not failed.
    pub(crate) async fn note_failed_run(
        &self,
        batch: &[Authorized<W::Item>],
        decided: &[Disposition],
        grants: Option<&TickGrants>,
    ) {
        for (message, disposition) in batch.iter().map(Authorized::message).zip(decided) {
            let Source::Tick(tick) = &message.source else { continue };
            let Some(reason) = disposition.failure() else { continue };
            let failure = reason.to_string();
            let run = JobRun {
                job: tick.job.as_str(),
                tick: message.request_id,
                began: grants.map_or_else(Utc::now, |grants| grants.run().began),
                counts: Counts { failure: Some(failure.clone()), ..Counts::default() },
            };
            if let Err(fault) = self.note_run(&run).await {
                tracing::warn!(worker = W::INFO.name, %fault, job = run.job, failure, "cannot note a run that failed");
            }
        }
    }

    async fn note_run(&self, run: &JobRun<'_>) -> Result<(), Fault> {
        let mut connection = store::acquire(&self.pool).await?;
        let noted = job_runs::note(&mut connection, run).await;
        store::discard_if_unusable(connection, &noted);
        noted
    }
}
