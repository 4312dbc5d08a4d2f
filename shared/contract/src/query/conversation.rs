use chrono::{DateTime, Utc};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::{Cursor, Limit, usual};
use crate::conversation::MessageRole;
use crate::value::{Json, SessionId};

/// Asks for a conversation with its messages, the oldest first.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ConversationRead {
    /// The conversation.
    pub conversation_id: SessionId,
    /// Whether what is stored encrypted is told; otherwise a marker stands for it.
    #[serde(default)]
    pub reveal: bool,
    /// Where the page begins.
    #[serde(default)]
    pub cursor: Option<Cursor>,
    /// The most messages.
    #[serde(default = "usual")]
    pub limit: Limit,
}

/// A message.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct MessageInfo {
    /// The message.
    pub message_id: Uuid,
    /// Who speaks.
    pub role: MessageRole,
    /// What is said.
    pub content: String,
    /// Whether `content` is stored encrypted only.
    pub sensitive: bool,
    /// When it was said.
    pub sent_at: DateTime<Utc>,
}

/// A conversation and a page of its messages.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct ConversationPage {
    /// What it was about.
    pub summary: Option<String>,
    /// Whatever else was kept.
    pub metadata: Json,
    /// Whether `summary` and `metadata` are stored encrypted only.
    pub sensitive: bool,
    /// The messages.
    pub messages: Vec<MessageInfo>,
    /// Where the next page begins; absent on the last one.
    pub next_cursor: Option<String>,
}
