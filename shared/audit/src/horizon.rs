//! Old transactions that hold back sealing.
//!
//! The sealer takes rows below the oldest transaction in progress. One that nobody ends, in any database of the server,
//! keeps all later rows unsealed without an error.

use std::fmt;
use std::time::Duration;

use chrono::{DateTime, SecondsFormat, Utc};
use diesel::QueryableByName;
use diesel::sql_types::{BigInt, Double, Integer, Nullable, Text, Timestamptz};
use diesel_async::{AsyncPgConnection, RunQueryDsl};
use serde::Serialize;
use store::Fault;

/// How old a row may become before it is reported that it cannot be sealed. Batches and migrations end sooner.
pub const HELD_AFTER: Duration = Duration::from_secs(60);

/// The maximum number of transactions that are named, the oldest first.
const MAX_HOLDERS: i64 = 10;

/// Rows older than [`HELD_AFTER`] cannot be sealed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct HeldBack {
    /// The time of the oldest of them.
    pub since: DateTime<Utc>,
    /// The transactions that hold them back, the oldest first, at most ten. Empty if the server shows none of them.
    pub holders: Vec<Holder>,
}

/// A transaction that is older than rows that wait to be sealed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Holder {
    /// A session is in the transaction.
    Session {
        /// The process of the server.
        pid: i32,
        /// The role; none for a process of the server itself.
        role: Option<String>,
        /// The database.
        database: Option<String>,
        /// How the client calls itself.
        application: Option<String>,
        /// What the session does, such as `idle in transaction`. None if the asking role may not see it.
        state: Option<String>,
        /// How long the transaction is open, in seconds. None if the asking role may not see it.
        age_s: Option<i64>,
    },
    /// The transaction was prepared for a two-phase commit. No session is in it.
    Prepared {
        /// Its global id.
        gid: String,
        /// The role that prepared it.
        role: Option<String>,
        /// The database.
        database: Option<String>,
        /// How long ago it was prepared, in seconds.
        age_s: Option<i64>,
    },
}

impl fmt::Display for Holder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fn known(text: Option<&String>) -> &str {
            text.map_or("unknown", String::as_str)
        }
        let age = match self {
            Self::Session { pid, role, database, application, state, age_s } => {
                write!(f, "pid {pid} (role {}, database {}", known(role.as_ref()), known(database.as_ref()))?;
                if let Some(application) = application.as_ref().filter(|name| !name.is_empty()) {
                    write!(f, ", application {application:?}")?;
                }
                write!(f, ", {}", state.as_deref().unwrap_or("state unknown"))?;
                age_s
            }
            Self::Prepared { gid, role, database, age_s } => {
                let (role, database) = (known(role.as_ref()), known(database.as_ref()));
                write!(f, "prepared transaction {gid:?} (role {role}, database {database}")?;
                age_s
            }
        };
        match age {
            Some(age) => write!(f, ", for {age} s)"),
            None => write!(f, ")"),
        }
    }
}

impl fmt::Display for HeldBack {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let since = self.since.to_rfc3339_opts(SecondsFormat::Secs, true);
        write!(f, "rows of the audit trail since {since} cannot be sealed: ")?;
        if self.holders.is_empty() {
            return write!(f, "an older transaction is open, which the server shows to nobody");
        }
        write!(f, "older transactions are open: ")?;
        for (number, holder) in self.holders.iter().enumerate() {
            let separator = if number == 0 { "" } else { "; " };
            write!(f, "{separator}{holder}")?;
        }
        Ok(())
    }
}

/// The first row that is not below the oldest transaction in progress, if it is old. Later rows are not looked at: there
/// may be millions.
const WAITING: &str = "
    SELECT h.horizon, r.transaction_id, r.at
    FROM (SELECT pg_snapshot_xmin(pg_current_snapshot())::text::bigint AS horizon) AS h
    CROSS JOIN LATERAL (
        (SELECT transaction_id, occurred_at AS at FROM audit.audit_log
            WHERE transaction_id >= h.horizon ORDER BY transaction_id, id LIMIT 1)
        UNION ALL (SELECT transaction_id, occurred_at FROM audit.security_violations
            WHERE transaction_id >= h.horizon ORDER BY transaction_id, id LIMIT 1)
        UNION ALL (SELECT transaction_id, occurred_at FROM audit.data_access_log
            WHERE transaction_id >= h.horizon ORDER BY transaction_id, id LIMIT 1)
        UNION ALL (SELECT transaction_id, created_at FROM public.blackboard_events
            WHERE transaction_id >= h.horizon ORDER BY transaction_id, id LIMIT 1)
    ) AS r
    WHERE r.at < now() - make_interval(secs => $1)
    ORDER BY r.at LIMIT 1";

