use chrono::{DateTime, Utc};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::{Cursor, Limit, QueryKind, QueryType, default_limit};
use crate::conversation::MessageRole;
use crate::json::Json;
use crate::value::SessionId;

/// Reads a conversation and a page of its messages, the oldest first.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ConversationRead {
    /// The conversation.
    pub conversation_id: SessionId,
    /// Whether encrypted values are decrypted; otherwise a marker takes their place.
    #[serde(default)]
    pub reveal: bool,
    /// The start of the page: `next_cursor` of the previous page.
    #[serde(default)]
    pub cursor: Option<Cursor>,
    /// The maximum number of messages.
    #[serde(default = "default_limit")]
    pub limit: Limit,
}

impl QueryType for ConversationRead {
    type Answer = ConversationPage;

    const KIND: &'static QueryKind = &QueryKind::new::<Self>(
        "conversation",
        "read",
        "A conversation with its messages, the oldest first.",
    );

    fn session_id(&self) -> Option<&str> {
        None
    }
}

/// A message.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct MessageInfo {
    /// Its id.
    pub message_id: Uuid,
    /// The author.
    pub role: MessageRole,
    /// Its text.
    pub content: String,
    /// Whether `content` is stored encrypted.
    pub sensitive: bool,
    /// When it was sent.
    pub sent_at: DateTime<Utc>,
}

/// A conversation and a page of its messages.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct ConversationPage {
    /// Its summary.
    pub summary: Option<String>,
    /// Its metadata.
    pub metadata: Json,
    /// Whether `summary` and `metadata` are stored encrypted.
    pub sensitive: bool,
    /// The messages.
    pub messages: Vec<MessageInfo>,
    /// The cursor of the next page; absent on the last one.
    pub next_cursor: Option<String>,
}
