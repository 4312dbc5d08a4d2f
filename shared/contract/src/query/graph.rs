use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::number::Bounded;
use crate::value::{Json, Name, Text};

/// Asks for the knowledge around a node: the nodes that its relations lead to, and theirs, to a depth. A node is told once, at
/// the least depth it is found at, so that a circle ends.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct GraphWalk {
    /// The key of the nodes to begin at.
    pub node_key: Name,
    /// Their type; absent: whatever it is.
    #[serde(default)]
    pub node_type: Option<Text<1, 128>>,
    /// Only along relations of this type.
    #[serde(default)]
    pub relation_type: Option<Text<1, 128>>,
    /// How many relations far.
    #[serde(default = "three")]
    pub depth: Bounded<0, 8>,
    /// The most nodes, the nearest ones.
    #[serde(default = "two_hundred")]
    pub limit: Bounded<1, 1000>,
}

fn three() -> Bounded<0, 8> {
    Bounded::literal(3)
}

fn two_hundred() -> Bounded<1, 1000> {
    Bounded::literal(200)
}

/// A node of the knowledge graph.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct GraphNode {
    /// The node.
    pub node_id: Uuid,
    /// Its type.
    pub node_type: String,
    /// Its key, unique among the nodes of its type.
    pub node_key: String,
    /// Its title.
    pub title: String,
    /// What it holds.
    pub content: Json,
    /// Whether the agents agree: `unvalidated`, `pending`, `validated`, `disputed`, `rejected` or `superseded`.
    pub validation_status: String,
    /// How much they agree, 0 to 1.
    pub consensus_score: f64,
    /// How many relations away from where the walk began.
    pub depth: i32,
}

/// A relation between two nodes of the answer.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct GraphRelation {
    /// Where it begins.
    pub source: Uuid,
    /// Where it leads.
    pub target: Uuid,
    /// Its type.
    pub relation_type: String,
    /// How strong it is, 0 to 1.
    pub strength: f64,
    /// How sure it is, 0 to 1.
    pub confidence: f64,
}

/// A part of the knowledge graph.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct GraphAnswer {
    /// The nodes, the nearest first, then by their titles.
    pub nodes: Vec<GraphNode>,
    /// The relations among them, as far as the answer has room.
    pub relations: Vec<GraphRelation>,
    /// Whether something was left out for want of room.
    pub truncated: bool,
}
