//! The SQL of each query, and what it finds.

/// What of a `page`, rows of a table as they are, has room in an answer: the first row, and what follows while the bytes of its
/// values, and of the secrets that shall be revealed in them, are within a bound. `found` counts all of the page. Values are
/// written out for their sizes one after the other, and kept only where they are told.
macro_rules! within_page {
    ($columns:expr, $size:literal, $table:literal, $order:literal, $reveal:literal, $bytes:literal) => {
        concat!(
            ", sized AS (SELECT p.*, count(*) OVER () AS found, row_number() OVER in_order AS place, sum(",
            $size,
            " + CASE WHEN ",
            $reveal,
            " AND p.is_sensitive THEN (SELECT coalesce(sum(octet_length(e.ciphertext)), 0) FROM encrypted_fields e
                WHERE e.user_id = $1 AND e.table_name = '",
            $table,
            "' AND e.row_id = p.id) ELSE 0 END) OVER in_order AS bytes FROM page p WINDOW in_order AS (ORDER BY ",
            $order,
            ")) SELECT ",
            $columns,
            ", found FROM sized WHERE place = 1 OR bytes <= ",
            $bytes,
            " ORDER BY place"
        )
    };
}

mod agent;
mod context;
mod conversation;
mod event;
mod graph;
mod router;
pub(crate) mod search;
mod session;

use bytes::Bytes;
use contract::{
    AgentContextPage, ContextAnswer, ContextPage, ConversationPage, EventPage, GraphAnswer, Json, Malformed,
    Query, QueryErrorCode, RouterAnswer, SearchAnswer, SessionPage, UserId,
};
use keys::Encrypted;
use runtime::query::QueryRefusal;
use secrecy::{ExposeSecret, SecretString};
use serde::Serialize;
use serde::de::DeserializeOwned;
use store::security::Plans;
use store::{Connection, Fault, FaultKind};
use uuid::Uuid;

/// A query whose page and bounds have been checked.
#[derive(Debug)]
pub(crate) enum Wanted {
    Sessions(session::List),
    Contexts(context::List),
    Context(contract::ContextGet),
    Conversation(conversation::Read),
    AgentContexts(agent::List),
    Router(router::Analytics),
    Graph(contract::GraphWalk),
    Events(contract::EventList),
    /// A search that does not know yet where to look.
    Ground(Box<search::Search>),
    Search(Box<search::Search>),
}

impl Wanted {
    /// Checks what the types of the query do not.
    ///
    /// # Errors
    /// [`Malformed`] names the field.
    pub(crate) fn new(query: Query, service: &str) -> Result<Self, Malformed> {
        Ok(match query {
            Query::SessionList(list) => Self::Sessions(session::List::new(list)?),
            Query::ContextList(list) => Self::Contexts(context::List::new(list)?),
            Query::ContextGet(get) => Self::Context(get),
            Query::ConversationRead(read) => Self::Conversation(conversation::Read::new(read)?),
            Query::AgentContextList(list) => Self::AgentContexts(agent::List::new(list)?),
            Query::RouterAnalytics(analytics) => Self::Router(router::Analytics::new(analytics)?),
            Query::GraphWalk(walk) => Self::Graph(walk),
            Query::EventList(list) => Self::Events(list),
            Query::SearchSimilar(asked) => Self::Ground(Box::new(search::Search::new(asked, service)?)),
        })
    }

    /// The table that is looked into first.
    fn table(&self) -> &'static str {
        match self {
            Self::Sessions(_) => session::TABLE,
            Self::Contexts(_) | Self::Context(_) => context::TABLE,
            Self::Conversation(_) => conversation::HISTORY,
            Self::AgentContexts(_) => agent::TABLE,
            Self::Router(_) => router::TABLE,
            Self::Graph(_) => graph::NODES,
            Self::Events(_) => event::TABLE,
            Self::Ground(_) | Self::Search(_) => search::TABLE,
        }
    }

    /// How its statements are planned.
    pub(crate) fn plans(&self) -> Plans {
        match self {
            Self::Ground(_) => Plans::Generic,
            Self::Search(search) => search.plans(),
            Self::Sessions(_)
            | Self::Contexts(_)
            | Self::Context(_)
            | Self::Conversation(_)
            | Self::AgentContexts(_)
            | Self::Router(_)
            | Self::Graph(_)
            | Self::Events(_) => Plans::AsItSeesFit,
        }
    }

    /// The session of a query that may reveal something, if it is about one.
    pub(crate) fn session_id(&self) -> Option<&str> {
        match self {
            Self::Contexts(list) => Some(list.asked.session_id.as_str()),
            Self::Context(get) => Some(get.session_id.as_str()),
            Self::AgentContexts(list) => list.asked.session_id.as_ref().map(contract::SessionId::as_str),
            Self::Conversation(_)
            | Self::Sessions(_)
            | Self::Router(_)
            | Self::Graph(_)
            | Self::Events(_)
            | Self::Ground(_)
            | Self::Search(_) => None,
        }
    }

    /// Whether secrets are decrypted.
    pub(crate) fn reveals(&self) -> bool {
        match self {
            Self::Contexts(list) => list.asked.reveal,
            Self::Context(get) => get.reveal,
            Self::Conversation(read) => read.asked.reveal,
            Self::AgentContexts(list) => list.asked.reveal,
            Self::Sessions(_)
            | Self::Router(_)
            | Self::Graph(_)
            | Self::Events(_)
            | Self::Ground(_)
            | Self::Search(_) => false,
        }
    }
}

