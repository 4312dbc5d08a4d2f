use chrono::{DateTime, Utc};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::facts::{Prerequisite, RequestFacts};
use crate::limit;
use crate::number::Bounded;
use crate::redaction::SecretFields;
use crate::value::{JsonObject, List, Name, SessionId, Text};

/// Describes a conversation. A message may come before it.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ConversationPut {
    /// Unique among the conversations of its user.
    pub conversation_id: SessionId,
    /// What it was about.
    #[serde(default)]
    pub summary: Option<Text<0, { limit::TEXT_CHARS }>>,
    /// Anything else worth keeping.
    #[serde(default)]
    pub metadata: JsonObject,
    /// Whether `summary` and `metadata` are stored encrypted only, and stand in no event.
    #[serde(default)]
    pub sensitive: bool,
}

/// Who speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum MessageRole {
    /// The person.
    User,
    /// The assistant.
    Assistant,
    /// The instructions.
    System,
    /// A tool that was called.
    Tool,
}

impl MessageRole {
    /// The label of the PostgreSQL enumeration `message_role`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::User => "user",
            Self::Assistant => "assistant",
            Self::System => "system",
            Self::Tool => "tool",
        }
    }
}

/// Adds a message to a conversation, which comes into being with its first one. A message never changes.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct MessageAdd {
    /// Unique among the messages of its user.
    pub message_id: Uuid,
    /// The conversation.
    pub conversation_id: SessionId,
    /// Who speaks.
    pub role: MessageRole,
    /// What is said.
    pub content: Text<0, { limit::TEXT_CHARS }>,
    /// When it was said. Absent: when the message was published.
    #[serde(default, deserialize_with = "crate::value::time")]
    pub sent_at: Option<DateTime<Utc>>,
    /// Whether `content` is stored encrypted only, and stands in no event.
    #[serde(default)]
    pub sensitive: bool,
}

/// Stores the summary of a session, replacing an earlier one.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct SummaryPut {
    /// A session that is open or has been.
    pub session_id: SessionId,
    /// The summary.
    pub summary: Text<1, { limit::TEXT_CHARS }>,
    /// What it was about.
    #[serde(default)]
    pub key_topics: List<Name, 64>,
    /// Whether `summary` and `key_topics` are stored encrypted only, and stand in no event.
    #[serde(default)]
    pub sensitive: bool,
}

/// What kind of feedback is given.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum FeedbackType {
    /// Thumbs up or down, or stars.
    Rating,
    /// What should have been said.
    Correction,
    /// Something harmful or wrong.
    Report,
}

impl FeedbackType {
    /// The label of the PostgreSQL enumeration `feedback_type`.
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
    /// What kind it is.
    pub feedback_type: FeedbackType,
    /// From -5 (bad) to 5 (good).
    #[serde(default)]
    pub rating: Option<Bounded<-5, 5>>,
    /// In words.
    #[serde(default)]
    pub comment: Option<Text<1, 8192>>,
    /// Whether `comment` is stored encrypted only, and stands in no event.
    #[serde(default)]
    pub sensitive: bool,
}

impl RequestFacts for ConversationPut {
    /// The events of a conversation are filed under its id.
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
    /// The events of a conversation are filed under its id.
    fn event_session(&self) -> &str {
        self.conversation_id.as_str()
    }

    fn unchanged_reason(&self) -> &'static str {
        "a message with this message_id is there"
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
