//! The rows of the main database: counted, and deleted in the order of the [`catalogue`].
//!
//! Each transaction deletes at most [`MOST`] rows of one table and stores how many that makes, so that an erasure that is interrupted goes on
//! where it was and its sums are right. No condition but the user's id decides what is deleted.

use std::collections::BTreeMap;

use contract::UserId;
use diesel::QueryableByName;
use diesel::sql_types::{Array, BigInt, Integer, Text, Uuid as SqlUuid};
use diesel_async::{AsyncConnection, RunQueryDsl};
use store::{Connection, Fault, FaultKind};
use trust::PrivateKey;
use uuid::Uuid;

use crate::catalogue::{self, CIRCLE, Entry, Erase, Owner};
use crate::error::PrivacyError;
use crate::fence::see_all;
use crate::request::{commit_step, refuse_without_fence};
use crate::step::{Claimed, Progress};

/// The most rows that a transaction deletes, but for the tables of a consensus, which are emptied at once.
pub const MOST: usize = 2_000;

#[derive(QueryableByName)]
struct Number {
    #[diesel(sql_type = BigInt)]
    number: i64,
}

/// Which rows of a table are of the user `$1`. None for a table whose rows are nobody's, or under a token.
pub(crate) fn condition(owner: Owner) -> Option<String> {
    match owner {
        Owner::Column(column) => Some(format!("t.{column} = $1")),
        Owner::Arrays(columns) => {
            let of: Vec<String> = columns.iter().map(|column| format!("t.{column} @> ARRAY[$1]")).collect();
            Some(of.join(" OR "))
        }
        Owner::Through { column, table } => {
            Some(format!("t.{column} IN (SELECT o.{column} FROM {table} o WHERE o.user_id = $1)"))
        }
        Owner::Token | Owner::Nobody(_) => None,
    }
}

/// The number of rows of a table that are of a user. 0 if its rows are nobody's or under a token. The transaction must
/// [`see_all`](crate::fence::see_all).
///
/// # Errors
/// A [`Fault`] of the database.
pub async fn count_of(connection: &mut Connection, entry: &Entry, user: UserId) -> Result<u64, Fault> {
    let Some(condition) = condition(entry.owner) else { return Ok(0) };
    let count = format!("SELECT count(*) AS number FROM {} t WHERE {condition}", entry.name());
    let counted: Number =
        diesel::sql_query(count).bind::<Integer, _>(user.get()).get_result(connection).await?;
    Ok(u64::try_from(counted.number).unwrap_or(0))
}

/// The numbers of rows of a user in all tables that the step `rows` empties, by [`Entry::label`].
///
/// # Errors
/// A [`Fault`] of the database.
pub async fn count(connection: &mut Connection, user: UserId) -> Result<BTreeMap<String, u64>, Fault> {
    connection
        .transaction(async |connection| {
            see_all(connection).await?;
            let mut counts = BTreeMap::new();
            for entry in catalogue::emptied() {
                counts.insert(entry.label(), count_of(connection, entry, user).await?);
            }
            Ok(counts)
        })
        .await
}

/// Deletes the rows of the person whose erasure this is, and checks that as many went as were counted and none is left. `key` signs the
/// statements of the events that may be missing from then on.
///
/// # Errors
/// [`PrivacyError::Left`] if the numbers of a table do not agree; otherwise an error of the database, after which it can be repeated.
pub async fn erase(
    connection: &mut Connection,
    key: &PrivateKey,
    claimed: &mut Claimed,
) -> Result<(), PrivacyError> {
    let mut emptied = catalogue::emptied();
    emptied
        .dedup_by_key(|entry| if entry.order() == Some(CIRCLE) { CIRCLE.to_string() } else { entry.name() });
    for entry in emptied {
        while erase_some(connection, key, claimed, entry).await? {}
    }
    check(connection, claimed).await
}

/// One transaction of an erasure. Says whether there may be more of the table.
async fn erase_some(
    connection: &mut Connection,
    key: &PrivateKey,
    claimed: &mut Claimed,
    entry: &Entry,
) -> Result<bool, PrivacyError> {
    let mut after = claimed.clone();
    let may_be_more = connection
        .transaction(async |connection| {
            see_all(connection).await?;
            refuse_without_fence(connection, &after).await?;
            let deleted = match entry.erase {
                Erase::Statement(_) => events(connection, key, &after).await?,
                Erase::Delete(CIRCLE) => circle(connection, after.user).await?,
                Erase::Delete(_) | Erase::RemoveFromArrays(_) => {
                    vec![(entry.label(), delete(connection, entry, after.user).await?)]
                }
                Erase::Rewrite | Erase::LastSteps | Erase::KeptUnderToken | Erase::Kept(_) => Vec::new(),
            };
            if deleted.iter().all(|(_, number)| *number == 0) {
                return Ok(false);
            }
            add(&mut after.progress, deleted);
            commit_step(connection, &mut after, None).await?;
            Ok::<bool, PrivacyError>(true)
        })
        .await?;
    *claimed = after;
    Ok(may_be_more)
}

fn add(progress: &mut Progress, deleted: Vec<(String, u64)>) {
    for (table, number) in deleted {
        *progress.deleted.entry(table).or_default() += number;
    }
}

