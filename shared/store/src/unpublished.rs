//! The transactions whose events are not published yet (docs/adr/0043).
//!
//! A worker publishes events of its own types only, so it has to know whether another one has published the earlier events
//! of a session. A transaction that appends events leaves a row, which the worker removes when it has published them.

use std::collections::HashSet;

use diesel::QueryableByName;
use diesel::sql_types::{Array, BigInt, Integer, Uuid as SqlUuid};
use diesel_async::{AsyncPgConnection, RunQueryDsl};
use uuid::Uuid;

use crate::fault::Fault;
use crate::prepared;

/// An event, by its id and the transaction that appended it.
pub type EventKey = (i64, Uuid);

/// Notes that this transaction appends so many events. Returns the id of the transaction.
///
/// # Errors
/// A [`Fault`] of the database.
pub async fn note_unpublished(connection: &mut AsyncPgConnection, events: usize) -> Result<i64, Fault> {
    #[derive(QueryableByName)]
    struct Noted {
        #[diesel(sql_type = BigInt)]
        transaction_id: i64,
    }
    let note = diesel::sql_query("SELECT sec.note_unpublished($1) AS transaction_id");
    let note = note.bind::<Integer, _>(i32::try_from(events).unwrap_or(i32::MAX));
    Ok(prepared(note).get_result::<Noted>(connection).await?.transaction_id)
}

/// Notes that events of this worker are published. Needs no security context.
///
/// # Errors
/// A [`Fault`] of the database.
pub async fn note_published(connection: &mut AsyncPgConnection, events: &[EventKey]) -> Result<(), Fault> {
    if events.is_empty() {
        return Ok(());
    }
    let (transactions, ids): (Vec<i64>, Vec<Uuid>) = events.iter().copied().unzip();
    let note = diesel::sql_query("SELECT sec.note_published($1, $2)");
    let note = note.bind::<Array<BigInt>, _>(transactions).bind::<Array<SqlUuid>, _>(ids);
    prepared(note).execute(connection).await?;
    Ok(())
}

/// Which of these events are not published yet. Needs no security context.
///
/// # Errors
/// A [`Fault`] of the database.
pub async fn still_unpublished(
    connection: &mut AsyncPgConnection,
    events: &[EventKey],
) -> Result<HashSet<Uuid>, Fault> {
    const FIND: &str = "SELECT u.id FROM sec.unpublished_of($1, $2) AS u (id)";
    #[derive(QueryableByName)]
    struct Row {
        #[diesel(sql_type = SqlUuid)]
        id: Uuid,
    }
    let (transactions, ids): (Vec<i64>, Vec<Uuid>) = events.iter().copied().unzip();
    let find = diesel::sql_query(FIND).bind::<Array<BigInt>, _>(transactions).bind::<Array<SqlUuid>, _>(ids);
    let rows: Vec<Row> = prepared(find).load(connection).await?;
    Ok(rows.into_iter().map(|row| row.id).collect())
}
