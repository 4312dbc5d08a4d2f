//! Properties of requests that are derived from their bodies. Each request type implements [`RequestFacts`] in its own
//! file.

use std::fmt;

use uuid::Uuid;

use crate::malformed::Malformed;
use crate::performative::Performative;
use crate::redaction::SecretFields;
use crate::subject::UserId;
use crate::value::SessionId;
use crate::workers::{CONSENSUS_BUILDER, CONTEXT_WRITER, MEMORY_SYNC, WorkerInfo};

/// The session id of events that belong to no session. No request can name it.
pub(crate) const ACCOUNT_SESSION: &str = "@account";

/// Properties of a request that depend on its body. Its subject, stream, worker and event depend on its type only; they
/// are in the table in `request.rs`.
pub trait RequestFacts {
    /// The session that the request belongs to; none if it belongs to the user and to no session. A token for one
    /// session allows only requests of that session.
    fn session_id(&self) -> Option<&SessionId> {
        None
    }

    /// The session id of its event.
    fn event_session(&self) -> &str {
        self.session_id().map_or(ACCOUNT_SESSION, SessionId::as_str)
    }

    /// The agent that acts; none if the publishing service itself acts.
    fn source_agent(&self) -> Option<&str> {
        None
    }

    /// The agent or tool that its event is addressed to.
    fn target_agent(&self) -> Option<&str> {
        None
    }

    /// The performative of its event.
    fn performative(&self) -> Performative {
        Performative::Inform
    }

    /// The record that must exist before the request can be applied.
    fn prerequisite(&self) -> Prerequisite<'_> {
        Prerequisite::User
    }

    /// Checks what the types of the fields do not: how fields fit together.
    ///
    /// # Errors
    /// [`Malformed`] names the field.
    fn check(&self) -> Result<(), Malformed> {
        Ok(())
    }

    /// The reason in the outcome `unchanged`.
    fn unchanged_reason(&self) -> &'static str {
        "a newer record is already stored"
    }

    /// Moves the values that are stored encrypted only to `secrets`, and leaves markers in their place.
    fn redact(&mut self, secrets: &mut SecretFields) {
        let _ = secrets;
    }

    /// The noun and the verb of a scope that lets the request do more than its own scope does. It does not need it.
    fn widening_scope(&self) -> Option<(&'static str, &'static str)> {
        None
    }

    /// The payload of its event, as JSON, if it is not the request itself.
    fn event_payload(&self) -> Option<String> {
        None
    }
}

/// A record that must exist before a request can be applied.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Prerequisite<'a> {
    /// Its user.
    User,
    /// A session that is or was open.
    Session(&'a SessionId),
    /// A message of a conversation.
    Message(Uuid),
    /// A configured agent.
    Agent(&'a SessionId),
    /// A conversation of agents, by its session.
    Conversation(&'a SessionId),
    /// A task of a conversation of agents.
    Task {
        /// The task.
        id: Uuid,
        /// The session of its conversation.
        session: &'a SessionId,
    },
    /// A node of the knowledge graph.
    Node(Uuid),
    /// Two nodes of the knowledge graph.
    Nodes(Uuid, Uuid),
    /// A sync between two sessions.
    Sync(Uuid),
}

impl Prerequisite<'_> {
    /// The worker that writes the record.
    pub fn worker(self) -> &'static WorkerInfo {
        match self {
            Self::User | Self::Session(_) | Self::Message(_) => &CONTEXT_WRITER,
            Self::Agent(_) | Self::Conversation(_) | Self::Task { .. } | Self::Node(_) | Self::Nodes(..) => {
                &CONSENSUS_BUILDER
            }
            Self::Sync(_) => &MEMORY_SYNC,
        }
    }

    /// The error message if the user has no such record. It starts with the field that names the record.
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
            Prerequisite::Agent(agent) => write!(f, "agent_id: user {user} has configured no agent {agent}"),
            Prerequisite::Conversation(session) => {
                write!(
                    f,
                    "session_id: user {user} has started no conversation of agents in session {session}"
                )
            }
            Prerequisite::Task { id, session } => {
                write!(f, "task_id: user {user} has no task {id} in session {session}")
            }
            Prerequisite::Sync(id) => write!(f, "sync_id: user {user} has no sync {id}"),
            Prerequisite::Node(id) => write!(f, "node_id: user {user} has no node {id}"),
            Prerequisite::Nodes(source, target) => {
                write!(f, "source_node_id: user {user} lacks node {source} or node {target}")
            }
        }
    }
}
