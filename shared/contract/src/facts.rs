//! What a request says about itself beside its fields. Each type states its facts in its own file.

use std::fmt;

use uuid::Uuid;

use crate::performative::Performative;
use crate::redaction::SecretFields;
use crate::subject::UserId;
use crate::value::SessionId;

/// The session id of events that belong to no session. No request can name it.
pub(crate) const ACCOUNT_SESSION: &str = "@account";

/// The facts of a request that depend on its body. Its subject, stream, worker and event are in its line of the table in
/// `request.rs`.
pub trait RequestFacts {
    /// The session that it belongs to; none for what belongs to the user as such. A token for one session allows only its own.
    fn session_id(&self) -> Option<&SessionId> {
        None
    }

    /// The session that its event is filed under.
    fn event_session(&self) -> &str {
        self.session_id().map_or(ACCOUNT_SESSION, SessionId::as_str)
    }

    /// The agent that acts, if it is not the publishing service itself.
    fn source_agent(&self) -> Option<&str> {
        None
    }

    /// The agent or tool that its event is meant for.
    fn target_agent(&self) -> Option<&str> {
        None
    }

    /// What its event means between agents.
    fn performative(&self) -> Performative {
        Performative::Inform
    }

    /// What must be there before it can take effect.
    fn prerequisite(&self) -> Prerequisite<'_> {
        Prerequisite::User
    }

    /// Why it changed nothing, when it did not.
    fn unchanged_reason(&self) -> &'static str {
        "a newer record is there"
    }

    /// Takes out what is stored encrypted only, and leaves markers.
    fn redact(&mut self, secrets: &mut SecretFields) {
        let _ = secrets;
    }

    /// What its event carries instead of the request, as JSON; none if it carries the request.
    fn event_payload(&self) -> Option<String> {
        None
    }
}

/// Something that a request needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Prerequisite<'a> {
    /// Its user.
    User,
    /// A session that is open or has been.
    Session(&'a SessionId),
    /// A message of a conversation.
    Message(Uuid),
}

impl Prerequisite<'_> {
    /// Says that a user lacks it, and which field names it.
    pub fn missing(self, user: UserId) -> String {
        MissingPrerequisite { user, prerequisite: self }.to_string()
    }
}

struct MissingPrerequisite<'a> {
    user: UserId,
    prerequisite: Prerequisite<'a>,
}

impl fmt::Display for MissingPrerequisite<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let user = self.user;
        match self.prerequisite {
            Prerequisite::User => write!(f, "subject: user {user} is not known"),
            Prerequisite::Session(session) => {
                write!(f, "session_id: user {user} has opened no session {session}")
            }
            Prerequisite::Message(id) => write!(f, "message_id: user {user} has no message {id}"),
        }
    }
}
