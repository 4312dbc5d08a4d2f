//! The runs of what is scheduled beside the jobs of workers: the sealer, the reconciler. `job_runs` has them beside those of jobs.

use diesel::sql_types::{BigInt, Nullable, Text};
use diesel_async::{AsyncPgConnection, RunQueryDsl};

use crate::fault::Fault;

/// What a pass did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Pass {
    /// What it looked at.
    pub examined: u64,
    /// What of that it changed.
    pub changed: u64,
}

/// Notes a pass of something that runs often. Passes of the same hour share a row, which has the result of the last one.
///
/// # Errors
/// A [`Fault`] of the database.
pub async fn note(
    connection: &mut AsyncPgConnection,
    job: &str,
    pass: Pass,
    failure: Option<&str>,
) -> Result<(), Fault> {
    const NOTE: &str = "
        WITH last AS (
            SELECT r.id FROM public.job_runs r WHERE r.job = $1 AND r.started_at > now() - interval '1 hour'
            ORDER BY r.started_at DESC LIMIT 1
        ), updated AS (
            UPDATE public.job_runs r SET finished_at = clock_timestamp(), deliveries = r.deliveries + 1, examined = r.examined + $2,
                changed = r.changed + $3, skipped = r.skipped + $2 - $3, failure = $4
            FROM last l WHERE r.id = l.id RETURNING r.id
        )
        INSERT INTO public.job_runs (id, job, finished_at, examined, changed, skipped, failure)
        SELECT gen_random_uuid(), $1, clock_timestamp(), $2, $3, $2 - $3, $4 WHERE NOT EXISTS (SELECT FROM updated)";
    let count = |count: u64| i64::try_from(count).unwrap_or(i64::MAX);
    let changed = pass.changed.min(pass.examined);
    let query = diesel::sql_query(NOTE)
        .bind::<Text, _>(job)
        .bind::<BigInt, _>(count(pass.examined))
        .bind::<BigInt, _>(count(changed))
        .bind::<Nullable<Text>, _>(failure);
    query.execute(connection).await?;
    Ok(())
}