/// What a query found, with the keys of the rows that may hold secrets.
#[derive(Debug)]
pub(crate) enum Answer {
    Sessions(SessionPage),
    Contexts(ContextPage, Vec<Uuid>),
    Context(ContextAnswer),
    /// The messages name their rows themselves.
    Conversation(ConversationPage, Uuid),
    AgentContexts(AgentContextPage, Vec<Uuid>),
    Router(RouterAnswer),
    Graph(GraphAnswer),
    Events(EventPage),
    /// No answer yet: where to look.
    Ground(search::Ground),
    Search(SearchAnswer),
    /// There is nothing of that name: which field names it.
    Nothing(&'static str),
}

/// An answer and the secrets that belong into it.
#[derive(Debug)]
pub(crate) struct Found {
    answer: Answer,
    encrypted: Vec<Encrypted>,
}

impl From<Answer> for Found {
    fn from(answer: Answer) -> Self {
        Self { answer, encrypted: Vec::new() }
    }
}

/// Answers a query in a transaction that has the user's context.
///
/// # Errors
/// A [`Fault`] of the database.
pub(crate) async fn find(connection: &mut Connection, user: UserId, wanted: &Wanted) -> Result<Found, Fault> {
    match wanted {
        Wanted::Sessions(list) => Ok(session::list(connection, user, list).await?.into()),
        Wanted::Contexts(list) => context::list(connection, user, list).await,
        Wanted::Context(get) => context::get(connection, user, get).await,
        Wanted::Conversation(read) => conversation::read(connection, user, read).await,
        Wanted::AgentContexts(list) => agent::list(connection, user, list).await,
        Wanted::Router(analytics) => Ok(router::analyse(connection, user, analytics).await?.into()),
        Wanted::Graph(walk) => Ok(graph::walk(connection, user, walk).await?.into()),
        Wanted::Events(list) => Ok(event::list(connection, user, list).await?.into()),
        Wanted::Ground(search) => Ok(search::ground(connection, user, search).await?.into()),
        Wanted::Search(search) => Ok(search::similar(connection, user, search).await?.into()),
    }
}

impl Found {
    /// With the ciphertexts of these rows of a table.
    async fn with_secrets(
        mut self,
        connection: &mut Connection,
        table: &str,
        rows: &[Uuid],
    ) -> Result<Self, Fault> {
        if !rows.is_empty() {
            self.encrypted.extend(keys::load_fields(connection, table, rows).await?);
        }
        Ok(self)
    }

    /// Where a search looks, if that is what was asked.
    pub(crate) fn into_ground(self) -> Option<search::Ground> {
        match self.answer {
            Answer::Ground(ground) => Some(ground),
            Answer::Sessions(_)
            | Answer::Contexts(..)
            | Answer::Context(_)
            | Answer::Conversation(..)
            | Answer::AgentContexts(..)
            | Answer::Router(_)
            | Answer::Graph(_)
            | Answer::Events(_)
            | Answer::Search(_)
            | Answer::Nothing(_) => None,
        }
    }

    pub(crate) fn take_encrypted(&mut self) -> Vec<Encrypted> {
        std::mem::take(&mut self.encrypted)
    }

