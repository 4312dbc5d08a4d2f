//! The worker's SQL: one statement for each table of a batch, and one more for each time a key comes again.

mod account;
mod agent_context;
mod context;
mod conversation;
mod record;
mod secret;
mod session;

use std::collections::HashMap;
use std::hash::Hash;

use ::store::{Connection, Fault};
use contract::ContextRequest as Request;
use keys::DataKeys;
use runtime::Message;
use uuid::Uuid;

use crate::Redacted;

/// What a statement did for one request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Done {
    /// It took effect, on the row of this primary key: the nil UUID for the row of a user.
    Applied(Uuid),
    /// Something newer was there.
    Stale,
    /// What it needs is not there.
    Missing,
}

/// A request and its place in the batch.
#[derive(Clone, Copy)]
pub(crate) struct Item<'a, T> {
    pub(crate) index: usize,
    pub(crate) message: &'a Message<Redacted>,
    pub(crate) request: T,
}

/// The requests of a batch by table.
#[derive(Default)]
struct Tables<'a> {
    accounts: [Vec<Item<'a, account::Change<'a>>>; account::TABLES.len()],
    sessions: Vec<Item<'a, session::Change<'a>>>,
    contexts: Vec<Item<'a, context::Change<'a>>>,
    summaries: Vec<Item<'a, &'a contract::SummaryPut>>,
    conversations: Vec<Item<'a, &'a contract::ConversationPut>>,
    messages: Vec<Item<'a, &'a contract::MessageAdd>>,
    feedback: Vec<Item<'a, &'a contract::FeedbackPut>>,
    agent_contexts: Vec<Item<'a, agent_context::Change<'a>>>,
}

/// Writes a batch, with the data keys of the users whose secrets are in it, and says what became of each request, in order.
///
/// # Errors
/// A [`Fault`] of the database; then nothing of the batch may be committed.
pub async fn write(
    connection: &mut Connection,
    batch: &[&Message<Redacted>],
    keys: &DataKeys,
) -> Result<Vec<Done>, Fault> {
    let tables = sort(batch);
    let mut done = vec![Done::Missing; batch.len()];
    for (table, changes) in account::TABLES.iter().zip(tables.accounts) {
        account::write(connection, table, changes, &mut done).await?;
    }
    session::write(connection, tables.sessions, &mut done).await?;
    context::write(connection, tables.contexts, &mut done).await?;
    session::write_summaries(connection, tables.summaries, &mut done).await?;
    conversation::write(connection, tables.conversations, &mut done).await?;
    conversation::write_messages(connection, tables.messages, &mut done).await?;
    conversation::write_feedback(connection, tables.feedback, &mut done).await?;
    agent_context::write(connection, tables.agent_contexts, &mut done).await?;
    secret::write(connection, batch, &done, keys).await?;
    Ok(done)
}

fn sort<'a>(batch: &[&'a Message<Redacted>]) -> Tables<'a> {
    let mut tables = Tables::default();
    for (index, &message) in batch.iter().enumerate() {
        macro_rules! item {
            ($request:expr) => {
                Item { index, message, request: $request }
            };
        }
        match &message.request.request {
            Request::SessionOpen(open) => tables.sessions.push(item!(session::Change::Open(open))),
            Request::SessionClose(close) => tables.sessions.push(item!(session::Change::Close(close))),
            Request::ContextPut(put) => tables.contexts.push(item!(context::Change::Put(put))),
            Request::ContextRemove(remove) => tables.contexts.push(item!(context::Change::Remove(remove))),
            Request::SummaryPut(put) => tables.summaries.push(item!(put)),
            Request::ConversationPut(put) => tables.conversations.push(item!(put)),
            Request::MessageAdd(add) => tables.messages.push(item!(add)),
            Request::FeedbackPut(put) => tables.feedback.push(item!(put)),
            Request::AgentContextPut(put) => {
                tables.agent_contexts.push(item!(agent_context::Change::Put(put)));
            }
            Request::AgentContextRemove(remove) => {
                tables.agent_contexts.push(item!(agent_context::Change::Remove(remove)));
            }
            Request::UserPut(_)
            | Request::ProfilePut(_)
            | Request::SettingPut(_)
            | Request::SettingRemove(_)
            | Request::DevicePut(_)
            | Request::DeviceRemove(_)
            | Request::SecondFactorPut(_)
            | Request::SecondFactorRemove(_)
            | Request::PasskeyPut(_)
            | Request::PasskeyRemove(_) => {
                if let Some((table, change)) = account::Change::new(&message.request.request) {
                    tables.accounts[table].push(item!(change));
                }
            }
        }
    }
    tables
}

/// Splits items into rounds in which no key comes twice, so that one statement can write a round, and keeps the
/// order in which a key's items came.
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
    fn a_key_comes_once_in_a_round_and_in_order() {
        let items = vec![('a', 1), ('b', 1), ('a', 2), ('a', 3), ('b', 2), ('c', 1)];
        let expected = vec![vec![('a', 1), ('b', 1), ('c', 1)], vec![('a', 2), ('b', 2)], vec![('a', 3)]];
        assert_eq!(rounds(items, |item| item.0), expected);
        assert!(rounds(Vec::<u8>::new(), |item| *item).is_empty());
    }
}
