//! Writes records that change rarely. A statement receives them as one JSON array with the fields of the requests.

use chrono::{DateTime, Utc};
use contract::ContextRequest;
use diesel::QueryableByName;
use diesel::sql_types::{Integer, Nullable, Text, Uuid as SqlUuid};
use diesel_async::RunQueryDsl;
use serde::Serialize;
use store::{Connection, Fault, FaultKind};
use uuid::Uuid;

use super::table::Change;
use super::{Done, Item};

/// An element of the array. A field that the request lacks is NULL in SQL.
#[derive(Serialize)]
struct Record<'a, T> {
    ordinal: usize,
    id: Uuid,
    user_id: i32,
    request_id: Uuid,
    stored_at: DateTime<Utc>,
    #[serde(flatten)]
    request: &'a T,
}

/// A result row of every statement of this worker: one per request whose prerequisites exist, with the key of the row
/// that it has written, if any.
#[derive(QueryableByName)]
pub(crate) struct Answer {
    #[diesel(sql_type = Integer)]
    ordinal: i32,
    #[diesel(sql_type = Nullable<SqlUuid>)]
    row_id: Option<Uuid>,
}

/// Runs a statement whose only parameter `$1` is the array of records, with the requests unchanged.
pub(crate) async fn write(
    connection: &mut Connection,
    sql: &'static str,
    items: &[Item<'_, &Change>],
    done: &mut [Done],
) -> Result<(), Fault> {
    let records: Vec<_> = items
        .iter()
        .map(|&Item { index, message, request: change }| {
            let request = Removable { removed: change.removes, request: &message.request };
            Item { index, message, request }
        })
        .collect();
    write_as(connection, sql, &records, done).await
}

/// A request, and whether it removes its record.
#[derive(Serialize)]
struct Removable<'a> {
    removed: bool,
    #[serde(flatten)]
    request: &'a ContextRequest,
}

/// Like [`write()`], with records of another type.
pub(crate) async fn write_as<T: Serialize>(
    connection: &mut Connection,
    sql: &'static str,
    items: &[Item<'_, T>],
    done: &mut [Done],
) -> Result<(), Fault> {
    if items.is_empty() {
        return Ok(());
    }
    let records: Vec<Record<'_, T>> = items
        .iter()
        .enumerate()
        .map(|(ordinal, item)| Record {
            ordinal,
            id: Uuid::now_v7(),
            user_id: item.message.user_id().get(),
            request_id: item.message.request_id,
            stored_at: item.message.stored_at,
            request: &item.request,
        })
        .collect();
    let records = serde_json::to_string(&records)
        .map_err(|error| Fault { kind: FaultKind::Permanent, reason: error.to_string() })?;
    let answers = store::prepared(diesel::sql_query(sql).bind::<Text, _>(records)).load(connection).await?;
    mark_items(answers, items, done);
    Ok(())
}

/// Records the result of a statement for each item.
pub(crate) fn mark_items<T>(answers: Vec<Answer>, items: &[Item<'_, T>], done: &mut [Done]) {
    let indexes: Vec<usize> = items.iter().map(|item| item.index).collect();
    mark(answers, &indexes, done);
}

/// Records the result of a statement for the requests at these indexes of the batch.
pub(crate) fn mark(answers: Vec<Answer>, indexes: &[usize], done: &mut [Done]) {
    for answer in answers {
        let index = usize::try_from(answer.ordinal).ok().and_then(|ordinal| indexes.get(ordinal));
        if let Some(slot) = index.and_then(|&index| done.get_mut(index)) {
            *slot = answer.row_id.map_or(Done::Stale, Done::Applied);
        }
    }
}