/// Deletes rows of a table, or takes the user out of them.
async fn delete(connection: &mut Connection, entry: &Entry, user: UserId) -> Result<u64, Fault> {
    let Some(condition) = condition(entry.owner) else { return Ok(0) };
    let table = entry.name();
    let work = match entry.owner {
        Owner::Arrays(columns) => {
            let set: Vec<String> =
                columns.iter().map(|column| format!("{column} = array_remove({column}, $1)")).collect();
            format!("UPDATE {table} SET {}", set.join(", "))
        }
        Owner::Column(_) | Owner::Through { .. } | Owner::Token | Owner::Nobody(_) => {
            format!("DELETE FROM {table}")
        }
    };
    let work =
        format!("{work} WHERE ctid = ANY (ARRAY(SELECT t.ctid FROM {table} t WHERE {condition} LIMIT $2))");
    let query = diesel::sql_query(work).bind::<Integer, _>(user.get()).bind::<BigInt, _>(most());
    Ok(u64::try_from(query.execute(connection).await?).unwrap_or(u64::MAX))
}

fn most() -> i64 {
    i64::try_from(MOST).unwrap_or(i64::MAX)
}

/// Deletes events, and states which: without that, they would be missing from the trail.
async fn events(
    connection: &mut Connection,
    key: &PrivateKey,
    claimed: &Claimed,
) -> Result<Vec<(String, u64)>, PrivacyError> {
    const DELETE: &str = "DELETE FROM public.blackboard_events WHERE user_id = $1 AND id = ANY ($2)";
    let user = claimed.user.get();
    let leaves = audit::leaves_of_events(connection, user, MOST).await?;
    let ids: Vec<Uuid> = leaves.iter().map(|leaf| leaf.id).collect();
    if ids.is_empty() {
        return Ok(Vec::new());
    }
    audit::state_erasure(connection, key, claimed.id, &leaves).await?;
    let query = diesel::sql_query(DELETE).bind::<Integer, _>(user).bind::<Array<SqlUuid>, _>(&ids);
    let deleted = query.execute(connection).await?;
    if deleted != ids.len() {
        let reason = format!("{} events were stated, and {deleted} deleted", ids.len());
        return Err(Fault { kind: FaultKind::Transient, reason }.into());
    }
    Ok(vec![("blackboard_events".to_owned(), u64::try_from(deleted).unwrap_or(u64::MAX))])
}

/// Empties the tables that refer to each other in a circle: their keys are checked at the end of the statement.
async fn circle(connection: &mut Connection, user: UserId) -> Result<Vec<(String, u64)>, Fault> {
    #[derive(QueryableByName)]
    struct Row {
        #[diesel(sql_type = Text)]
        name: String,
        #[diesel(sql_type = BigInt)]
        number: i64,
    }
    let entries: Vec<&Entry> =
        catalogue::emptied().into_iter().filter(|entry| entry.order() == Some(CIRCLE)).collect();
    let deletes: Vec<String> = entries
        .iter()
        .map(|entry| {
            format!("{0} AS (DELETE FROM {1} WHERE user_id = $1 RETURNING 1)", entry.table, entry.name())
        })
        .collect();
    let counts: Vec<String> = entries
        .iter()
        .map(|entry| format!("SELECT '{0}' AS name, count(*) AS number FROM {0}", entry.table))
        .collect();
    let delete = format!("WITH {} {}", deletes.join(", "), counts.join(" UNION ALL "));
    let rows: Vec<Row> = diesel::sql_query(delete).bind::<Integer, _>(user.get()).load(connection).await?;
    Ok(rows.into_iter().map(|row| (row.name, u64::try_from(row.number).unwrap_or(0))).collect())
}

/// Compares what was counted, what was deleted and what is left. If they do not agree, what is there now counts from then on: the next attempt
/// deletes what came past the fence, and does not stop at what went past it.
async fn check(connection: &mut Connection, claimed: &mut Claimed) -> Result<(), PrivacyError> {
    let left = count(connection, claimed.user).await?;
    let Progress { before, deleted, .. } = &mut claimed.progress;
    let mut differs = None;
    for entry in catalogue::emptied() {
        let table = entry.label();
        let of = |counts: &BTreeMap<String, u64>| counts.get(&table).copied().unwrap_or(0);
        let (counted, gone, left) = (of(before), of(deleted), of(&left));
        let agrees = gone == counted || entry.forgets();
        before.insert(table.clone(), if agrees { counted.max(gone) } else { gone + left });
        if left > 0 || !agrees {
            differs = differs.or(Some(PrivacyError::Left { table, before: counted, deleted: gone, left }));
        }
    }
    let Some(differs) = differs else { return Ok(()) };
    commit_step(connection, claimed, None).await?;
    Err(differs)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_id_is_the_only_condition_and_is_bound() {
        for entry in catalogue::emptied() {
            let condition = condition(entry.owner).unwrap_or_default();
            assert!(condition.contains("$1") && !condition.contains("LIKE"), "{}: {condition}", entry.name());
        }
    }

    #[test]
    fn what_is_deleted_adds_up() {
        let mut progress = Progress::default();
        add(&mut progress, vec![("a".to_owned(), 2), ("b".to_owned(), 0)]);
        add(&mut progress, vec![("a".to_owned(), 3)]);
        assert_eq!((progress.deleted["a"], progress.deleted["b"]), (5, 0));
    }
}
