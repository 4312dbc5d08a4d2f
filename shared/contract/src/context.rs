use chrono::{DateTime, Utc};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::agent::OLD_VERSION;
use crate::facts::{Prerequisite, RequestFacts};
use crate::json::Json;
use crate::malformed::Malformed;
use crate::number::{Priority, Version, check_version};
use crate::redaction::SecretFields;
use crate::value::{Name, SessionId};

/// The kind of context. The column `simple_chat_context.context_type`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum ContextType {
    /// Part of a conversation.
    #[default]
    Conversation,
    /// A preference of the user.
    Preference,
    /// The state of a task.
    State,
}

impl ContextType {
    /// The label in the PostgreSQL enumeration `context_type`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Conversation => "conversation",
            Self::Preference => "preference",
            Self::State => "state",
        }
    }
}

/// Where a context may be used. It is always limited to its user.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum AccessLevel {
    /// In its session only.
    #[default]
    Private,
    /// It may be copied to other sessions of the user.
    Shared,
    /// Every service that acts for the user may read it.
    Public,
}

impl AccessLevel {
    /// The label in the PostgreSQL enumeration `access_level`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Private => "private",
            Self::Shared => "shared",
            Self::Public => "public",
        }
    }
}

/// Stores a context of a session. It is applied if its version is higher than the stored or removed version of the same
/// key. An older or equal version changes nothing; that is not an error.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ContextPut {
    /// A session that is or was open.
    pub session_id: SessionId,
    /// The key, unique in the session.
    pub context_key: Name,
    /// The value.
    pub context_value: Json,
    /// The kind of context.
    #[serde(default)]
    pub context_type: ContextType,
    /// Where it may be used.
    #[serde(default)]
    pub access_level: AccessLevel,
    /// The priority, 0 to 100. Default: 1.
    #[serde(default = "one")]
    pub priority: Priority,
    /// The version: a counter, or the time in milliseconds, and at most a day ahead of that time. It must be higher than
    /// that of every earlier put or remove of the key.
    pub version: Version,
    /// When it expires. Absent: never.
    #[serde(default, deserialize_with = "crate::time::read")]
    pub expires_at: Option<DateTime<Utc>>,
    /// Whether it is kept when the retention period of the session ends.
    #[serde(default)]
    pub is_persistent: bool,
    /// Whether `context_value` is stored encrypted only and omitted from events.
    #[serde(default)]
    pub sensitive: bool,
}

fn one() -> Priority {
    Priority::ONE
}

impl Priority {
    const ONE: Self = Self::literal(1);
}

/// Removes a context of a session. The value is deleted; the version is kept, so that an older put that arrives late
/// does not restore it.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ContextRemove {
    /// A session that is or was open.
    pub session_id: SessionId,
    /// The key to remove.
    pub context_key: Name,
    /// The version: a counter, or the time in milliseconds, and at most a day ahead of that time. It must be higher than
    /// that of every earlier put or remove of the key.
    pub version: Version,
}

impl RequestFacts for ContextPut {
    fn session_id(&self) -> Option<&SessionId> {
        Some(&self.session_id)
    }

    fn prerequisite(&self) -> Prerequisite<'_> {
        Prerequisite::Session(&self.session_id)
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

impl RequestFacts for ContextRemove {
    fn session_id(&self) -> Option<&SessionId> {
        Some(&self.session_id)
    }

    fn prerequisite(&self) -> Prerequisite<'_> {
        Prerequisite::Session(&self.session_id)
    }

    fn check(&self) -> Result<(), Malformed> {
        check_version(self.version)
    }

    fn unchanged_reason(&self) -> &'static str {
        OLD_VERSION
    }
}
