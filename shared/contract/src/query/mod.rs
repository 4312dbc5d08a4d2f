//! Queries to the memory and their answers, over NATS request/reply.
//!
//! A service publishes a query on `memory.ask.<noun>.<verb>.<service>`, with its token in the header
//! [`header::AUTHORIZATION`]. The query is answered for the user of the token. Long answers are split into pages; each
//! page contains the cursor of the next.
//!
//! Each file contains the queries of one noun, with their properties ([`QueryType`]) and their answers. The macro
//! `queries!` lists all queries.
//!
//! [`header::AUTHORIZATION`]: crate::header::AUTHORIZATION

mod agent;
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

use schemars::{JsonSchema, Schema, SchemaGenerator};
use serde::Serialize;
use serde::de::DeserializeOwned;

pub use agent::*;
pub use context::*;
pub use conversation::*;
pub use event::*;
pub use expert_conversation::*;
pub use graph::*;
pub use node::*;
pub use router::*;
pub use search::*;
pub use session::*;
pub use sync::*;
pub use task::*;

use crate::malformed::Malformed;
use crate::number::Bounded;
use crate::request::read;
use crate::value::Text;

/// The prefix of the subjects of queries.
pub const QUERY_ROOT: &str = "memory.ask";

/// The noun and the verb of the scope that a query with `reveal` needs in addition to its own. The right to read or
/// write does not include the right to decrypt.
pub const REVEAL: (&str, &str) = ("secret", "reveal");

/// The maximum size of a query, in bytes.
pub const QUERY_BYTES: usize = 192 * 1024;

/// The start of a page: an opaque string from the previous page.
pub type Cursor = Text<1, 4096>;

/// The maximum number of items of a page.
pub type Limit = Bounded<1, 200>;

fn default_limit() -> Limit {
    Limit::literal(50)
}

/// A type of query and its properties.
pub trait QueryType: Serialize + DeserializeOwned + JsonSchema + Send + 'static {
    /// Its answer.
    type Answer: Serialize + DeserializeOwned + JsonSchema + Send + 'static;

    /// Its subject, its description and its schemas.
    const KIND: &'static QueryKind;

    /// The session of the query; none if it is not limited to a session. A token for one session allows only queries of
    /// that session.
    fn session_id(&self) -> Option<&str>;
}

/// The properties of a type of query.
#[derive(Debug)]
pub struct QueryKind {
    /// The noun of its subject.
    pub noun: &'static str,
    /// The verb of its subject.
    pub verb: &'static str,
    /// What it returns.
    pub description: &'static str,
    /// Creates the JSON Schema of the query.
    pub query: fn(SchemaGenerator) -> Schema,
    /// Creates the JSON Schema of the answer.
    pub answer: fn(SchemaGenerator) -> Schema,
}

impl QueryKind {
    const fn new<Q: QueryType>(noun: &'static str, verb: &'static str, description: &'static str) -> Self {
        Self {
            noun,
            verb,
            description,
            query: SchemaGenerator::into_root_schema_for::<Q>,
            answer: SchemaGenerator::into_root_schema_for::<Q::Answer>,
        }
    }

    /// `noun.verb`.
    pub fn name(&self) -> String {
        format!("{}.{}", self.noun, self.verb)
    }

    /// The subject on which a service publishes it.
    pub fn subject(&self, service: &str) -> String {
        format!("{QUERY_ROOT}.{}.{}.{service}", self.noun, self.verb)
    }
}

/// The table of queries.
macro_rules! queries {
    ($($query:ident,)+) => {
        /// A decoded query of any type.
        #[derive(Clone, Debug, Serialize)]
        #[serde(untagged)]
        pub enum Query {
            $(
                #[doc = concat!("[`", stringify!($query), "`].")]
                $query($query),
            )+
        }

        impl Query {
            /// Decodes the body of the query with this noun and verb.
            ///
            /// # Errors
            /// [`Malformed`] names the field that is wrong, or `subject` if there is no such query.
            pub fn decode(noun: &str, verb: &str, body: &[u8]) -> Result<Self, Malformed> {
                if body.len() > QUERY_BYTES {
                    let problem = format!("has {} bytes, more than {QUERY_BYTES}", body.len());
                    return Err(Malformed::new("body", problem));
                }
                $(
                    if (noun, verb) == ($query::KIND.noun, $query::KIND.verb) {
                        return read(body).map(Self::$query);
                    }
                )+
                Err(Malformed::new("subject", format!("no query is named {noun}.{verb}")))
            }

            /// The properties of its type.
            pub fn kind(&self) -> &'static QueryKind {
                match self { $(Self::$query(_) => $query::KIND,)+ }
            }

            /// The session of the query; none if it is not limited to a session.
            pub fn session_id(&self) -> Option<&str> {
                match self { $(Self::$query(query) => query.session_id(),)+ }
            }
        }

        /// Every type of query.
        pub static QUERIES: &[&QueryKind] = &[$($query::KIND,)+];
    };
}

queries! {
    SessionList,
    ContextList,
    ContextGet,
    ConversationRead,
    AgentContextList,
    RouterAnalytics,
    GraphWalk,
    NodeList,
    NodeDossier,
    AgentList,
    TaskList,
    ExpertConversationRead,
    SearchSimilar,
    EventList,
    SyncStatusRead,
    SyncHistory,
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn no_two_queries_have_the_same_subject() {
        let names: HashSet<String> = QUERIES.iter().map(|kind| kind.name()).collect();
        assert_eq!(names.len(), QUERIES.len());
    }

    #[test]
    fn a_query_is_decoded_as_the_type_of_its_subject() {
        let query = Query::decode("context", "get", br#"{"session_id":"s","context_key":"k"}"#).unwrap();
        assert!(matches!(query, Query::ContextGet(_)));
        assert_eq!((query.kind().name().as_str(), query.session_id()), ("context.get", Some("s")));
        let unknown = Query::decode("context", "burn", b"{}").unwrap_err();
        assert_eq!(unknown.to_string(), "subject: no query is named context.burn");
    }
}
