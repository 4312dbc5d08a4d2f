//! The worker's SQL: one statement per table of a batch, and one more each time a key is repeated.

mod account;
mod agent_context;
mod change;
mod context;
mod conversation;
mod record;
mod secret;
mod session;
mod table;

use std::collections::HashMap;
use std::hash::Hash;

use ::store::{Connection, Fault};
use change::TABLES;
use contract::ContextRequest as Request;
use keys::DataKeys;
use runtime::Message;
use table::{Change, Table, Writer};
use uuid::Uuid;

/// The result of a statement for one request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Done {
    /// It was applied to the row with this primary key. The nil UUID stands for the row of a user.
    Applied(Uuid),
    /// A newer row exists.
    Stale,
    /// A row that it refers to does not exist.
    Missing,
}

/// A request and its index in the batch.
#[derive(Clone, Copy)]
pub(crate) struct Item<'a, T> {
    pub(crate) index: usize,
    pub(crate) message: &'a Message<Request>,
    pub(crate) request: T,
}

/// Writes a batch and returns the result of each request, in order. `keys` holds the data keys of the users whose
/// secrets are in the batch.
///
/// # Errors
/// A [`Fault`] of the database: the caller must roll the transaction back.
pub async fn write(
    connection: &mut Connection,
    batch: &[&Message<Request>],
    keys: &DataKeys,
) -> Result<Vec<Done>, Fault> {
    let changes: Vec<Change> = batch.iter().map(|message| Change::of(&message.request)).collect();
    let mut done = vec![Done::Missing; batch.len()];
    for table in TABLES {
        let items: Vec<Item<'_, &Change>> = batch
            .iter()
            .zip(&changes)
            .enumerate()
            .filter(|(_, (_, change))| std::ptr::eq(change.table, table))
            .map(|(index, (&message, request))| Item { index, message, request })
            .collect();
        if !items.is_empty() {
            write_table(connection, table, items, &mut done).await?;
        }
    }
    secret::write(connection, batch, &changes, &done, keys).await?;
    Ok(done)
}

async fn write_table(
    connection: &mut Connection,
    table: &Table,
    items: Vec<Item<'_, &Change>>,
    done: &mut [Done],
) -> Result<(), Fault> {
    match table.writer {
        Writer::Records { put, remove } => {
            for round in rounds(items, |item| (item.message.user_id(), item.request.key.as_str())) {
                let (removals, puts): (Vec<_>, Vec<_>) =
                    round.into_iter().partition(|item| item.request.removes && put != remove);
                record::write(connection, put, &puts, done).await?;
                record::write(connection, remove, &removals, done).await?;
            }
            Ok(())
        }
        Writer::Contexts => context::write(connection, items, done).await,
        Writer::Conversations => conversation::write(connection, items, done).await,
        Writer::Messages => conversation::write_messages(connection, items, done).await,
        Writer::AgentContexts => agent_context::write(connection, items, done).await,
    }
}

/// Splits items into rounds without repeated keys, so that one statement can write a round. The items of a key keep
/// their order.
pub(crate) fn rounds<T, K: Eq + Hash>(items: Vec<T>, key: impl Fn(&T) -> K) -> Vec<Vec<T>> {
    let mut seen: HashMap<K, usize> = HashMap::with_capacity(items.len());
    let mut rounds: Vec<Vec<T>> = Vec::new();
    for item in items {
        let times = seen.entry(key(&item)).or_insert(0);
        if rounds.len() <= *times {
            rounds.push(Vec::new());
        }
        rounds[*times].push(item);
        *times += 1;
    }
    rounds
}

#[cfg(test)]
mod tests {
    use super::rounds;

    #[test]
    fn a_key_occurs_once_per_round_and_in_order() {
        let items = vec![('a', 1), ('b', 1), ('a', 2), ('a', 3), ('b', 2), ('c', 1)];
        let expected = vec![vec![('a', 1), ('b', 1), ('c', 1)], vec![('a', 2), ('b', 2)], vec![('a', 3)]];
        assert_eq!(rounds(items, |item| item.0), expected);
        assert!(rounds(Vec::<u8>::new(), |item| *item).is_empty());
    }
}
