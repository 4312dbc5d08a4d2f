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
    /// Why it failed.
    pub failure: Option<&'a str>,
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
    /// What it could not do, while it did the rest.
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
        .bind::<Nullable<Text>, _>(run.failure)
        .bind::<Text, _>(run.counts.details.as_deref().unwrap_or("{}"));
    prepared(query).execute(connection).await?;
    Ok(())
}
