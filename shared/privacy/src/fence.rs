//! The fence around a person whose erasure is under way, in the main database and in the key store.
//!
//! From the commit of its row in `sec.fenced_users` on, no context opens for the person, and each statement of one that is open ends with an error. What ran
//! already may still commit: [`drain`] waits for it. Afterwards nobody writes rows of the person but the erasure, which needs no context.

use std::time::Duration;

use contract::UserId;
use diesel::prelude::*;
use diesel::sql_types::{Array, Binary, Integer, Nullable, Text, Uuid as SqlUuid};
use diesel_async::RunQueryDsl;
use store::{Connection, Fault};
use tokio::time::{Instant, sleep};
use uuid::Uuid;

/// How often [`drain`] looks: within the first second, and after it.
const FIRST_LOOKS: Duration = Duration::from_millis(10);
const LATER_LOOKS: Duration = Duration::from_millis(100);

#[derive(QueryableByName)]
struct Line {
    #[diesel(sql_type = Text)]
    line: String,
}

async fn lines(connection: &mut Connection, query: &str, names: &[String]) -> Result<Vec<String>, Fault> {
    let rows: Vec<Line> = diesel::sql_query(query).bind::<Array<Text>, _>(names).load(connection).await?;
    Ok(rows.into_iter().map(|row| row.line).collect())
}

/// The transactions that run in this database, but for this one: each by a name that no later one has before the server restarts. A
/// transaction that has not written anything yet has one, too. Autovacuum and VACUUM, which write no rows, do not count. Prepared ones have
/// other names: see [`prepared`].
///
/// # Errors
/// A [`Fault`] of the database.
pub async fn running(connection: &mut Connection) -> Result<Vec<String>, Fault> {
    const RUNNING: &str = "
        SELECT l.virtualtransaction AS line FROM pg_locks l JOIN pg_stat_activity a ON a.pid = l.pid
        WHERE l.locktype = 'virtualxid' AND l.mode = 'ExclusiveLock' AND l.granted AND a.datname = current_database()
            AND a.pid <> pg_backend_pid() AND a.backend_type IS DISTINCT FROM 'autovacuum worker'
            AND NOT EXISTS (SELECT FROM pg_stat_progress_vacuum v WHERE v.pid = a.pid) AND l.virtualtransaction <> ALL ($1)";
    lines(connection, RUNNING, &[]).await
}

/// The prepared transactions of this database. One that ran may have become one meanwhile, so that they are listed when no other is left.
///
/// # Errors
/// A [`Fault`] of the database.
pub async fn prepared(connection: &mut Connection) -> Result<Vec<String>, Fault> {
    const PREPARED: &str = "
        SELECT p.transaction::text AS line FROM pg_prepared_xacts p WHERE p.database = current_database() AND p.transaction::text <> ALL ($1)";
    lines(connection, PREPARED, &[]).await
}

/// Who keeps these transactions open, as an operator knows them: at most five.
///
/// # Errors
/// A [`Fault`] of the database.
pub async fn keepers(connection: &mut Connection, names: &[String]) -> Result<Vec<String>, Fault> {
    const KEEPERS: &str = "
        SELECT format('process %s of the role %s, since %s', a.pid, a.usename, to_char(a.xact_start AT TIME ZONE 'UTC', 'YYYY-MM-DD HH24:MI:SSZ')) AS line
        FROM pg_locks l JOIN pg_stat_activity a ON a.pid = l.pid
        WHERE l.locktype = 'virtualxid' AND l.mode = 'ExclusiveLock' AND l.granted AND l.virtualtransaction = ANY ($1)
        UNION ALL
        SELECT format('the prepared transaction %L, since %s', p.gid, to_char(p.prepared AT TIME ZONE 'UTC', 'YYYY-MM-DD HH24:MI:SSZ'))
        FROM pg_prepared_xacts p WHERE p.database = current_database() AND p.transaction::text = ANY ($1)
        LIMIT 5";
    lines(connection, KEEPERS, names).await
}

/// Waits until none of these transactions is open any more, at most for `patience`, and gives those that still are. A worker's ends within
/// five minutes (`sec.end_old_transactions`).
///
/// # Errors
/// A [`Fault`] of the database.
pub async fn drain(
    connection: &mut Connection,
    earlier: &[String],
    patience: Duration,
) -> Result<Vec<String>, Fault> {
    let since = Instant::now();
    loop {
        let mut left = running(connection).await?;
        left.extend(prepared(connection).await?);
        left.retain(|name| earlier.contains(name));
        if left.is_empty() || since.elapsed() >= patience {
            return Ok(left);
        }
        let is_new = since.elapsed() < Duration::from_secs(1);
        sleep(if is_new { FIRST_LOOKS } else { LATER_LOOKS }).await;
    }
}

/// Notes in the main database that a user is erased, and gives the tombstone. `tenant`: the user's pseudonym in the vector store.
///
/// # Errors
/// A [`Fault`] of the database, also if it has no key of tombstones.
pub async fn note_erased(
    connection: &mut Connection,
    user: UserId,
    erasure: Uuid,
    tenant: Option<Uuid>,
) -> Result<Vec<u8>, Fault> {
    const NOTE: &str = "SELECT sec.note_erased($1, $2, $3) AS tombstone";
    #[derive(QueryableByName)]
    struct Row {
        #[diesel(sql_type = Nullable<Binary>)]
        tombstone: Option<Vec<u8>>,
    }
    let noted: Row = diesel::sql_query(NOTE)
        .bind::<Integer, _>(user.get())
        .bind::<SqlUuid, _>(erasure)
        .bind::<Nullable<SqlUuid>, _>(tenant)
        .get_result(connection)
        .await?;
    noted.tombstone.ok_or_else(|| Fault {
        kind: store::FaultKind::Permanent,
        reason: "the database has no key of tombstones".to_owned(),
    })
}

/// Those of these ids that have a tombstone in the main database.
///
/// # Errors
/// A [`Fault`] of the database.
pub async fn erased_among(connection: &mut Connection, users: &[i32]) -> Result<Vec<i32>, Fault> {
    const ERASED: &str = "SELECT DISTINCT u AS id FROM sec.erased_among($1) AS u";
    #[derive(QueryableByName)]
    struct Row {
        #[diesel(sql_type = Integer)]
        id: i32,
    }
    let rows: Vec<Row> = diesel::sql_query(ERASED).bind::<Array<Integer>, _>(users).load(connection).await?;
    Ok(rows.into_iter().map(|row| row.id).collect())
}

/// Lets the rest of this transaction see the rows of all users, or fail: a role that row-level security applies to would see none, and there
/// would seem to be nothing to erase.
///
/// # Errors
/// A [`Fault`] of the database.
pub async fn see_all(connection: &mut Connection) -> Result<(), Fault> {
    diesel::sql_query("SET LOCAL row_security = off").execute(connection).await?;
    Ok(())
}
