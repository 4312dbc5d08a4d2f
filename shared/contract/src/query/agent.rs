use chrono::{DateTime, Utc};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{Cursor, Limit, QueryKind, QueryType, default_limit};
use crate::agent::MemoryTier;
use crate::json::Json;
use crate::value::{Name, SessionId};

/// Lists the contexts of agents in one tier, ordered by session, agent and key.
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
    /// Only contexts whose key starts with this prefix.
    #[serde(default)]
    pub key_prefix: Option<Name>,
    /// Whether expired contexts are included.
    #[serde(default)]
    pub include_expired: bool,
    /// Whether encrypted values are decrypted; otherwise a marker takes their place.
    #[serde(default)]
    pub reveal: bool,
    /// The start of the page: `next_cursor` of the previous page.
    #[serde(default)]
    pub cursor: Option<Cursor>,
    /// The maximum number of contexts.
    #[serde(default = "default_limit")]
    pub limit: Limit,
}

impl QueryType for AgentContextList {
    type Answer = AgentContextPage;

    const KIND: &'static QueryKind =
        &QueryKind::new::<Self>("agent-context", "list", "The contexts of agents in one tier.");

    fn session_id(&self) -> Option<&str> {
        self.session_id.as_ref().map(SessionId::as_str)
    }
}

/// A context of an agent.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct AgentContextInfo {
    /// The session the agent works in.
    pub session_id: String,
    /// The agent.
    pub agent_id: String,
    /// The key.
    pub context_key: String,
    /// The value.
    pub context_value: Json,
    /// Whether it may be promoted to a wider tier.
    pub is_shareable: bool,
    /// Its version.
    pub version: i64,
    /// When it expires.
    pub expires_at: Option<DateTime<Utc>>,
    /// Whether its value is stored encrypted.
    pub sensitive: bool,
    /// When this version was stored.
    pub updated_at: DateTime<Utc>,
}

/// A page of contexts of agents.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct AgentContextPage {
    /// The contexts.
    pub contexts: Vec<AgentContextInfo>,
    /// The cursor of the next page; absent on the last one.
    pub next_cursor: Option<String>,
}
