//! What a session holds of a key.

use std::cmp::Ordering;

use chrono::{DateTime, Utc};
use contract::{AccessLevel, ContextType, MemoryTier};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::json::{Json, present};
use crate::state::KeyState;

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

/// What a session holds of a key: the row, and what syncs keep beside it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cell {
    /// The value; `None` once it is removed.
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "present")]
    pub value: Option<Json>,
    /// What it has beside.
    pub attributes: Attributes,
    /// How often the session itself has put or removed the key. A sync does not count.
    pub writes: u64,
    /// When the request of the last of these was stored; 1970 if there is none.
    pub written_at: DateTime<Utc>,
    /// What the last sync left: the ancestor of the next merge. `None` before the first.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub state: Option<KeyState>,
}

impl Cell {
    /// The first put of a key.
    pub fn new(value: Json, attributes: Attributes, at: DateTime<Utc>) -> Self {
        Self { value: Some(value), attributes, writes: 1, written_at: at, state: None }
    }

    /// The session puts a value, or removes it.
    pub fn write(&mut self, value: Option<Json>, attributes: Attributes, at: DateTime<Utc>) {
        (self.value, self.attributes, self.written_at) = (value, attributes, at);
        self.writes += 1;
    }

    /// The SHA-256 of all that the cell holds, in hexadecimal: whether it has been touched since.
    ///
    /// # Errors
    /// Never: a cell is always JSON.
    pub fn digest(&self) -> Result<String, serde_json::Error> {
        Ok(data_encoding::HEXLOWER.encode(&Sha256::digest(serde_json::to_vec(self)?)))
    }
}
