use std::fmt;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::facts::{Prerequisite, RequestFacts};
use crate::label::labels;
use crate::limit;
use crate::malformed::Malformed;
use crate::value::{List, SessionId, Text};

labels! {
    /// The phase of a conversation of agents. The PostgreSQL enumeration `conversationphase`.
    ConversationPhase {
        /// The agents are set up.
        Initialization = "initialization",
        /// The work is planned.
        Planning = "planning",
        /// Tasks are delegated.
        Delegation = "delegation",
        /// The agents work on them.
        Execution = "execution",
        /// Their answers are weighed.
        Consensus = "consensus",
        /// The result is composed.
        Synthesis = "synthesis",
        /// It has ended with a result.
        Completed = "completed",
        /// It has ended without one.
        Failed = "failed",
    }
}

impl ConversationPhase {
    /// Whether the conversation is over.
    pub fn is_end(self) -> bool {
        match self {
            Self::Completed | Self::Failed => true,
            Self::Initialization
            | Self::Planning
            | Self::Delegation
            | Self::Execution
            | Self::Consensus
            | Self::Synthesis => false,
        }
    }

    /// The phases that may follow this one: the next one; from execution and consensus also another round of planning or
    /// delegation; failure at any time; and none after the end.
    pub fn successors(self) -> &'static [Self] {
        match self {
            Self::Initialization => &[Self::Planning, Self::Failed],
            Self::Planning => &[Self::Delegation, Self::Failed],
            Self::Delegation => &[Self::Execution, Self::Failed],
            Self::Execution => &[Self::Consensus, Self::Delegation, Self::Failed],
            Self::Consensus => &[Self::Synthesis, Self::Planning, Self::Delegation, Self::Failed],
            Self::Synthesis => &[Self::Completed, Self::Failed],
            Self::Completed | Self::Failed => &[],
        }
    }
}

/// Starts a conversation of agents, in the phase `initialization`.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ExpertConversationStart {
    /// The session, unique for the user. It need not be a chat session.
    pub session_id: SessionId,
    /// The title.
    pub conversation_title: Text<1, { limit::NAME_CHARS }>,
    /// The agents that take part.
    #[serde(default)]
    pub participating_agents: List<SessionId, 500>,
}

/// Moves a conversation to another phase.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ExpertConversationPhase {
    /// A conversation that was started.
    pub session_id: SessionId,
    /// The next phase. It must be able to follow the current one, and is not the end: see `expert-conversation.end`.
    pub phase: ConversationPhase,
}

labels! {
    /// How a conversation of agents ends.
    ConversationEnd {
        /// With a result, after its synthesis.
        Completed = "completed",
        /// Without one.
        Failed = "failed",
    }
}

/// Ends a conversation.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ExpertConversationEnd {
    /// A conversation that was started.
    pub session_id: SessionId,
    /// How it ends. `completed` follows the phase `synthesis` only.
    pub outcome: ConversationEnd,
}

impl ConversationEnd {
    /// The phase in which the conversation then is.
    pub fn phase(self) -> ConversationPhase {
        match self {
            Self::Completed => ConversationPhase::Completed,
            Self::Failed => ConversationPhase::Failed,
        }
    }
}

impl RequestFacts for ExpertConversationStart {
    fn session_id(&self) -> Option<&SessionId> {
        Some(&self.session_id)
    }

    fn unchanged_reason(&self) -> &'static str {
        "a conversation with this session_id was started already"
    }
}

impl RequestFacts for ExpertConversationPhase {
    fn session_id(&self) -> Option<&SessionId> {
        Some(&self.session_id)
    }

    fn prerequisite(&self) -> Prerequisite<'_> {
        Prerequisite::Conversation(&self.session_id)
    }

    fn check(&self) -> Result<(), Malformed> {
        if self.phase == ConversationPhase::Initialization || self.phase.is_end() {
            let problem = "is how a conversation starts or ends; use expert-conversation.start or .end";
            return Err(Malformed::new("phase", problem));
        }
        Ok(())
    }

    fn unchanged_reason(&self) -> &'static str {
        "the conversation is in this phase already"
    }
}

impl RequestFacts for ExpertConversationEnd {
    fn session_id(&self) -> Option<&SessionId> {
        Some(&self.session_id)
    }

    fn prerequisite(&self) -> Prerequisite<'_> {
        Prerequisite::Conversation(&self.session_id)
    }

    fn unchanged_reason(&self) -> &'static str {
        "the conversation has ended so already"
    }
}

#[cfg(test)]
mod tests {
    use super::ConversationPhase;

    #[test]
    fn every_phase_but_an_end_can_fail_and_the_shortest_way_passes_all() {
        let mut phase = ConversationPhase::Initialization;
        let mut passed = vec![phase];
        while let Some(&next) = phase.successors().first() {
            assert!(phase.successors().contains(&ConversationPhase::Failed));
            passed.push(next);
            phase = next;
        }
        assert_eq!(passed, ConversationPhase::ALL[..7]);
        for end in ConversationPhase::ALL.iter().filter(|phase| phase.is_end()) {
            assert!(end.successors().is_empty());
        }
    }
}
