//! What travels through memfleet: subjects, headers, requests and events.
//!
//! A publisher written in Rust depends on this crate alone. It holds types and their bounds, and neither
//! connects to a server nor touches a database. Every request is a JSON object published on
//!
//! ```text
//! memory.req.<service>.<noun>.<verb>.<user_id>
//! ```
//!
//! with its request id, a UUID, in the header [`header::MESSAGE_ID`]. [`Request::decode`] turns the noun, the
//! verb and the body into a typed request, or into a [`Malformed`] that names the offending field.
//!
//! The same types make the JSON Schemas of the AsyncAPI document (`nats/asyncapi.yaml`).

mod account;
mod agent;
mod confidential;
mod context;
mod conversation;
mod dead;
mod event;
pub mod header;
pub mod limit;
mod locate;
mod malformed;
mod number;
mod outcome;
mod query;
mod redacted;
mod request;
mod request_kind;
mod router;
mod session;
mod subject;
mod token;
mod value;
mod vector;
mod workers;

pub use account::{
    DevicePut, DeviceRemove, DeviceType, PasskeyPut, PasskeyRemove, ProfilePut, SecondFactorMethod,
    SecondFactorPut, SecondFactorRemove, SecurityLevel, SettingPut, SettingRemove, UserPut, UserRole,
    UserStatus,
};
pub use agent::{AgentContextPut, AgentContextRemove, MemoryTier};
pub use confidential::{Confidential, ENCRYPTED};
pub use context::{AccessLevel, ContextPut, ContextRemove, ContextType};
pub use conversation::{ConversationPut, FeedbackPut, FeedbackType, MessageAdd, MessageRole, SummaryPut};
pub use dead::{DeadClass, UnknownDeadClass};
pub use event::{Event, EventType, Performative};
pub use malformed::Malformed;
pub use number::{Bounded, Priority, Score, Version};
pub use outcome::{Outcome, OutcomeStatus};
pub use query::{
    AgentContextInfo, AgentContextList, AgentContextPage, AnalyticsRow, ContextAnswer, ContextGet,
    ContextInfo, ContextList, ContextPage, ConversationPage, ConversationRead, Cursor, Dimension, EventList,
    EventPage, GraphAnswer, GraphNode, GraphRelation, GraphWalk, Limit, MessageInfo, QUERIES, QUERY_BYTES,
    QUERY_ROOT, Query, QueryKind, REVEAL, RouterAnalytics, RouterAnswer, ScoreParts, SearchAnswer, SearchHit,
    SearchMode, SearchSimilar, SessionInfo, SessionList, SessionPage,
};
pub use redacted::Redacted;
pub use request::{ContextRequest, Request, RouterRequest, VectorRequest};
pub use request_kind::{REQUESTS, RequestKind};
pub use router::{DecisionLog, ToolPhase, ToolReport};
pub use session::{ChatMode, SessionClose, SessionOpen};
pub use subject::{DeadSubject, EventSubject, REQUEST_ROOT, RequestSubject, Service, SubjectError, UserId};
pub use token::{QueryError, QueryErrorCode, TOKEN_ISSUE, TokenAnswer, TokenAsk};
pub use value::{Json, JsonObject, List, Many, Name, Secret, SessionId, Text};
pub use vector::{Embedding, Memory, VECTOR_DIMENSIONS, Vector, VectorIndex, VectorRemove, VectorType};
pub use workers::{
    CONTEXT_WRITER, JOB_ROOT, MEMORY_READER, ROUTER_LOGGER, SCHEDULE_ROOT, TOKEN_ISSUER, VECTOR_INDEXER,
    WORKERS, WorkerInfo, role_of,
};
