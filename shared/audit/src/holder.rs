//! Sessions and prepared transactions that keep rows from being sealed.

use std::fmt;

use diesel::QueryableByName;
use diesel::sql_types::{BigInt, Integer, Nullable, Text};
use diesel_async::{AsyncPgConnection, RunQueryDsl};
use serde::Serialize;
use store::Fault;

/// The maximum number that are named, the oldest first.
const MAX_HOLDERS: i64 = 10;

/// A session or a prepared transaction that keeps rows from being sealed: it is older than they are, or has the lock of the
/// sealers.
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

/// All of them in one line.
pub(crate) fn line(holders: &[Holder]) -> String {
    if holders.is_empty() {
        return "nobody that the server shows".to_owned();
    }
    holders.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")
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

/// Those who have an advisory lock ($1, $2: its upper and lower half) in this database. A lock of a prepared transaction has
/// no process.
const OF_LOCK: &str = "
    SELECT a.pid, p.gid, coalesce(a.usename, p.owner)::text AS role, coalesce(a.datname, p.database)::text AS database,
        a.application_name AS application, a.state,
        floor(extract(epoch FROM clock_timestamp() - coalesce(a.xact_start, a.state_change, p.prepared)))::bigint AS age_s
    FROM pg_locks AS l
    LEFT JOIN pg_stat_activity AS a ON a.pid = l.pid
    LEFT JOIN pg_prepared_xacts AS p ON l.pid IS NULL AND l.virtualtransaction = '-1/' || p.transaction::text
    WHERE l.locktype = 'advisory' AND l.granted AND l.objsubid = 1 AND l.classid::bigint = $1 AND l.objid::bigint = $2
        AND l.database = (SELECT d.oid FROM pg_database AS d WHERE d.datname = current_database())
    ORDER BY age_s DESC LIMIT $3";

/// Those who have a lock of a table of this database that keeps others from reading it.
const OF_TABLES: &str = "
    SELECT a.pid, p.gid, coalesce(a.usename, p.owner)::text AS role, coalesce(a.datname, p.database)::text AS database,
        a.application_name AS application, a.state,
        floor(extract(epoch FROM clock_timestamp() - coalesce(a.xact_start, a.state_change, p.prepared)))::bigint AS age_s
    FROM (SELECT DISTINCT l.pid, l.virtualtransaction FROM pg_locks AS l
        WHERE l.locktype = 'relation' AND l.granted AND l.mode = 'AccessExclusiveLock'
            AND l.database = (SELECT d.oid FROM pg_database AS d WHERE d.datname = current_database())) AS l
    LEFT JOIN pg_stat_activity AS a ON a.pid = l.pid
    LEFT JOIN pg_prepared_xacts AS p ON l.pid IS NULL AND l.virtualtransaction = '-1/' || p.transaction::text
    ORDER BY age_s DESC NULLS LAST LIMIT $1";

/// The transactions in progress between two transactions.
pub(crate) async fn between(
    connection: &mut AsyncPgConnection,
    oldest: i64,
    before: i64,
) -> Result<Vec<Holder>, Fault> {
    read(connection, HOLDERS, oldest, before).await
}

/// Those who have an advisory lock.
pub(crate) async fn of_lock(connection: &mut AsyncPgConnection, lock: i64) -> Result<Vec<Holder>, Fault> {
    read(connection, OF_LOCK, (lock >> 32) & 0xffff_ffff, lock & 0xffff_ffff).await
}

/// Those who keep others from reading a table.
pub(crate) async fn of_tables(connection: &mut AsyncPgConnection) -> Result<Vec<Holder>, Fault> {
    let holders: Vec<HolderRow> =
        diesel::sql_query(OF_TABLES).bind::<BigInt, _>(MAX_HOLDERS).load(connection).await?;
    Ok(holders.into_iter().filter_map(HolderRow::holder).collect())
}

async fn read(
    connection: &mut AsyncPgConnection,
    statement: &str,
    first: i64,
    second: i64,
) -> Result<Vec<Holder>, Fault> {
    let holders: Vec<HolderRow> = diesel::sql_query(statement)
        .bind::<BigInt, _>(first)
        .bind::<BigInt, _>(second)
        .bind::<BigInt, _>(MAX_HOLDERS)
        .load(connection)
        .await?;
    Ok(holders.into_iter().filter_map(HolderRow::holder).collect())
}
