use std::fmt;

use chrono::{DateTime, Utc};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::facts;
use crate::json::Json;
use crate::performative::Performative;
use crate::request::EventType;
use crate::subject::UserId;

/// An event, published on `memory.event.<noun>.<verb>.<user_id>` after its transaction has committed. Delivered at
/// least once; repeats have the same `event_id`.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Event {
    /// The id of the row in `blackboard_events`.
    pub event_id: Uuid,
    /// Strictly increasing within a session, with gaps.
    pub event_sequence: i64,
    /// The type.
    pub event_type: EventType,
    /// The performative: the communicative act between agents.
    pub performative: Performative,
    /// The agent or service that caused the event.
    pub source_agent_id: String,
    /// The agent or tool that the event is addressed to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target_agent_id: Option<String>,
    /// The user whose memory changed.
    pub user_id: UserId,
    /// The session, or `@account` outside of sessions.
    pub session_id: String,
    /// The event that caused it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub parent_event_id: Option<Uuid>,
    /// The Lamport timestamp: greater than that of every earlier event of its session, and than that of its parent.
    pub logical_timestamp: i64,
    /// When the transaction began.
    pub created_at: DateTime<Utc>,
    /// The request, without secrets.
    pub payload: Json,
}

impl Event {
    /// The session id of events that belong to no session. No request can name it.
    pub const ACCOUNT_SESSION: &'static str = facts::ACCOUNT_SESSION;
}

/// The subject of an event, `memory.event.<noun>.<verb>.<user_id>`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EventSubject {
    /// The type of the event.
    pub event_type: EventType,
    /// The user whose memory changed.
    pub user_id: UserId,
}

impl fmt::Display for EventSubject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "memory.event.{}.{}", self.event_type, self.user_id)
    }
}
