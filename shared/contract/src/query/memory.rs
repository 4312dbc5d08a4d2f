use chrono::{DateTime, Utc};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{Cursor, Limit, usual};
use crate::agent::MemoryTier;
use crate::context::{AccessLevel, ContextType};
use crate::session::ChatMode;
use crate::value::{Json, Name, SessionId};

/// Asks for the sessions of the user, the latest first.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct SessionList {
    /// Only those that are open, or only those that are not.
    #[serde(default)]
    pub active: Option<bool>,
    /// Only those of this mode.
    #[serde(default)]
    pub chat_mode: Option<ChatMode>,
    /// Where the page begins.
    #[serde(default)]
    pub cursor: Option<Cursor>,
    /// The most sessions.
    #[serde(default = "usual")]
    pub limit: Limit,
}

/// A session.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct SessionInfo {
    /// The session.
    pub session_id: String,
    /// Which service leads it.
    pub chat_mode: ChatMode,
    /// Whether it is open.
    pub is_active: bool,
    /// The session that it continues.
    pub parent_session_id: Option<String>,
    /// When it was opened first.
    pub created_at: DateTime<Utc>,
    /// When it was closed.
    pub ended_at: Option<DateTime<Utc>>,
    /// How many contexts it has that are not removed.
    pub context_count: i64,
}

/// A page of sessions.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct SessionPage {
    /// The sessions.
    pub sessions: Vec<SessionInfo>,
    /// Where the next page begins; absent on the last one.
    pub next_cursor: Option<String>,
}

/// Asks for the contexts of a session, by their keys.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ContextList {
    /// The session.
    pub session_id: SessionId,
    /// Only those of this type.
    #[serde(default)]
    pub context_type: Option<ContextType>,
    /// Only those of this level.
    #[serde(default)]
    pub access_level: Option<AccessLevel>,
    /// Only those whose key begins so.
    #[serde(default)]
    pub key_prefix: Option<Name>,
    /// Also those that have expired.
    #[serde(default)]
    pub include_expired: bool,
    /// Whether values that are stored encrypted are told; otherwise a marker stands for them.
    #[serde(default)]
    pub reveal: bool,
    /// Where the page begins.
    #[serde(default)]
    pub cursor: Option<Cursor>,
    /// The most contexts.
    #[serde(default = "usual")]
    pub limit: Limit,
}

/// Asks for one context.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ContextGet {
    /// The session.
    pub session_id: SessionId,
    /// Its key.
    pub context_key: Name,
    /// Whether a value that is stored encrypted is told.
    #[serde(default)]
    pub reveal: bool,
}

/// A context.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct ContextInfo {
    /// Its key.
    pub context_key: String,
    /// The context itself.
    pub context_value: Json,
    /// What it holds.
    pub context_type: ContextType,
    /// How far it may travel.
    pub access_level: AccessLevel,
    /// How much it matters.
    pub priority: i32,
    /// Its version.
    pub version: i64,
    /// When it stops being valid.
    pub expires_at: Option<DateTime<Utc>>,
    /// Whether it outlives the session's retention.
    pub is_persistent: bool,
    /// Whether its value is stored encrypted only.
    pub sensitive: bool,
    /// When this version was stored.
    pub updated_at: DateTime<Utc>,
}

/// A page of contexts.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct ContextPage {
    /// The contexts.
    pub contexts: Vec<ContextInfo>,
    /// Where the next page begins; absent on the last one.
    pub next_cursor: Option<String>,
}

/// A context.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct ContextAnswer {
    /// The context.
    pub context: ContextInfo,
}

/// Asks what agents remember in one tier, by session, agent and key.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct AgentContextList {
    /// The tier.
    pub memory_tier: MemoryTier,
    /// Only of this session.
    #[serde(default)]
    pub session_id: Option<SessionId>,
    /// Only of this agent.
    #[serde(default)]
    pub agent_id: Option<SessionId>,
    /// Only those whose key begins so.
    #[serde(default)]
    pub key_prefix: Option<Name>,
    /// Also those that have expired.
    #[serde(default)]
    pub include_expired: bool,
    /// Whether values that are stored encrypted are told; otherwise a marker stands for them.
    #[serde(default)]
    pub reveal: bool,
    /// Where the page begins.
    #[serde(default)]
    pub cursor: Option<Cursor>,
    /// The most contexts.
    #[serde(default = "usual")]
    pub limit: Limit,
}

/// What an agent remembers under one key.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct AgentContextInfo {
    /// The session it works in.
    pub session_id: String,
    /// The agent.
    pub agent_id: String,
    /// The key.
    pub context_key: String,
    /// What it remembers.
    pub context_value: Json,
    /// Whether it may be promoted to a wider tier.
    pub is_shareable: bool,
    /// Its version.
    pub version: i64,
    /// When it stops being valid.
    pub expires_at: Option<DateTime<Utc>>,
    /// Whether its value is stored encrypted only.
    pub sensitive: bool,
    /// When this version was stored.
    pub updated_at: DateTime<Utc>,
}

/// A page of what agents remember.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct AgentContextPage {
    /// What they remember.
    pub contexts: Vec<AgentContextInfo>,
    /// Where the next page begins; absent on the last one.
    pub next_cursor: Option<String>,
}
