use chrono::{DateTime, Utc};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::facts::{Prerequisite, RequestFacts};
use crate::json::JsonObject;
use crate::limit;
use crate::number::Bounded;
use crate::redaction::SecretFields;
use crate::value::{List, Name, SessionId, Text};

/// Stores the description of a conversation. Messages may arrive before it.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ConversationPut {
    /// The conversation id, unique for the user.
    pub conversation_id: SessionId,
    /// A summary.
    #[serde(default)]
    pub summary: Option<Text<0, { limit::TEXT_CHARS }>>,
    /// Additional data.
    #[serde(default)]
    pub metadata: JsonObject,
    /// Whether `summary` and `metadata` are stored encrypted only and omitted from events.
    #[serde(default)]
    pub sensitive: bool,
}

/// The author of a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum MessageRole {
    /// The user.
    User,
    /// The assistant.
    Assistant,
    /// The system prompt.
    System,
    /// A tool that was called.
    Tool,
}

impl MessageRole {
    /// The label in the PostgreSQL enumeration `message_role`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::User => "user",
            Self::Assistant => "assistant",
            Self::System => "system",
            Self::Tool => "tool",
        }
    }
}

/// Adds a message to a conversation, which is created with its first message. Messages are immutable.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct MessageAdd {
    /// The message id, unique for the user.
    pub message_id: Uuid,
    /// The conversation.
    pub conversation_id: SessionId,
    /// The author.
    pub role: MessageRole,
    /// The text.
    pub content: Text<0, { limit::TEXT_CHARS }>,
    /// When it was sent. Absent, or later than the time at which JetStream stored the request: that time. Messages of one
    /// time are ordered as they were stored.
    #[serde(default, deserialize_with = "crate::time::read")]
    pub sent_at: Option<DateTime<Utc>>,
    /// Whether `content` is stored encrypted only and omitted from events.
    #[serde(default)]
    pub sensitive: bool,
}

/// Stores the summary of a session, replacing an earlier one.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct SummaryPut {
    /// A session that is or was open.
    pub session_id: SessionId,
    /// The summary.
    pub summary: Text<1, { limit::TEXT_CHARS }>,
    /// The main topics.
    #[serde(default)]
    pub key_topics: List<Name, 64>,
    /// Whether `summary` and `key_topics` are stored encrypted only and omitted from events.
    #[serde(default)]
    pub sensitive: bool,
}

/// The kind of feedback.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum FeedbackType {
    /// A rating, such as thumbs up or stars.
    Rating,
    /// The correct answer.
    Correction,
    /// A report of harmful or wrong content.
    Report,
}

impl FeedbackType {
    /// The label in the PostgreSQL enumeration `feedback_type`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Rating => "rating",
            Self::Correction => "correction",
            Self::Report => "report",
        }
    }
}

/// Gives feedback on a message, replacing earlier feedback of the same type.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct FeedbackPut {
    /// A message of the same user.
    pub message_id: Uuid,
    /// The kind of feedback.
    pub feedback_type: FeedbackType,
    /// The rating, from -5 (bad) to 5 (good).
    #[serde(default)]
    pub rating: Option<Bounded<-5, 5>>,
    /// A comment.
    #[serde(default)]
    pub comment: Option<Text<1, 8192>>,
    /// Whether `comment` is stored encrypted only and omitted from events.
    #[serde(default)]
    pub sensitive: bool,
}

impl RequestFacts for ConversationPut {
    /// The session id of the events of a conversation is its conversation id.
    fn event_session(&self) -> &str {
        self.conversation_id.as_str()
    }

    fn redact(&mut self, secrets: &mut SecretFields) {
        if self.sensitive {
            secrets.take_some("summary", &mut self.summary);
            secrets.take("metadata", &mut self.metadata);
        }
    }
}

impl RequestFacts for MessageAdd {
    /// The session id of the events of a conversation is its conversation id.
    fn event_session(&self) -> &str {
        self.conversation_id.as_str()
    }

    fn unchanged_reason(&self) -> &'static str {
        "a message with this message_id already exists"
    }

    fn redact(&mut self, secrets: &mut SecretFields) {
        if self.sensitive {
            secrets.take("content", &mut self.content);
        }
    }
}

impl RequestFacts for SummaryPut {
    fn session_id(&self) -> Option<&SessionId> {
        Some(&self.session_id)
    }

    fn prerequisite(&self) -> Prerequisite<'_> {
        Prerequisite::Session(&self.session_id)
    }

    fn redact(&mut self, secrets: &mut SecretFields) {
        if self.sensitive {
            secrets.take("summary", &mut self.summary);
            secrets.take("key_topics", &mut self.key_topics);
        }
    }
}

impl RequestFacts for FeedbackPut {
    fn prerequisite(&self) -> Prerequisite<'_> {
        Prerequisite::Message(self.message_id)
    }

    fn redact(&mut self, secrets: &mut SecretFields) {
        if self.sensitive {
            secrets.take_some("comment", &mut self.comment);
        }
    }
}
