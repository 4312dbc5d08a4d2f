//! The rows of `job_runs`: what the runs of scheduled jobs did, how long they took, and why they failed.

use chrono::{DateTime, Utc};
use diesel::sql_types::{BigInt, Nullable, Text, Timestamptz, Uuid as SqlUuid};
use diesel_async::{AsyncPgConnection, RunQueryDsl};
use uuid::Uuid;

use crate::fault::Fault;
use crate::prepared;

/// A run of a job.
#[derive(Clone, Debug)]
pub struct JobRun<'a> {
    /// The job.
    pub job: &'a str,
    /// The id of its tick.
    pub tick: Uuid,
    /// When it began. It ends when it is noted.
    pub began: DateTime<Utc>,
    /// What it did.
    pub counts: Counts,
}

/// What a run did. The unit is the job's: rows, or users.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// What was due.
    pub examined: u64,
    /// What of it was changed.
    pub changed: u64,
    /// What was left to the next run.
    pub skipped: u64,
    /// More, as a JSON object.
    pub details: Option<String>,
    /// Why it failed, or what it could not do while it did the rest.
    pub failure: Option<String>,
}

/// Notes a run of a job of this connection's role. A run that changed nothing replaces the last one that did not.
///
/// # Errors
/// A [`Fault`]: of the kind `Denied` if the job is not this role's.
pub async fn note(connection: &mut AsyncPgConnection, run: &JobRun<'_>) -> Result<(), Fault> {
    const NOTE: &str = "SELECT sec.note_job_run($1, $2, $3, $4, $5, $6, $7, $8)";
    let count = |count: u64| i64::try_from(count).unwrap_or(i64::MAX);
    let query = diesel::sql_query(NOTE)
        .bind::<Text, _>(run.job)
        .bind::<SqlUuid, _>(run.tick)
        .bind::<Timestamptz, _>(run.began)
        .bind::<BigInt, _>(count(run.counts.examined))
        .bind::<BigInt, _>(count(run.counts.changed))
        .bind::<BigInt, _>(count(run.counts.skipped))
        .bind::<Nullable<Text>, _>(run.counts.failure.as_deref())
        .bind::<Text, _>(run.counts.details.as_deref().unwrap_or("{}"));
    prepared(query).execute(connection).await?;
    Ok(())
}

/// Notes a pass of something that runs often and is no worker's job, such as the sealer; for an administrator's role. Passes of one
/// hour share a row, which has the result of the last one. Rows are kept for 30 days.
///
/// # Errors
/// A [`Fault`] of the database.
pub async fn note_pass(connection: &mut AsyncPgConnection, name: &str, counts: &Counts) -> Result<(), Fault> {
    const NOTE: &str = "
        WITH last AS (
            SELECT r.id FROM public.job_runs r WHERE r.job = $1 AND r.started_at > now() - interval '1 hour' AND NOT r.is_idle
            ORDER BY r.started_at DESC LIMIT 1
        ), updated AS (
            UPDATE public.job_runs r SET finished_at = clock_timestamp(), tries = r.tries + 1, examined = r.examined + $2,
                changed = r.changed + $3, skipped = r.skipped + $4, failure = $5
            FROM last l WHERE r.job = $1 AND r.id = l.id RETURNING r.id
        ), old AS (
            DELETE FROM public.job_runs r WHERE r.job = $1 AND r.started_at < now() - interval '30 days'
        )
        INSERT INTO public.job_runs AS r (id, job, started_at, examined, changed, skipped, failure)
        SELECT gen_random_uuid(), $1, now(), $2, $3, $4, $5 WHERE NOT EXISTS (SELECT FROM updated)
        ON CONFLICT (job) WHERE is_idle DO UPDATE SET started_at = excluded.started_at, finished_at = excluded.finished_at,
            examined = excluded.examined";
    let count = |count: u64| i64::try_from(count).unwrap_or(i64::MAX);
    let query = diesel::sql_query(NOTE)
        .bind::<Text, _>(name)
        .bind::<BigInt, _>(count(counts.examined))
        .bind::<BigInt, _>(count(counts.changed))
        .bind::<BigInt, _>(count(counts.skipped))
        .bind::<Nullable<Text>, _>(counts.failure.as_deref());
    prepared(query).execute(connection).await?;
    Ok(())
}
