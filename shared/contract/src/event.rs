use std::fmt;

use chrono::{DateTime, Utc};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::facts;
use crate::performative::Performative;
use crate::request::EventType;
use crate::subject::UserId;
use crate::value::Json;

/// What has happened, published on `memory.event.<noun>.<verb>.<user_id>` after the transaction that made it
/// happen has committed. Delivered at least once: `event_id` tells repeats apart.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Event {
    /// The row of `blackboard_events`.
    pub event_id: Uuid,
    /// Grows strictly within a session, with gaps.
    pub event_sequence: i64,
    /// What happened.
    pub event_type: EventType,
    /// What it means between agents.
    pub performative: Performative,
    /// The agent or service that made it happen.
    pub source_agent_id: String,
    /// The agent it is meant for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target_agent_id: Option<String>,
    /// Whose memory changed.
    pub user_id: UserId,
    /// The session, or `@account` outside of sessions.
    pub session_id: String,
    /// The event that caused it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub parent_event_id: Option<Uuid>,
    /// A Lamport clock: later than that of every event before it in its session, and than that of its parent.
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
