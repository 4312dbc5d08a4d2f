use chrono::{DateTime, Utc};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::{QueryKind, QueryType};
use crate::json::Json;
use crate::number::Bounded;
use crate::value::{Name, Text};

/// Walks the knowledge graph from a node along its relations, to a depth. Each node is returned once, at the smallest
/// depth at which it is reached, so that cycles end. Nodes that are not valid at the time are neither returned nor passed
/// through.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct GraphWalk {
    /// The key of the nodes to start from.
    pub node_key: Name,
    /// Their type; absent: any type.
    #[serde(default)]
    pub node_type: Option<Text<1, 128>>,
    /// Follow only relations of this type.
    #[serde(default)]
    pub relation_type: Option<Text<1, 128>>,
    /// The graph of this time: nodes that were valid then, and relations that existed. Absent: the graph of now.
    #[serde(default, deserialize_with = "crate::time::read")]
    pub as_of: Option<DateTime<Utc>>,
    /// The maximum number of relations from the start.
    #[serde(default = "three")]
    pub depth: Bounded<0, 8>,
    /// The maximum number of nodes; the nearest are returned.
    #[serde(default = "two_hundred")]
    pub limit: Bounded<1, 1000>,
}

impl QueryType for GraphWalk {
    type Answer = GraphAnswer;

    const KIND: &'static QueryKind =
        &QueryKind::new::<Self>("graph", "walk", "The knowledge graph around a node, to a depth.");

    fn session_id(&self) -> Option<&str> {
        None
    }
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
    /// Its id.
    pub node_id: Uuid,
    /// Its type.
    pub node_type: String,
    /// Its key, unique among nodes of its type.
    pub node_key: String,
    /// Its title.
    pub title: String,
    /// Its content.
    pub content: Json,
    /// The state of the agents' consensus on it: `unvalidated`, `pending`, `validated`, `disputed`, `rejected` or
    /// `superseded`.
    pub validation_status: String,
    /// How strongly the agents agree, 0 to 1.
    pub consensus_score: f64,
    /// From when it is valid.
    pub valid_from: DateTime<Utc>,
    /// Until when it was valid. Absent: it still is.
    pub valid_to: Option<DateTime<Utc>>,
    /// The number of relations from the start.
    pub depth: i32,
}

/// A relation between two nodes of the answer.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct GraphRelation {
    /// The id of its source node.
    pub source: Uuid,
    /// The id of its target node.
    pub target: Uuid,
    /// Its type.
    pub relation_type: String,
    /// Its strength, 0 to 1.
    pub strength: f64,
    /// Its confidence, 0 to 1.
    pub confidence: f64,
}

/// A part of the knowledge graph.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct GraphAnswer {
    /// The nodes, the nearest first, then ordered by title.
    pub nodes: Vec<GraphNode>,
    /// The relations between these nodes, up to a limit.
    pub relations: Vec<GraphRelation>,
    /// Whether nodes or relations were left out because of a limit.
    pub truncated: bool,
}
