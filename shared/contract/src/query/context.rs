use chrono::{DateTime, Utc};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{Cursor, Limit, QueryKind, QueryType, default_limit};
use crate::context::{AccessLevel, ContextType};
use crate::json::Json;
use crate::value::{Name, SessionId};

/// Lists the contexts of a session, ordered by key.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ContextList {
    /// The session.
    pub session_id: SessionId,
    /// Only contexts of this type.
    #[serde(default)]
    pub context_type: Option<ContextType>,
    /// Only contexts of this access level.
    #[serde(default)]
    pub access_level: Option<AccessLevel>,
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

impl QueryType for ContextList {
    type Answer = ContextPage;

    const KIND: &'static QueryKind =
        &QueryKind::new::<Self>("context", "list", "The contexts of a session, ordered by key.");

    fn session_id(&self) -> Option<&str> {
        Some(self.session_id.as_str())
    }
}

/// Reads one context.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ContextGet {
    /// The session.
    pub session_id: SessionId,
    /// Its key.
    pub context_key: Name,
    /// Whether an encrypted value is decrypted; otherwise a marker takes its place.
    #[serde(default)]
    pub reveal: bool,
}

impl QueryType for ContextGet {
    type Answer = ContextAnswer;

    const KIND: &'static QueryKind = &QueryKind::new::<Self>("context", "get", "One context of a session.");

    fn session_id(&self) -> Option<&str> {
        Some(self.session_id.as_str())
    }
}

/// A context.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct ContextInfo {
    /// Its key.
    pub context_key: String,
    /// Its value.
    pub context_value: Json,
    /// What kind of information it holds.
    pub context_type: ContextType,
    /// How widely it may be shared.
    pub access_level: AccessLevel,
    /// Its priority.
    pub priority: i32,
    /// Its version.
    pub version: i64,
    /// When it expires.
    pub expires_at: Option<DateTime<Utc>>,
    /// Whether it is kept beyond the retention of its session.
    pub is_persistent: bool,
    /// Whether its value is stored encrypted.
    pub sensitive: bool,
    /// When this version was stored.
    pub updated_at: DateTime<Utc>,
}

/// A page of contexts.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct ContextPage {
    /// The contexts.
    pub contexts: Vec<ContextInfo>,
    /// The cursor of the next page; absent on the last one.
    pub next_cursor: Option<String>,
}

/// The answer to `context.get`.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct ContextAnswer {
    /// The context.
    pub context: ContextInfo,
}
