//! The inbox table: the messages that each worker has processed. It prevents a redelivered message from being applied
//! twice.

use std::collections::HashSet;

use chrono::{DateTime, Utc};
use diesel::QueryableByName;
use diesel::sql_types::{Array, Integer, Text, Uuid as SqlUuid};
use diesel_async::{AsyncPgConnection, RunQueryDsl};
use uuid::Uuid;

use crate::fault::Fault;
use crate::prepared;

/// A message of a batch.
#[derive(Clone, Copy, Debug)]
pub struct Entry {
    /// The user of the message.
    pub user_id: i32,
    /// The request id.
    pub message_id: Uuid,
    /// The id of the first event that it emits. Every delivery has a new one.
    pub event_id: Uuid,
    /// The number of events that it emits.
    pub event_count: i32,
}

impl Entry {
    /// The ids of its events, in order.
    pub fn event_ids(&self) -> impl Iterator<Item = Uuid> + use<> {
        event_ids(self.event_id, usize::try_from(self.event_count).unwrap_or(0))
    }
}

/// The random low bits of a UUIDv7: `rand_b` in RFC 9562, section 5.7.
const RANDOM_BITS: u128 = (1 << 62) - 1;

/// The ids of the events of a message, in order. They are derived from the first id, a UUIDv7, so that the inbox stores
/// only that id and the number of events. They have the same timestamp and are therefore in the same partition.
pub fn event_ids(first: Uuid, count: usize) -> impl Iterator<Item = Uuid> + use<> {
    let first = first.as_u128();
    (0..count as u128).map(move |n| {
        let random = (first & RANDOM_BITS).wrapping_add(n) & RANDOM_BITS;
        Uuid::from_u128((first & !RANDOM_BITS) | random)
    })
}

#[derive(QueryableByName)]
struct Taken {
    #[diesel(sql_type = SqlUuid)]
    event_id: Uuid,
}

/// Inserts the messages of a batch that no transaction has taken before, and returns their event ids. The other
/// messages are duplicates.
///
/// It waits for open transactions that have taken one of the messages. Rows are inserted in the order of their keys, so
/// two batches with common messages do not deadlock.
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

/// Deletes entries that this transaction has inserted and whose messages were not applied: they are retried or
/// dead-lettered.
///
/// # Errors
/// A [`Fault`] of the database.
pub async fn release(
    connection: &mut AsyncPgConnection,
    worker: &str,
    entries: &[Entry],
) -> Result<(), Fault> {
    // A role with the right to delete might lock the table.
    const RELEASE: &str = "SELECT sec.release_messages($1, $2, $3)";
    if entries.is_empty() {
        return Ok(());
    }
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

/// Stores the event counts of entries that this transaction has inserted. The default is 1.
///
/// # Errors
/// A [`Fault`] of the database.
pub async fn count_events(
    connection: &mut AsyncPgConnection,
    worker: &str,
    entries: &[Entry],
) -> Result<(), Fault> {
    const COUNT: &str = "
        UPDATE inbox SET event_count = m.event_count
        FROM unnest($2::integer[], $3::uuid[], $4::integer[]) AS m (user_id, message_id, event_count)
        WHERE inbox.worker = $1 AND inbox.user_id = m.user_id AND inbox.message_id = m.message_id";
    if entries.is_empty() {
        return Ok(());
    }
    prepared(
        diesel::sql_query(COUNT)
            .bind::<Text, _>(worker)
            .bind::<Array<Integer>, _>(column(entries, |entry| entry.user_id))
            .bind::<Array<SqlUuid>, _>(column(entries, |entry| entry.message_id))
            .bind::<Array<Integer>, _>(column(entries, |entry| entry.event_count)),
    )
    .execute(connection)
    .await?;
    Ok(())
}

/// The entries of these messages, as stored by the transactions that processed them.
///
/// # Errors
/// A [`Fault`] of the database.
pub async fn find(
    connection: &mut AsyncPgConnection,
    worker: &str,
    entries: &[Entry],
) -> Result<Vec<Entry>, Fault> {
    const FIND: &str = "
        SELECT i.user_id, i.message_id, i.event_id, i.event_count
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
        #[diesel(sql_type = Integer)]
        event_count: i32,
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
        .map(|Row { user_id, message_id, event_id, event_count }| Entry {
            user_id,
            message_id,
            event_id,
            event_count,
        })
        .collect())
}

/// Deletes entries that were inserted before a time, at most `limit` of them, and returns their number. No older
/// message may still be in a stream, because it would be applied again. For an administrator: no worker's role may do it.
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn event_ids_are_derived_from_the_first_and_keep_its_timestamp() {
        let first = Uuid::now_v7();
        let ids: Vec<Uuid> = event_ids(first, 1_000).collect();
        assert_eq!(ids.as_slice().first(), Some(&first));
        assert_eq!(ids.iter().collect::<HashSet<_>>().len(), 1_000);
        // All bits but the low 62: the time, the version and the variant.
        assert!(
            ids.iter().all(|id| id.as_u128() >> 62 == first.as_u128() >> 62 && id.get_version_num() == 7)
        );
        // Also if all random bits are ones.
        let last = Uuid::from_u128(first.as_u128() | RANDOM_BITS);
        assert!(event_ids(last, 3).all(|id| id.as_u128() >> 62 == first.as_u128() >> 62));
        assert_eq!(event_ids(first, 0).count(), 0);
    }
}
