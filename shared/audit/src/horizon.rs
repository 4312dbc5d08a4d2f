//! Old rows that are not sealed, and why.
//!
//! The sealer takes rows below the oldest transaction in progress. One that nobody ends, in any database of the server,
//! keeps all later rows unsealed without an error. So does whoever takes the lock of the sealers, and nobody seals while no
//! sealer runs. A row that names a transaction of the future waits until there is one.

use std::fmt;
use std::time::Duration;

use chrono::{DateTime, SecondsFormat, Utc};
use diesel::QueryableByName;
use diesel::sql_types::{BigInt, Double, Timestamptz, Uuid as SqlUuid};
use diesel_async::{AsyncPgConnection, RunQueryDsl};
use serde::Serialize;
use store::Fault;
use uuid::Uuid;

use crate::chain;
use crate::holder::{self, Holder};
use crate::sealer::LOCK;
use crate::time::Time;

/// How old a row may become before it is reported that it is not sealed. Batches and migrations end sooner.
pub const HELD_AFTER: Duration = Duration::from_secs(60);

/// Rows older than [`HELD_AFTER`] are not sealed, or a row that cannot be.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct HeldBack {
    /// The time of the oldest of them.
    pub since: DateTime<Utc>,
    /// What holds them back.
    pub cause: Cause,
    /// Who holds them back, the oldest first, at most ten. Empty if the server shows nobody.
    pub holders: Vec<Holder>,
}

/// What holds back rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Cause {
    /// Transactions older than they are, which are open.
    Transactions,
    /// Another session has the lock of the sealers.
    Lock,
    /// A transaction that the server has not begun: somebody changed `transaction_id`, or the row is of another server.
    Future,
    /// Nothing that the server shows.
    Unknown,
}

impl fmt::Display for HeldBack {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let since = self.since.to_rfc3339_opts(SecondsFormat::Secs, true);
        write!(f, "rows of the audit trail since {since} ")?;
        match self.cause {
            Cause::Transactions if self.holders.is_empty() => {
                write!(f, "cannot be sealed: an older transaction is open, which the server shows to nobody")
            }
            Cause::Transactions => {
                write!(f, "cannot be sealed: older transactions are open: {}", holder::line(&self.holders))
            }
            Cause::Lock => write!(
                f,
                "are not sealed, and the lock of the sealers is taken, by a sealer with much to do or by somebody who keeps \
                 it: {}",
                holder::line(&self.holders)
            ),
            Cause::Future => write!(
                f,
                "cannot be sealed: they are of transactions that this server has not begun. Somebody changed transaction_id, or \
                 they were restored from another server; look for rows with a transaction_id from \
                 pg_snapshot_xmax(pg_current_snapshot()) on, also in audit.subjects"
            ),
            Cause::Unknown => write!(
                f,
                "are not sealed, and nothing holds them back: does `memfleet audit seal --follow` run, and without errors?"
            ),
        }
    }
}

/// The oldest row behind the last seal ($2, $3) of those that are old, in any table; if there is none, one of a transaction that has not
/// begun, however young. A young row hides no old one, wherever it stands: each table is asked for these rows only. Nor does one of a
/// transaction that has not begun: it stands behind the others of its table, and comes after those of other tables.
const WAITING: &str = "
    SELECT h.horizon, h.next, r.transaction_id, r.at
    FROM (SELECT pg_snapshot_xmin(pg_current_snapshot())::text::bigint AS horizon,
        pg_snapshot_xmax(pg_current_snapshot())::text::bigint AS next, now() - make_interval(secs => $1) AS before) AS h
    CROSS JOIN LATERAL (
        (SELECT transaction_id, occurred_at AS at FROM audit.audit_log
            WHERE (transaction_id, id) > ($2, $3) AND (occurred_at < h.before OR transaction_id >= h.next) ORDER BY transaction_id, id LIMIT 1)
        UNION ALL (SELECT transaction_id, occurred_at FROM audit.security_violations
            WHERE (transaction_id, id) > ($2, $3) AND (occurred_at < h.before OR transaction_id >= h.next) ORDER BY transaction_id, id LIMIT 1)
        UNION ALL (SELECT transaction_id, occurred_at FROM audit.data_access_log
            WHERE (transaction_id, id) > ($2, $3) AND (occurred_at < h.before OR transaction_id >= h.next) ORDER BY transaction_id, id LIMIT 1)
        UNION ALL (SELECT transaction_id, created_at FROM public.blackboard_events
            WHERE (transaction_id, id) > ($2, $3) AND (created_at < h.before OR transaction_id >= h.next) ORDER BY transaction_id, id LIMIT 1)
        UNION ALL (SELECT transaction_id, created_at FROM audit.subjects
            WHERE (transaction_id, token) > ($2, $3) AND (created_at < h.before OR transaction_id >= h.next)
            ORDER BY transaction_id, token LIMIT 1)
    ) AS r
    ORDER BY r.transaction_id >= h.next, r.at LIMIT 1";