#[derive(QueryableByName)]
struct Waiting {
    #[diesel(sql_type = BigInt)]
    horizon: i64,
    #[diesel(sql_type = BigInt)]
    transaction_id: i64,
    #[diesel(sql_type = Timestamptz)]
    at: DateTime<Utc>,
}

/// The transactions in progress before another ($2). The views show the low 32 bits of a transaction id; all ids in
/// progress lie within the next 2^31 from the oldest one ($1).
const HOLDERS: &str = "
    SELECT t.pid, t.gid, t.role, t.database, t.application, t.state,
        floor(extract(epoch FROM clock_timestamp() - t.began))::bigint AS age_s
    FROM (
        SELECT pid, NULL::text AS gid, usename::text AS role, datname::text AS database, application_name AS application,
            state, xact_start AS began, backend_xid AS xid
        FROM pg_stat_activity WHERE backend_xid IS NOT NULL
        UNION ALL
        SELECT NULL, gid, owner::text, database::text, NULL, NULL, prepared, transaction FROM pg_prepared_xacts
    ) AS t
    CROSS JOIN LATERAL (SELECT (t.xid::text::bigint - ($1 & 4294967295)) & 4294967295 AS distance) AS d
    WHERE $1 + d.distance < $2
    ORDER BY d.distance LIMIT $3";

#[derive(QueryableByName)]
struct HolderRow {
    #[diesel(sql_type = Nullable<Integer>)]
    pid: Option<i32>,
    #[diesel(sql_type = Nullable<Text>)]
    gid: Option<String>,
    #[diesel(sql_type = Nullable<Text>)]
    role: Option<String>,
    #[diesel(sql_type = Nullable<Text>)]
    database: Option<String>,
    #[diesel(sql_type = Nullable<Text>)]
    application: Option<String>,
    #[diesel(sql_type = Nullable<Text>)]
    state: Option<String>,
    #[diesel(sql_type = Nullable<BigInt>)]
    age_s: Option<i64>,
}

impl HolderRow {
    /// None for a row of neither view.
    fn holder(self) -> Option<Holder> {
        let Self { pid, gid, role, database, application, state, age_s } = self;
        match (pid, gid) {
            (_, Some(gid)) => Some(Holder::Prepared { gid, role, database, age_s }),
            (Some(pid), None) => Some(Holder::Session { pid, role, database, application, state, age_s }),
            (None, None) => None,
        }
    }
}

/// What holds back the sealing of rows older than [`HELD_AFTER`], if anything does. The role needs `pg_read_all_stats` to
/// see what sessions of other roles do.
///
/// # Errors
/// A [`Fault`] of the database.
pub async fn held_back(connection: &mut AsyncPgConnection) -> Result<Option<HeldBack>, Fault> {
    let Some((first, holders)) = look(connection).await? else { return Ok(None) };
    if !holders.is_empty() {
        return Ok(Some(HeldBack { since: first.at, holders }));
    }
    // The transaction may have ended between the two statements.
    let again = look(connection).await?;
    Ok(again.map(|(first, holders)| HeldBack { since: first.at, holders }))
}

async fn look(connection: &mut AsyncPgConnection) -> Result<Option<(Waiting, Vec<Holder>)>, Fault> {
    let waiting: Vec<Waiting> =
        diesel::sql_query(WAITING).bind::<Double, _>(HELD_AFTER.as_secs_f64()).load(connection).await?;
    let Some(first) = waiting.into_iter().next() else { return Ok(None) };
    let holders: Vec<HolderRow> = diesel::sql_query(HOLDERS)
        .bind::<BigInt, _>(first.horizon)
        .bind::<BigInt, _>(first.transaction_id)
        .bind::<BigInt, _>(MAX_HOLDERS)
        .load(connection)
        .await?;
    Ok(Some((first, holders.into_iter().filter_map(HolderRow::holder).collect())))
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
        let held = HeldBack { since, holders: vec![session, prepared, hidden] };
        assert_eq!(
            held.to_string(),
            "rows of the audit trail since 2027-01-15T08:00:00Z cannot be sealed: older transactions are open: pid 7 \
             (role app, database other, application \"psql\", idle in transaction, for 90 s); prepared transaction \
             \"x'1\" (role app, database other, for 61 s); pid 8 (role unknown, database unknown, state unknown)"
        );
        let nobody = HeldBack { holders: Vec::new(), ..held };
        assert!(nobody.to_string().contains("which the server shows to nobody"), "{nobody}");
    }
}
