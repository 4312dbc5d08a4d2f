//! What operators should know of erasures when they look at something else, or restore a database.

use anyhow::Context;
use config::Settings;
use diesel::QueryableByName;
use diesel::sql_types::{BigInt, Bool};
use diesel_async::RunQueryDsl;
use privacy::{reapply, receipt};
use store::{Connection, Fault};

#[derive(QueryableByName)]
struct Exists {
    #[diesel(sql_type = Bool)]
    exists: bool,
}

/// Whether the database knows of erasures: the migration may not be applied yet.
async fn is_known(connection: &mut Connection) -> Result<bool, Fault> {
    let table: Exists = diesel::sql_query("SELECT to_regclass('sec.erased_users') IS NOT NULL AS exists")
        .get_result(connection)
        .await?;
    Ok(table.exists)
}

/// Requests of persons that somebody should look after, a line each kind: those that are late or will be within seven days, that a hold
/// keeps, and that have failed for an hour. No line names a user.
///
/// # Errors
/// A [`Fault`] of the database.
pub(crate) async fn alarms(connection: &mut Connection) -> Result<Vec<String>, Fault> {
    #[derive(QueryableByName)]
    struct Counts {
        #[diesel(sql_type = BigInt)]
        overdue: i64,
        #[diesel(sql_type = BigInt)]
        due: i64,
        #[diesel(sql_type = BigInt)]
        held: i64,
        #[diesel(sql_type = BigInt)]
        failing: i64,
    }
    const COUNTS: &str = "
        SELECT count(*) FILTER (WHERE due_at < now()) AS overdue,
            count(*) FILTER (WHERE due_at BETWEEN now() AND now() + interval '7 days') AS due,
            count(*) FILTER (WHERE request_status = 'held') AS held,
            count(*) FILTER (WHERE last_error IS NOT NULL AND requested_at < now() - interval '1 hour') AS failing
        FROM privacy_requests WHERE request_type IN ('erase', 'anonymise', 'restrict', 'access', 'rectify') AND request_status IN ('pending', 'held', 'in_progress')";
    if !is_known(connection).await? {
        return Ok(Vec::new());
    }
    let counts: Counts = diesel::sql_query(COUNTS).get_result(connection).await?;
    let line = |count: i64, what: &str| {
        (count > 0).then(|| format!("{count} privacy requests {what}; `memfleet privacy list` names them"))
    };
    let lines = [
        line(counts.overdue, "are overdue"),
        line(counts.due, "are due within seven days"),
        line(counts.held, "wait for the release of a legal hold"),
        line(counts.failing, "do not go on"),
    ];
    Ok(lines.into_iter().flatten().collect())
}

/// How many receipts there are of whose persons the database does not know that they were erased: it is older than the erasures. 0 without
/// `privacy.receipt_url`.
///
/// # Errors
/// If the receipts or the database cannot be read.
pub(crate) async fn unapplied(connection: &mut Connection, settings: &Settings) -> anyhow::Result<u64> {
    if settings.privacy.receipt_url.is_none() {
        return Ok(0);
    }
    if !is_known(connection).await? {
        return Ok(0);
    }
    let missing = async {
        let target = receipt::target(settings, None)?;
        reapply::unapplied(connection, &target, &receipt::public_keys(&settings.privacy)?).await
    };
    let missing = missing.await.context("it is unknown whether the database has all erasures")?;
    Ok(u64::try_from(missing.len()).unwrap_or(u64::MAX))
}

/// What to do about receipts that the database lacks.
pub(crate) fn advice(count: u64) -> String {
    format!(
        "the database does not know of {count} erasures whose receipts are at privacy.receipt_url, and may have the persons; run \
         `memfleet privacy reapply` before any worker starts"
    )
}

/// The same as a warning, also of why it is unknown.
pub(crate) async fn unapplied_warning(connection: &mut Connection, settings: &Settings) -> Option<String> {
    match unapplied(connection, settings).await {
        Ok(0) => None,
        Ok(count) => Some(advice(count)),
        Err(error) => Some(format!("{error:#}")),
    }
}
