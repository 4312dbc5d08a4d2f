//! The message contract of memfleet: subjects, headers, requests, queries and events.
//!
//! A publisher written in Rust needs only this crate. It contains types and their limits, and connects to no server and
//! no database. Every request is a JSON object published on
//!
//! ```text
//! memory.req.<service>.<noun>.<verb>.<user_id>
//! ```
//!
//! with its request id, a UUID, in the header [`header::REQUEST_ID`]. [`Request::decode`] decodes the noun, the verb
//! and the body into a typed request, or returns a [`Malformed`] that names the field at fault.
//!
//! The JSON Schemas of the AsyncAPI document (`nats/asyncapi.yaml`) are generated from the same types.

mod account;
mod agent;
mod agent_configuration;
mod anomaly;
#[cfg(feature = "asyncapi")]
pub mod asyncapi;
mod context;
mod conversation;
mod dead_letter;
mod event;
mod expert_conversation;
mod facts;
pub mod header;
mod json;
mod knowledge;
mod label;
pub mod limit;
mod locate;
mod malformed;
mod number;
mod outcome;
mod performative;
mod policy;
mod printable;
mod privacy;
mod query;
mod redacted;
mod redaction;
mod request;
mod router;
mod session;
mod subject;
mod suggest;
mod sync;
mod task;
mod tick;
mod time;
mod token;
mod url;
mod value;
mod vector;
mod workers;

pub use account::*;
pub use agent::*;
pub use agent_configuration::*;
pub use anomaly::*;
pub use context::*;
pub use conversation::*;
pub use dead_letter::{DeadLetterClass, DeadLetterSummary, UnknownDeadLetterClass};
pub use event::{Event, EventSubject};
pub use expert_conversation::*;
pub use facts::{Prerequisite, RequestFacts};
pub use json::{Json, JsonObject};
pub use knowledge::*;
pub use malformed::Malformed;
pub use number::{Bounded, Priority, Real, Score, Version};
pub use outcome::{Outcome, OutcomeStatus};
pub use performative::Performative;
pub use policy::*;
pub use printable::{printable, printable_json, printable_lines, printable_within};
pub use privacy::*;
pub use query::*;
pub use redacted::Redacted;
pub use redaction::{ENCRYPTED, SecretField, SecretFields};
pub use request::{
    ConsensusRequest, ContextRequest, EventType, REQUESTS, Request, RequestKind, RequestType,
    RetentionRequest, RouterRequest, StreamRequest, SyncRequest, VectorRequest,
};
pub use router::*;
pub use session::*;
pub use subject::{DeadLetterSubject, REQUEST_ROOT, RequestSubject, Service, SubjectError, UserId};
pub use suggest::nearest;
pub use sync::*;
pub use task::*;
pub use tick::{JOB_ROOT, JOBS_STREAM, Job, Tick, TickSubject, WAKES_STREAM, WOKEN_ROOT, has_ticks};
pub use time::bounded_time;
pub use token::{QueryError, QueryErrorCode, TOKEN_ISSUE, TokenAnswer, TokenQuery};
pub use url::{take_password_file, without_password};
pub use value::{List, Name, NonEmptyList, Secret, SessionId, Text};
pub use vector::*;
pub use workers::{
    CONSENSUS_BUILDER, CONTEXT_WRITER, MEMORY_READER, MEMORY_SYNC, RETENTION_CLEANER, ROUTER_LOGGER,
    SCHEDULE_ROOT, SCHEDULES, TOKEN_ISSUER, VECTOR_INDEXER, WAKE_ROOT, WAKES, WORKERS, WorkerInfo,
    wake_subject, woken_by, worker_role,
};