    /// Puts a secret in the place of its marker.
    pub(crate) fn put_back(&mut self, field: &Encrypted, plain: &SecretString) {
        let text = plain.expose_secret();
        // What was JSON when it was encrypted is so still.
        let json = |value: &mut Json| {
            if let Ok(plain) = Json::new(text) {
                *value = plain;
            }
        };
        let place = |rows: &[Uuid]| rows.iter().position(|row| *row == field.row);
        match &mut self.answer {
            Answer::Contexts(page, rows) => {
                let found = place(rows).and_then(|index| page.contexts.get_mut(index));
                found.into_iter().for_each(|context| json(&mut context.context_value));
            }
            Answer::Context(answer) => json(&mut answer.context.context_value),
            Answer::AgentContexts(page, rows) => {
                let found = place(rows).and_then(|index| page.contexts.get_mut(index));
                found.into_iter().for_each(|context| json(&mut context.context_value));
            }
            Answer::Conversation(page, row) => match field.column.as_str() {
                "content" => {
                    if let Some(message) = page.messages.iter_mut().find(|one| one.message_id == field.row) {
                        text.clone_into(&mut message.content);
                    }
                }
                "summary" if *row == field.row => page.summary = Some(text.to_owned()),
                "metadata" if *row == field.row => json(&mut page.metadata),
                _ => {}
            },
            Answer::Sessions(_)
            | Answer::Router(_)
            | Answer::Graph(_)
            | Answer::Events(_)
            | Answer::Ground(_)
            | Answer::Search(_)
            | Answer::Nothing(_) => {}
        }
    }

    /// The tables that the answer is out of, each with how many of its rows are told of.
    pub(crate) fn reads(&self, wanted: &Wanted) -> Vec<(&'static str, usize)> {
        match &self.answer {
            Answer::Sessions(page) => vec![(session::TABLE, page.sessions.len())],
            Answer::Contexts(page, _) => vec![(context::TABLE, page.contexts.len())],
            Answer::Context(_) => vec![(context::TABLE, 1)],
            Answer::Conversation(page, _) => {
                vec![(conversation::HISTORY, 1), (conversation::MESSAGES, page.messages.len())]
            }
            Answer::AgentContexts(page, _) => vec![(agent::TABLE, page.contexts.len())],
            Answer::Router(answer) => vec![(router::TABLE, answer.rows.len())],
            Answer::Graph(answer) => {
                vec![(graph::NODES, answer.nodes.len()), (graph::RELATIONS, answer.relations.len())]
            }
            Answer::Events(page) => vec![(event::TABLE, page.events.len())],
            Answer::Search(answer) => vec![(search::TABLE, answer.hits.len())],
            Answer::Ground(_) => Vec::new(),
            // That there is none is told as well.
            Answer::Nothing(_) => vec![(wanted.table(), 0)],
        }
    }

    /// What is sent to the asker.
    ///
    /// # Errors
    /// [`QueryRefusal`] where there is nothing of that name.
    pub(crate) fn into_body(self) -> Result<Bytes, QueryRefusal> {
        fn body(answer: &impl Serialize) -> Result<Bytes, QueryRefusal> {
            let written = serde_json::to_vec(answer);
            written
                .map(Bytes::from)
                .map_err(|_| QueryRefusal::told(QueryErrorCode::Failed, "the answer cannot be written", None))
        }
        match &self.answer {
            Answer::Sessions(page) => body(page),
            Answer::Contexts(page, _) => body(page),
            Answer::Context(answer) => body(answer),
            Answer::Conversation(page, _) => body(page),
            Answer::AgentContexts(page, _) => body(page),
            Answer::Router(answer) => body(answer),
            Answer::Graph(answer) => body(answer),
            Answer::Events(page) => body(page),
            Answer::Search(answer) => body(answer),
            Answer::Ground(_) => {
                Err(QueryRefusal::told(QueryErrorCode::Failed, "the search was not finished", None))
            }
            Answer::Nothing(field) => {
                let message = format!("{field}: the user has none of this name");
                Err(QueryRefusal::told(QueryErrorCode::NotFound, &message, Some(field)))
            }
        }
    }
}

/// The value of an enumeration that the database tells by its label.
pub(crate) fn label<T: DeserializeOwned>(label: &str) -> Result<T, Fault> {
    serde_json::from_value(label.into())
        .map_err(|_| newer(format!("this program knows no {label:?}; it is too old")))
}

/// A JSON value out of the database.
pub(crate) fn json(text: String) -> Result<Json, Fault> {
    Json::new(text).map_err(newer)
}

fn newer(reason: String) -> Fault {
    Fault { kind: FaultKind::Permanent, reason }
}

/// The rows of what is stored encrypted, where it shall be told.
pub(crate) fn secret_rows(reveal: bool, rows: impl Iterator<Item = (bool, Uuid)>) -> Vec<Uuid> {
    if reveal { rows.filter_map(|(sensitive, row)| sensitive.then_some(row)).collect() } else { Vec::new() }
}

/// One more than a page has, to see whether there is another one.
pub(crate) fn one_more(limit: i64) -> i64 {
    limit + 1
}
