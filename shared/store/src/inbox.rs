//! What has been taken: the table that gives a redelivered message no second effect.

use std::collections::HashSet;

use chrono::{DateTime, Utc};
use diesel::QueryableByName;
use diesel::sql_types::{Array, Integer, Text, Uuid as SqlUuid};
use diesel_async::{AsyncPgConnection, RunQueryDsl};
use uuid::Uuid;

use crate::fault::Fault;
use crate::prepared;

/// One message of a batch.
#[derive(Clone, Copy, Debug)]
pub struct Entry {
    /// Whose message it is.
    pub user_id: i32,
    /// The request id.
    pub message_id: Uuid,
    /// The id that the event of its effect will have. Unique for every delivery.
    pub event_id: Uuid,
}

#[derive(QueryableByName)]
struct Taken {
    #[diesel(sql_type = SqlUuid)]
    event_id: Uuid,
}

/// Takes the messages of a batch that no transaction has taken before, and gives the event ids of those. The
/// others are repeats.
///
/// A message that another, unfinished transaction has taken is waited for. Rows are taken in the order of their
/// key, so two batches that share messages never wait for each other in a circle.
///
/// # Errors
/// A [`Fault`] of the database.
pub async fn take(
    connection: &mut AsyncPgConnection,
    worker: &str,
    entries: &[Entry],
) -> Result<HashSet<Uuid>, Fault> {
    const TAKE: &str = "
        INSERT INTO inbox (worker, user_id, message_id, event_id)
        SELECT $1, m.user_id, m.message_id, m.event_id
        FROM unnest($2::integer[], $3::uuid[], $4::uuid[]) AS m (user_id, message_id, event_id)
        ORDER BY m.user_id, m.message_id
        ON CONFLICT DO NOTHING
        RETURNING event_id";
    let taken: Vec<Taken> = prepared(
        diesel::sql_query(TAKE)
            .bind::<Text, _>(worker)
            .bind::<Array<Integer>, _>(column(entries, |entry| entry.user_id))
            .bind::<Array<SqlUuid>, _>(column(entries, |entry| entry.message_id))
            .bind::<Array<SqlUuid>, _>(column(entries, |entry| entry.event_id)),
    )
    .load(connection)
    .await?;
    Ok(taken.into_iter().map(|row| row.event_id).collect())
}

/// Gives back messages taken in this transaction that had no effect and shall be tried again.
///
/// # Errors
/// A [`Fault`] of the database.
pub async fn release(
    connection: &mut AsyncPgConnection,
    worker: &str,
    entries: &[Entry],
) -> Result<(), Fault> {
    const RELEASE: &str = "
        DELETE FROM inbox USING unnest($2::integer[], $3::uuid[]) AS m (user_id, message_id)
        WHERE inbox.worker = $1 AND inbox.user_id = m.user_id AND inbox.message_id = m.message_id";
    prepared(
        diesel::sql_query(RELEASE)
            .bind::<Text, _>(worker)
            .bind::<Array<Integer>, _>(column(entries, |entry| entry.user_id))
            .bind::<Array<SqlUuid>, _>(column(entries, |entry| entry.message_id)),
    )
    .execute(connection)
    .await?;
    Ok(())
}

/// The event ids that the transactions which took these messages gave them, by user and message.
///
/// # Errors
/// A [`Fault`] of the database.
pub async fn event_ids(
    connection: &mut AsyncPgConnection,
    worker: &str,
    entries: &[Entry],
) -> Result<Vec<Entry>, Fault> {
    const FIND: &str = "
        SELECT i.user_id, i.message_id, i.event_id
        FROM unnest($2::integer[], $3::uuid[]) AS m (user_id, message_id)
        JOIN inbox i ON i.worker = $1 AND i.user_id = m.user_id AND i.message_id = m.message_id";
    #[derive(QueryableByName)]
    struct Row {
        #[diesel(sql_type = Integer)]
        user_id: i32,
        #[diesel(sql_type = SqlUuid)]
        message_id: Uuid,
        #[diesel(sql_type = SqlUuid)]
        event_id: Uuid,
    }
    if entries.is_empty() {
        return Ok(Vec::new());
    }
    let rows: Vec<Row> = prepared(
        diesel::sql_query(FIND)
            .bind::<Text, _>(worker)
            .bind::<Array<Integer>, _>(column(entries, |entry| entry.user_id))
            .bind::<Array<SqlUuid>, _>(column(entries, |entry| entry.message_id)),
    )
    .load(connection)
    .await?;
    Ok(rows
        .into_iter()
        .map(|row| Entry { user_id: row.user_id, message_id: row.message_id, event_id: row.event_id })
        .collect())
}

/// Forgets messages taken before a time, at most `limit` of them, and gives their number. Nothing older may
/// still be in a stream, or it could take effect twice.
///
/// # Errors
/// A [`Fault`] of the database.
pub async fn forget_before(
    connection: &mut AsyncPgConnection,
    worker: &str,
    before: DateTime<Utc>,
    limit: i64,
) -> Result<usize, Fault> {
    const FORGET: &str = "
        DELETE FROM inbox WHERE ctid = ANY (ARRAY(
            SELECT ctid FROM inbox WHERE worker = $1 AND received_at < $2 LIMIT $3))";
    let forgotten = prepared(
        diesel::sql_query(FORGET)
            .bind::<Text, _>(worker)
            .bind::<diesel::sql_types::Timestamptz, _>(before)
            .bind::<diesel::sql_types::BigInt, _>(limit),
    )
    .execute(connection)
    .await?;
    Ok(forgotten)
}

fn column<T>(entries: &[Entry], field: impl Fn(&Entry) -> T) -> Vec<T> {
    entries.iter().map(field).collect()
}
