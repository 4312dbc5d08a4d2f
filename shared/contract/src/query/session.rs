use chrono::{DateTime, Utc};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{Cursor, Limit, QueryKind, QueryType, default_limit};
use crate::session::ChatMode;

/// Lists the sessions of the user, the latest first.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct SessionList {
    /// Only open sessions (`true`) or only closed ones (`false`).
    #[serde(default)]
    pub active: Option<bool>,
    /// Only sessions in this chat mode.
    #[serde(default)]
    pub chat_mode: Option<ChatMode>,
    /// The start of the page: `next_cursor` of the previous page.
    #[serde(default)]
    pub cursor: Option<Cursor>,
    /// The maximum number of sessions.
    #[serde(default = "default_limit")]
    pub limit: Limit,
}

impl QueryType for SessionList {
    type Answer = SessionPage;

    const KIND: &'static QueryKind = &QueryKind::new::<Self>(
        "session",
        "list",
        "The sessions of the user, the latest first, each with its number of contexts.",
    );

    fn session_id(&self) -> Option<&str> {
        None
    }
}

/// A session.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct SessionInfo {
    /// The session.
    pub session_id: String,
    /// Its chat mode.
    pub chat_mode: ChatMode,
    /// Whether it is open.
    pub is_active: bool,
    /// The session it continues.
    pub parent_session_id: Option<String>,
    /// When it was first opened.
    pub created_at: DateTime<Utc>,
    /// When it was closed.
    pub ended_at: Option<DateTime<Utc>>,
    /// The number of its contexts, without removed and expired ones.
    pub context_count: i64,
}

/// A page of sessions.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct SessionPage {
    /// The sessions.
    pub sessions: Vec<SessionInfo>,
    /// The cursor of the next page; absent on the last one.
    pub next_cursor: Option<String>,
}
