use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::facts::{Prerequisite, RequestFacts};
use crate::value::{JsonObject, SessionId};

/// Which service leads a session. The column `chat_mode_sessions.chat_mode` of the reference document.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum ChatMode {
    /// One assistant.
    Simple,
    /// A router that picks tools and models.
    SmartRouter,
    /// Several agents that build consensus.
    ExpertGroup,
    /// An assistant that asks rather than answers.
    Socratic,
}

impl ChatMode {
    /// The label of the PostgreSQL enumeration `chat_mode`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Simple => "simple",
            Self::SmartRouter => "smart-router",
            Self::ExpertGroup => "expert-group",
            Self::Socratic => "socratic",
        }
    }
}

/// Opens a session, or opens it again: configuration and metadata are replaced and its end is forgotten.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct SessionOpen {
    /// Unique among the sessions of its user.
    pub session_id: SessionId,
    /// Which service leads it.
    pub chat_mode: ChatMode,
    /// Settings of the session, such as the model.
    #[serde(default)]
    pub configuration: JsonObject,
    /// The session of the same user that this one continues. It need not be known.
    #[serde(default)]
    pub parent_session_id: Option<SessionId>,
    /// Anything else worth keeping.
    #[serde(default)]
    pub session_metadata: JsonObject,
}

/// Ends a session. What it holds stays, and what is still under way for it is still taken.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct SessionClose {
    /// A session that has been opened.
    pub session_id: SessionId,
}

impl RequestFacts for SessionOpen {
    fn session_id(&self) -> Option<&SessionId> {
        Some(&self.session_id)
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
