//! What names a key, and what it has beside its value.

use std::cmp::Ordering;

use chrono::{DateTime, Utc};
use contract::{AccessLevel, ContextType, MemoryTier};
use serde::{Deserialize, Serialize};

/// A key, as it is the same in every session.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Key {
    /// A context of the session.
    Context(String),
    /// A memory of an agent.
    Agent {
        /// The agent.
        agent: String,
        /// The tier.
        tier: MemoryTier,
        /// The key.
        name: String,
    },
}

impl Key {
    /// The context key.
    pub fn name(&self) -> &str {
        match self {
            Self::Context(name) | Self::Agent { name, .. } => name,
        }
    }

    fn sort_key(&self) -> (&str, &str, &str) {
        match self {
            Self::Context(name) => ("", "", name),
            Self::Agent { agent, tier, name } => (agent, tier.as_str(), name),
        }
    }
}

impl PartialOrd for Key {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Key {
    fn cmp(&self, other: &Self) -> Ordering {
        self.sort_key().cmp(&other.sort_key())
    }
}

/// What a key has beside its value.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attributes {
    /// The kind of a context; a memory of an agent has none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub context_type: Option<ContextType>,
    /// Where it may be used. For a memory of an agent the tier decides instead.
    pub access_level: AccessLevel,
    /// The priority.
    pub priority: i32,
    /// When it expires.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires_at: Option<DateTime<Utc>>,
    /// Whether it is kept when the retention period of the session ends.
    #[serde(default)]
    pub is_persistent: bool,
    /// Whether a memory of an agent may be promoted to a wider tier.
    #[serde(default)]
    pub is_shareable: bool,
    /// Whether the value is stored encrypted only.
    #[serde(default)]
    pub sensitive: bool,
}

impl Default for Attributes {
    fn default() -> Self {
        Self {
            context_type: Some(ContextType::Conversation),
            access_level: AccessLevel::Private,
            priority: 1,
            expires_at: None,
            is_persistent: false,
            is_shareable: false,
            sensitive: false,
        }
    }
}

/// The wider the level, the greater.
pub(crate) fn strictness(level: AccessLevel) -> u8 {
    match level {
        AccessLevel::Private => 0,
        AccessLevel::Shared => 1,
        AccessLevel::Public => 2,
    }
}
