use std::fmt;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::facts::{Prerequisite, RequestFacts};
use crate::json::JsonObject;
use crate::label::labels;
use crate::malformed::Malformed;
use crate::number::Score;
use crate::performative::Performative;
use crate::value::{List, Name, SessionId, Text};

/// Proposes knowledge: a node of the knowledge graph that nobody has validated.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct KnowledgePropose {
    /// The node id, unique for the user.
    pub node_id: Uuid,
    /// The type of the node, such as `fact`.
    pub node_type: Text<1, 128>,
    /// Its key within the type. Of all nodes of one key, one validated node is valid at a time.
    pub node_key: Name,
    /// The title.
    pub title: Text<1, 512>,
    /// The knowledge. The members `answer` (a text) and `claim` are compared with what is validated already.
    pub content: JsonObject,
    /// Tags.
    #[serde(default)]
    pub semantic_tags: List<Name, 64>,
    /// The agent that proposes it.
    #[serde(default)]
    pub agent_id: Option<SessionId>,
    /// The session that it comes from.
    #[serde(default)]
    pub session_id: Option<SessionId>,
}

/// Stores a relation between two nodes of the user, replacing an earlier one of the same type.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RelationPut {
    /// The node that it starts from.
    pub source_node_id: Uuid,
    /// The node that it leads to.
    pub target_node_id: Uuid,
    /// The type, such as `supports`.
    pub relation_type: Text<1, 128>,
    /// How strong it is, 0 to 1. Default: 1.
    #[serde(default = "full")]
    pub strength: Score,
    /// How certain it is, 0 to 1. Default: 1.
    #[serde(default = "full")]
    pub confidence: Score,
}

fn full() -> Score {
    Score::ONE
}

/// Removes a relation. A request to store it that was stored earlier, but is processed later, does not restore it.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RelationRemove {
    /// The node that it starts from.
    pub source_node_id: Uuid,
    /// The node that it leads to.
    pub target_node_id: Uuid,
    /// The type.
    pub relation_type: Text<1, 128>,
}

labels! {
    /// What a verifier or a human says about a node.
    VerdictKind {
        /// It is right.
        Confirm = "confirm",
        /// It is wrong.
        Reject = "reject",
        /// An earlier verdict is withdrawn: the votes alone count again.
        Reopen = "reopen",
    }
}

/// Gives a verdict on a node. Of several verdicts, the one that JetStream stored last counts.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct VerdictGive {
    /// The node.
    pub node_id: Uuid,
    /// The verdict.
    pub verdict: VerdictKind,
    /// Who gives it: an agent or a human.
    pub given_by: SessionId,
    /// Why.
    pub reason: Text<1, 2048>,
}

impl RequestFacts for KnowledgePropose {
    fn session_id(&self) -> Option<&SessionId> {
        self.session_id.as_ref()
    }

    fn source_agent(&self) -> Option<&str> {
        self.agent_id.as_ref().map(SessionId::as_str)
    }

    fn performative(&self) -> Performative {
        Performative::Propose
    }

    fn unchanged_reason(&self) -> &'static str {
        "a node with this node_id exists already"
    }
}

fn check_ends(source: Uuid, target: Uuid) -> Result<(), Malformed> {
    if source == target {
        return Err(Malformed::new("target_node_id", "is the source; a relation is between two nodes"));
    }
    Ok(())
}

impl RequestFacts for RelationPut {
    fn prerequisite(&self) -> Prerequisite<'_> {
        Prerequisite::Nodes(self.source_node_id, self.target_node_id)
    }

    fn check(&self) -> Result<(), Malformed> {
        check_ends(self.source_node_id, self.target_node_id)
    }
}

impl RequestFacts for RelationRemove {
    fn prerequisite(&self) -> Prerequisite<'_> {
        Prerequisite::Nodes(self.source_node_id, self.target_node_id)
    }

    fn check(&self) -> Result<(), Malformed> {
        check_ends(self.source_node_id, self.target_node_id)
    }

    fn unchanged_reason(&self) -> &'static str {
        "it was removed already, or stored later"
    }
}

impl RequestFacts for VerdictGive {
    fn source_agent(&self) -> Option<&str> {
        Some(self.given_by.as_str())
    }

    fn performative(&self) -> Performative {
        match self.verdict {
            VerdictKind::Confirm => Performative::Confirm,
            VerdictKind::Reject => Performative::Disconfirm,
            VerdictKind::Reopen => Performative::Cancel,
        }
    }

    fn prerequisite(&self) -> Prerequisite<'_> {
        Prerequisite::Node(self.node_id)
    }

    fn unchanged_reason(&self) -> &'static str {
        "a later verdict was given already"
    }
}
