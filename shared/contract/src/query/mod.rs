//! Queries to the memory and their answers, over request/reply.
//!
//! A service asks on `memory.ask.<noun>.<verb>.<service>`, with its token in the header [`header::AUTHORIZATION`]. The answer is
//! about the user of the token. A page has a bounded number of items and says where the next one begins.
//!
//! [`header::AUTHORIZATION`]: crate::header::AUTHORIZATION

mod conversation;
mod event;
mod graph;
mod memory;
mod router;
mod search;

use schemars::{Schema, SchemaGenerator};
use serde::Serialize;

pub use conversation::{ConversationPage, ConversationRead, MessageInfo};
pub use event::{EventList, EventPage};
pub use graph::{GraphAnswer, GraphNode, GraphRelation, GraphWalk};
pub use memory::{
    AgentContextInfo, AgentContextList, AgentContextPage, ContextAnswer, ContextGet, ContextInfo,
    ContextList, ContextPage, SessionInfo, SessionList, SessionPage,
};
pub use router::{AnalyticsRow, Dimension, RouterAnalytics, RouterAnswer};
pub use search::{ScoreParts, SearchAnswer, SearchHit, SearchMode, SearchSimilar};

use crate::malformed::Malformed;
use crate::number::Bounded;
use crate::request::read;
use crate::value::Text;

/// The beginning of the subjects of queries.
pub const QUERY_ROOT: &str = "memory.ask";

/// The noun and the verb of the scope that a query with `reveal` needs beside its own: whoever may write or read may not
/// therefore decrypt.
pub const REVEAL: (&str, &str) = ("secret", "reveal");

/// The largest query, in bytes.
pub const QUERY_BYTES: usize = 192 * 1024;

/// Where the page after another one begins, as that one said.
pub type Cursor = Text<1, 4096>;

/// How many items a page has at most.
pub type Limit = Bounded<1, 200>;

impl Limit {
    const USUAL: Self = Self::literal(50);
}

fn usual() -> Limit {
    Limit::USUAL
}

/// One kind of query.
#[derive(Debug)]
pub struct QueryKind {
    /// The noun of its subject.
    pub noun: &'static str,
    /// The verb of its subject.
    pub verb: &'static str,
    /// What it asks.
    pub description: &'static str,
    /// Makes the JSON Schema of the query.
    pub query: fn(SchemaGenerator) -> Schema,
    /// Makes the JSON Schema of the answer.
    pub answer: fn(SchemaGenerator) -> Schema,
}

impl QueryKind {
    /// `noun.verb`.
    pub fn name(&self) -> String {
        format!("{}.{}", self.noun, self.verb)
    }

    /// The subject on which a service asks it.
    pub fn subject(&self, service: &str) -> String {
        format!("{QUERY_ROOT}.{}.{}.{service}", self.noun, self.verb)
    }
}

/// The one table of queries.
macro_rules! queries {
    ($($variant:ident: $noun:literal $verb:literal $description:literal => $answer:ident,)+) => {
        /// A query that could be read.
        #[derive(Clone, Debug, Serialize)]
        #[serde(untagged)]
        pub enum Query {
            $(
                #[doc = $description]
                $variant($variant),
            )+
        }

        impl Query {
            /// Reads the body of a query of this noun and verb.
            ///
            /// # Errors
            /// [`Malformed`] names the field that cannot be read, or `subject` when there is no such query.
            pub fn decode(noun: &str, verb: &str, body: &[u8]) -> Result<Self, Malformed> {
                if body.len() > QUERY_BYTES {
                    let problem = format!("has {} bytes, more than {QUERY_BYTES}", body.len());
                    return Err(Malformed::new("body", problem));
                }
                match (noun, verb) {
                    $(($noun, $verb) => read(body).map(Self::$variant),)+
                    (noun, verb) => Err(Malformed::new("subject", format!("no query is named {noun}.{verb}"))),
                }
            }

            /// What kind of query this is.
            pub fn kind(&self) -> &'static QueryKind {
                match self { $(Self::$variant(_) => &kinds::$variant,)+ }
            }
        }

        #[allow(non_upper_case_globals)]
        mod kinds {
            use super::QueryKind;
            $(
                pub static $variant: QueryKind = QueryKind {
                    noun: $noun,
                    verb: $verb,
                    description: $description,
                    query: schemars::SchemaGenerator::into_root_schema_for::<super::$variant>,
                    answer: schemars::SchemaGenerator::into_root_schema_for::<super::$answer>,
                };
            )+
        }

        /// Every query.
        pub static QUERIES: &[&QueryKind] = &[$(&kinds::$variant,)+];
    };
}

queries! {
    SessionList: "session" "list" "The sessions of the user, the latest first, with how many contexts each has." => SessionPage,
    ContextList: "context" "list" "The contexts of a session, by their keys." => ContextPage,
    ContextGet: "context" "get" "One context of a session." => ContextAnswer,
    ConversationRead: "conversation" "read" "A conversation with its messages, the oldest first." => ConversationPage,
    AgentContextList: "agent-context" "list" "What agents remember in one tier." => AgentContextPage,
    RouterAnalytics: "router" "analytics" "What is learnt from routing decisions over a time." => RouterAnswer,
    GraphWalk: "graph" "walk" "The knowledge around a node, to a depth." => GraphAnswer,
    SearchSimilar: "search" "similar" "Memories that are like a text or a vector, the most alike first." => SearchAnswer,
    EventList: "event" "list" "The events of a session after a number." => EventPage,
}

impl Query {
    /// The session that it is about, if it is about one: a token for one session answers nothing else.
    pub fn session_id(&self) -> Option<&str> {
        match self {
            Self::ContextList(list) => Some(list.session_id.as_str()),
            Self::ContextGet(get) => Some(get.session_id.as_str()),
            Self::AgentContextList(list) => list.session_id.as_ref().map(crate::SessionId::as_str),
            Self::EventList(list) => list.session_id.as_ref().map(crate::SessionId::as_str),
            Self::SearchSimilar(search) => search.session_id.as_ref().map(crate::SessionId::as_str),
            Self::SessionList(_)
            | Self::ConversationRead(_)
            | Self::RouterAnalytics(_)
            | Self::GraphWalk(_) => None,
        }
    }
}