#[derive(QueryableByName)]
struct Waiting {
    #[diesel(sql_type = BigInt)]
    horizon: i64,
    /// The first transaction that has not begun.
    #[diesel(sql_type = BigInt)]
    next: i64,
    #[diesel(sql_type = BigInt)]
    transaction_id: i64,
    #[diesel(sql_type = Timestamptz, deserialize_as = Time)]
    at: DateTime<Utc>,
}

/// What holds back the sealing of rows older than [`HELD_AFTER`], if there are any. The role needs `pg_read_all_stats` to
/// see what sessions of other roles do.
///
/// # Errors
/// A [`Fault`] of the database.
pub async fn held_back(connection: &mut AsyncPgConnection) -> Result<Option<HeldBack>, Fault> {
    store::security::fix_search_path(connection).await?;
    let held = look(connection).await?;
    match &held {
        // The transaction may have ended between the statements.
        Some(HeldBack { holders, .. }) if holders.is_empty() => look(connection).await,
        Some(_) | None => Ok(held),
    }
}

async fn look(connection: &mut AsyncPgConnection) -> Result<Option<HeldBack>, Fault> {
    let last = chain::last(connection).await?;
    let (transaction, id) =
        last.map_or((i64::MIN, Uuid::nil()), |last| (last.through_transaction, last.through_id));
    let waiting: Vec<Waiting> = diesel::sql_query(WAITING)
        .bind::<Double, _>(HELD_AFTER.as_secs_f64())
        .bind::<BigInt, _>(transaction)
        .bind::<SqlUuid, _>(id)
        .load(connection)
        .await?;
    let Some(first) = waiting.into_iter().next() else { return Ok(None) };
    let since = first.at;
    if first.transaction_id >= first.next {
        return Ok(Some(HeldBack { since, cause: Cause::Future, holders: Vec::new() }));
    }
    if first.transaction_id >= first.horizon {
        let holders = holder::between(connection, first.horizon, first.transaction_id).await?;
        return Ok(Some(HeldBack { since, cause: Cause::Transactions, holders }));
    }
    let holders = holder::of_lock(connection, LOCK).await?;
    let cause = if holders.is_empty() { Cause::Unknown } else { Cause::Lock };
    Ok(Some(HeldBack { since, cause, holders }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_says_who_holds_what_back() {
        let since = DateTime::from_timestamp(1_800_000_000, 0).unwrap_or_default();
        let text = |text: &str| Some(text.to_owned());
        let session = Holder::Session {
            pid: 7,
            role: text("app"),
            database: text("other"),
            application: text("psql"),
            state: text("idle in transaction"),
            age_s: Some(90),
        };
        let prepared = Holder::Prepared {
            gid: "x'1".to_owned(),
            role: text("app"),
            database: text("other"),
            age_s: Some(61),
        };
        let hidden = Holder::Session {
            pid: 8,
            role: None,
            database: None,
            application: text(""),
            state: None,
            age_s: None,
        };
        let cause = Cause::Transactions;
        let held = HeldBack { since, cause, holders: vec![session, prepared, hidden] };
        assert_eq!(
            held.to_string(),
            "rows of the audit trail since 2027-01-15T08:00:00Z cannot be sealed: older transactions are open: pid 7 \
             (role app, database other, application \"psql\", idle in transaction, for 90 s); prepared transaction \
             \"x'1\" (role app, database other, for 61 s); pid 8 (role unknown, database unknown, state unknown)"
        );
        let locked = HeldBack { cause: Cause::Lock, ..held.clone() };
        assert!(locked.to_string().contains("the lock of the sealers is taken, by"), "{locked}");
        let nobody = HeldBack { holders: Vec::new(), ..held };
        assert!(nobody.to_string().contains("which the server shows to nobody"), "{nobody}");
        let future = HeldBack { cause: Cause::Future, ..nobody.clone() };
        assert!(future.to_string().contains("transactions that this server has not begun"), "{future}");
        let unknown = HeldBack { cause: Cause::Unknown, ..nobody };
        assert!(unknown.to_string().contains("are not sealed, and nothing holds them back"), "{unknown}");
    }
}
