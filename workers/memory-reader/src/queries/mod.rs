//! The queries and their SQL, with one file per noun.

mod agent;
mod agent_context;
mod context;
mod conversation;
mod event;
mod expert_conversation;
mod graph;
mod node;
mod router;
mod search;
mod session;
mod sync;
mod task;

use contract::{Malformed, Query};

use crate::validated_query::{AnyQuery, ValidatedQuery};

/// Validates a query as the type that answers it. A query of the contract without such a type does not compile.
///
/// # Errors
/// [`Malformed`] names the field.
pub(crate) fn validate(query: Query) -> Result<Box<dyn AnyQuery>, Malformed> {
    match query {
        Query::SessionList(query) => any::<session::List>(query),
        Query::ContextList(query) => any::<context::List>(query),
        Query::ContextGet(query) => any::<context::Get>(query),
        Query::ConversationRead(query) => any::<conversation::Read>(query),
        Query::AgentContextList(query) => any::<agent_context::List>(query),
        Query::RouterAnalytics(query) => any::<router::Analytics>(query),
        Query::GraphWalk(query) => any::<graph::Walk>(query),
        Query::NodeList(query) => any::<node::List>(query),
        Query::NodeDossier(query) => any::<node::Dossier>(query),
        Query::AgentList(query) => any::<agent::List>(query),
        Query::TaskList(query) => any::<task::List>(query),
        Query::ExpertConversationRead(query) => any::<expert_conversation::Read>(query),
        Query::SearchSimilar(query) => any::<search::Search>(query),
        Query::EventList(query) => any::<event::List>(query),
        Query::SyncStatusRead(query) => any::<sync::Status>(query),
        Query::SyncHistory(query) => any::<sync::History>(query),
    }
}

fn any<V: ValidatedQuery>(query: V::Query) -> Result<Box<dyn AnyQuery>, Malformed> {
    Ok(Box::new(V::validate(query)?))
}
