//! The rows of `job_runs`: what each run examined and changed, how long it took, and why it failed.

use ::store::{Connection, Fault, Pool};
use diesel::sql_types::{BigInt, Nullable, Text, Uuid as SqlUuid};
use diesel_async::RunQueryDsl;

use crate::store::sweep::Swept;
use crate::{Message, RetentionItem};

/// Rows are kept for a month.
const BEGIN: &str = "
    WITH old AS (DELETE FROM job_runs WHERE started_at < now() - interval '30 days')
    INSERT INTO job_runs AS r (id, job) VALUES ($1, $2)
    ON CONFLICT (id) DO UPDATE SET deliveries = r.deliveries + 1";
const FINISH: &str = "
    UPDATE job_runs SET finished_at = clock_timestamp(), examined = $2, changed = $3, skipped = $4, details = $5::jsonb, failure = $6
    WHERE id = $1";
const FAIL: &str = "
    UPDATE job_runs SET finished_at = clock_timestamp(), failure = 'it became a dead letter, which has the reason: memfleet dead list'
    WHERE id = $1 AND finished_at IS NULL";

/// Notes that a run begins, or is delivered again. It is committed at once: a run that is killed is seen.
pub(crate) async fn begin(pool: &Pool, tick: &Message) -> Result<(), Fault> {
    let RetentionItem::Tick(job) = tick.request else { return Ok(()) };
    let mut connection = ::store::acquire(pool).await?;
    let query =
        diesel::sql_query(BEGIN).bind::<SqlUuid, _>(tick.request_id).bind::<Text, _>(runtime::Job::name(job));
    let begun = ::store::prepared(query).execute(&mut *connection).await.map_err(Fault::from);
    ::store::discard_if_unusable(connection, &begun);
    begun.map(|_| ())
}

/// Notes what a run did, in its transaction; also what it could not do.
pub(crate) async fn finish(connection: &mut Connection, tick: &Message, swept: &Swept) -> Result<(), Fault> {
    let count = |count: u64| i64::try_from(count).unwrap_or(i64::MAX);
    let details = serde_json::json!({ "lines": swept.lines, "has_more": swept.has_more });
    let query = diesel::sql_query(FINISH)
        .bind::<SqlUuid, _>(tick.request_id)
        .bind::<BigInt, _>(count(swept.examined))
        .bind::<BigInt, _>(count(swept.changed()))
        .bind::<BigInt, _>(count(swept.examined.saturating_sub(swept.changed())))
        .bind::<Text, _>(details.to_string())
        .bind::<Nullable<Text>, _>(swept.failure.as_deref());
    ::store::prepared(query).execute(connection).await?;
    Ok(())
}

/// Notes that a run was given up.
pub(crate) async fn fail(pool: &Pool, tick: &Message) -> Result<(), Fault> {
    let mut connection = ::store::acquire(pool).await?;
    let query = diesel::sql_query(FAIL).bind::<SqlUuid, _>(tick.request_id);
    let failed = ::store::prepared(query).execute(&mut *connection).await.map_err(Fault::from);
    ::store::discard_if_unusable(connection, &failed);
    failed.map(|_| ())
}
