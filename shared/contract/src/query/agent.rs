use chrono::{DateTime, Utc};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{Cursor, Limit, QueryKind, QueryType, default_limit};
use crate::agent::MemoryTier;
use crate::agent_configuration::{AgentStatus, ModelProvider};
use crate::json::Json;
use crate::value::{Name, SessionId, Text};

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

/// Lists the agents of the user, ordered by id.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct AgentList {
    /// Only agents of this type.
    #[serde(default)]
    pub agent_type: Option<Text<1, 50>>,
    /// Only active agents (`true`) or only retired ones (`false`).
    #[serde(default)]
    pub active: Option<bool>,
    /// The start of the page: `next_cursor` of the previous page.
    #[serde(default)]
    pub cursor: Option<Cursor>,
    /// The maximum number of agents.
    #[serde(default = "default_limit")]
    pub limit: Limit,
}

impl QueryType for AgentList {
    type Answer = AgentPage;

    const KIND: &'static QueryKind = &QueryKind::new::<Self>(
        "agent",
        "list",
        "The agents of the user, each with its configuration, its profile and its record.",
    );

    fn session_id(&self) -> Option<&str> {
        None
    }
}

/// An agent.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct AgentInfo {
    /// The agent.
    pub agent_id: String,
    /// Its type.
    pub agent_type: String,
    /// Its role.
    pub agent_role: String,
    /// Its model.
    pub assigned_llm: String,
    /// Who serves the model.
    pub model_provider: ModelProvider,
    /// The family of the model: agents of one family make the same mistakes.
    pub model_family: Option<String>,
    /// The number of its GPU.
    pub gpu_assignment: Option<i32>,
    /// Its system prompt.
    pub system_prompt: Option<String>,
    /// Its temperature.
    pub temperature: f64,
    /// What it must keep to.
    pub constraints: Json,
    /// What it can do.
    pub capabilities: Json,
    /// Whether it is active, not retired.
    pub is_active: bool,
    /// When it was configured first.
    pub created_at: DateTime<Utc>,
    /// When its configuration was last changed.
    pub updated_at: DateTime<Utc>,
    /// Its profile. Absent: it has none.
    pub profile: Option<AgentProfileInfo>,
    /// How often it was right, by kind of task: the kinds with the most answers.
    pub records: Vec<AgentRecordInfo>,
}

/// The profile of an agent.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct AgentProfileInfo {
    /// Its name for people.
    pub display_name: String,
    /// What it is.
    pub description: String,
    /// Its areas of expertise.
    pub expertise_areas: Json,
    /// Its status.
    pub current_status: AgentStatus,
    /// Figures about it.
    pub performance_metrics: Json,
}

/// How often an agent was right in one kind of task, as far as the estimate over all closed tasks knows.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct AgentRecordInfo {
    /// The kind of task.
    pub task_kind: String,
    /// Right answers. Parts of an answer count where the truth is known with a probability only.
    pub right: f64,
    /// Wrong answers.
    pub wrong: f64,
    /// When it was estimated.
    pub estimated_at: DateTime<Utc>,
}

/// A page of agents.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct AgentPage {
    /// The agents.
    pub agents: Vec<AgentInfo>,
    /// The cursor of the next page; absent on the last one.
    pub next_cursor: Option<String>,
}
