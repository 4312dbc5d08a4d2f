use chrono::{DateTime, Utc};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::facts::RequestFacts;
use crate::json::Json;
use crate::malformed::Malformed;
use crate::number::{Version, check_version};
use crate::redaction::SecretFields;
use crate::value::{Name, SessionId};

/// The visibility of an agent's memory. The PostgreSQL enumeration `memorytier`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum MemoryTier {
    /// Visible to the agent itself.
    Private,
    /// Visible to the agents that work with it.
    Shared,
    /// Visible to all agents, as agreed knowledge.
    Consensus,
}

impl MemoryTier {
    /// The label in the PostgreSQL enumeration `memorytier`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Private => "private",
            Self::Shared => "shared",
            Self::Consensus => "consensus",
        }
    }
}

/// Stores a memory of an agent in a tier. Versions work as in [`ContextPut`](crate::ContextPut).
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct AgentContextPut {
    /// The agent.
    pub agent_id: SessionId,
    /// The session that the agent works in. It need not be a chat session.
    pub session_id: SessionId,
    /// The tier, which decides who may see it.
    pub memory_tier: MemoryTier,
    /// The key, unique for the agent, the session and the tier.
    pub context_key: Name,
    /// The value.
    pub context_value: Json,
    /// Whether it may be promoted to a wider tier.
    #[serde(default)]
    pub is_shareable: bool,
    /// When it expires. Absent: never.
    #[serde(default, deserialize_with = "crate::time::read")]
    pub expires_at: Option<DateTime<Utc>>,
    /// The version: a counter, or the time in milliseconds, and at most a day ahead of that time. It must be higher than
    /// that of every earlier put or remove of the key.
    pub version: Version,
    /// Whether `context_value` is stored encrypted only and omitted from events.
    #[serde(default)]
    pub sensitive: bool,
}

/// Removes a memory of an agent by its key from one tier.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct AgentContextRemove {
    /// The agent.
    pub agent_id: SessionId,
    /// The session that the agent works in.
    pub session_id: SessionId,
    /// The tier.
    pub memory_tier: MemoryTier,
    /// The key to remove.
    pub context_key: Name,
    /// The version: a counter, or the time in milliseconds, and at most a day ahead of that time. It must be higher than
    /// that of every earlier put or remove of the key.
    pub version: Version,
}

/// The reason in the outcome of a put or remove with an old version.
pub(crate) const OLD_VERSION: &str = "this version or a newer one is already stored";

impl RequestFacts for AgentContextPut {
    fn session_id(&self) -> Option<&SessionId> {
        Some(&self.session_id)
    }

    fn source_agent(&self) -> Option<&str> {
        Some(self.agent_id.as_str())
    }

    fn check(&self) -> Result<(), Malformed> {
        check_version(self.version)
    }

    fn unchanged_reason(&self) -> &'static str {
        OLD_VERSION
    }

    fn redact(&mut self, secrets: &mut SecretFields) {
        if self.sensitive {
            secrets.take("context_value", &mut self.context_value);
        }
    }
}

impl RequestFacts for AgentContextRemove {
    fn session_id(&self) -> Option<&SessionId> {
        Some(&self.session_id)
    }

    fn source_agent(&self) -> Option<&str> {
        Some(self.agent_id.as_str())
    }

    fn check(&self) -> Result<(), Malformed> {
        check_version(self.version)
    }

    fn unchanged_reason(&self) -> &'static str {
        OLD_VERSION
    }
}
