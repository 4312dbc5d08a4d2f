use chrono::{DateTime, Utc};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::agent::OLD_VERSION;
use crate::facts::{Prerequisite, RequestFacts};
use crate::number::{Priority, Version};
use crate::redaction::SecretFields;
use crate::value::{Json, Name, SessionId};

/// What a context holds. The column `simple_chat_context.context_type` of the reference document.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum ContextType {
    /// Something said.
    #[default]
    Conversation,
    /// Something the user likes.
    Preference,
    /// Where a task stands.
    State,
}

impl ContextType {
    /// The label of the PostgreSQL enumeration `context_type`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Conversation => "conversation",
            Self::Preference => "preference",
            Self::State => "state",
        }
    }
}

/// How far a context may travel between services. It never leaves its user.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum AccessLevel {
    /// Stays in its session.
    #[default]
    Private,
    /// May be synchronised into other sessions of the user.
    Shared,
    /// May be read by every service that acts for the user.
    Public,
}

impl AccessLevel {
    /// The label of the PostgreSQL enumeration `access_level`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Private => "private",
            Self::Shared => "shared",
            Self::Public => "public",
        }
    }
}

/// Stores one context of a session. It takes effect if its version is higher than what is stored or removed
/// under the same key; an older or equal version arriving late changes nothing and is no error.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ContextPut {
    /// A session that is open or has been.
    pub session_id: SessionId,
    /// Unique in the session.
    pub context_key: Name,
    /// The context itself.
    pub context_value: Json,
    /// What it holds.
    #[serde(default)]
    pub context_type: ContextType,
    /// How far it may travel.
    #[serde(default)]
    pub access_level: AccessLevel,
    /// How much it matters.
    #[serde(default = "one")]
    pub priority: Priority,
    /// Higher than that of every earlier put or remove of the key.
    pub version: Version,
    /// When it stops being valid. Absent: never.
    #[serde(default, deserialize_with = "crate::value::time")]
    pub expires_at: Option<DateTime<Utc>>,
    /// Whether it outlives the session's retention.
    #[serde(default)]
    pub is_persistent: bool,
    /// Whether `context_value` is stored encrypted only, and stands in no event.
    #[serde(default)]
    pub sensitive: bool,
}

fn one() -> Priority {
    Priority::ONE
}

impl Priority {
    const ONE: Self = Self::literal(1);
}

/// Removes one context of a session. The value is gone; the version is remembered, so that an older put
/// arriving late does not bring it back.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ContextRemove {
    /// A session that is open or has been.
    pub session_id: SessionId,
    /// The key to remove.
    pub context_key: Name,
    /// Higher than that of every earlier put or remove of the key.
    pub version: Version,
}

impl RequestFacts for ContextPut {
    fn session_id(&self) -> Option<&SessionId> {
        Some(&self.session_id)
    }

    fn prerequisite(&self) -> Prerequisite<'_> {
        Prerequisite::Session(&self.session_id)
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

impl RequestFacts for ContextRemove {
    fn session_id(&self) -> Option<&SessionId> {
        Some(&self.session_id)
    }

    fn prerequisite(&self) -> Prerequisite<'_> {
        Prerequisite::Session(&self.session_id)
    }

    fn unchanged_reason(&self) -> &'static str {
        OLD_VERSION
    }
}
