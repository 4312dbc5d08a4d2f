use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::facts::{Prerequisite, RequestFacts};
use crate::json::JsonObject;
use crate::malformed::Malformed;
use crate::value::SessionId;

/// The chat mode of a session: the service that leads it. The column `chat_mode_sessions.chat_mode`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum ChatMode {
    /// One assistant.
    Simple,
    /// A router that selects tools and models.
    SmartRouter,
    /// Several agents that build consensus.
    ExpertGroup,
    /// An assistant that asks questions instead of answering.
    Socratic,
}

impl ChatMode {
    /// The label in the PostgreSQL enumeration `chat_mode`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Simple => "simple",
            Self::SmartRouter => "smart-router",
            Self::ExpertGroup => "expert-group",
            Self::Socratic => "socratic",
        }
    }
}

/// Opens a session, or reopens it: configuration and metadata are replaced, and its end time is cleared.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct SessionOpen {
    /// The session id, unique for the user.
    pub session_id: SessionId,
    /// The chat mode.
    pub chat_mode: ChatMode,
    /// Settings of the session, such as the model.
    #[serde(default)]
    pub configuration: JsonObject,
    /// The session of the same user that this one continues, not itself. It need not exist.
    #[serde(default)]
    pub parent_session_id: Option<SessionId>,
    /// Additional data.
    #[serde(default)]
    pub session_metadata: JsonObject,
}

/// Closes a session. Its contents are kept, and requests for it that arrive later are still applied.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct SessionClose {
    /// A session that was opened.
    pub session_id: SessionId,
}

impl RequestFacts for SessionOpen {
    fn session_id(&self) -> Option<&SessionId> {
        Some(&self.session_id)
    }

    fn check(&self) -> Result<(), Malformed> {
        if self.parent_session_id.as_ref() == Some(&self.session_id) {
            return Err(Malformed::new("parent_session_id", "is the session itself; name another one"));
        }
        Ok(())
    }
}

impl RequestFacts for SessionClose {
    fn session_id(&self) -> Option<&SessionId> {
        Some(&self.session_id)
    }

    fn prerequisite(&self) -> Prerequisite<'_> {
        Prerequisite::Session(&self.session_id)
    }
}
