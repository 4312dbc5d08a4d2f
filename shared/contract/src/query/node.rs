use std::fmt;

use chrono::{DateTime, Utc};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::{Cursor, Limit, QueryKind, QueryType, default_limit};
use crate::json::Json;
use crate::label::labels;
use crate::value::{Name, Text};

labels! {
    /// The state of the agents' consensus on a node. The PostgreSQL enumeration `validationstatus`.
    ValidationStatus {
        /// Nobody, or too few independent agents, have answered.
        Unvalidated = "unvalidated",
        /// Enough agents agree, but the evidence does not suffice yet.
        Pending = "pending",
        /// The agents agree, or a verdict confirmed it.
        Validated = "validated",
        /// A tie, strong dissent, or a contradiction to another validated node.
        Disputed = "disputed",
        /// A verdict rejected it.
        Rejected = "rejected",
        /// Another node took its place.
        Superseded = "superseded",
    }
}

/// Lists the nodes of the knowledge graph, the latest first.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct NodeList {
    /// Only nodes of this type.
    #[serde(default)]
    pub node_type: Option<Text<1, 128>>,
    /// Only nodes with this key: the history of an answer, if nodes that are no longer valid are included.
    #[serde(default)]
    pub node_key: Option<Name>,
    /// Only nodes in this state. `superseded` and `rejected` include nodes that are no longer valid.
    #[serde(default)]
    pub status: Option<ValidationStatus>,
    /// Only nodes with this semantic tag.
    #[serde(default)]
    pub tag: Option<Text<1, 256>>,
    /// Only nodes established at this time or later.
    #[serde(default, deserialize_with = "crate::time::read")]
    pub since: Option<DateTime<Utc>>,
    /// Only nodes established before this time.
    #[serde(default, deserialize_with = "crate::time::read")]
    pub until: Option<DateTime<Utc>>,
    /// Whether nodes that are no longer valid are included.
    #[serde(default)]
    pub include_past: bool,
    /// The start of the page: `next_cursor` of the previous page.
    #[serde(default)]
    pub cursor: Option<Cursor>,
    /// The maximum number of nodes.
    #[serde(default = "default_limit")]
    pub limit: Limit,
}

impl QueryType for NodeList {
    type Answer = NodePage;

    const KIND: &'static QueryKind = &QueryKind::new::<Self>(
        "node",
        "list",
        "The nodes of the knowledge graph by type, state, tag and time, the latest first.",
    );

    fn session_id(&self) -> Option<&str> {
        None
    }
}

/// A node of the knowledge graph, and when it was valid.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct NodeInfo {
    /// Its id.
    pub node_id: Uuid,
    /// Its type.
    pub node_type: String,
    /// Its key. Of the nodes of one type and key, at most one is validated and valid at a time.
    pub node_key: String,
    /// Its title.
    pub title: String,
    /// Its content.
    pub content: Json,
    /// Its semantic tags.
    pub tags: Json,
    /// The state of the agents' consensus on it.
    pub validation_status: ValidationStatus,
    /// How strongly the agents agree, 0 to 1.
    pub consensus_score: f64,
    /// The task that it answers. Absent: it answers none.
    pub task_id: Option<Uuid>,
    /// When it was first stored.
    pub established_at: DateTime<Utc>,
    /// From when it is valid.
    pub valid_from: DateTime<Utc>,
    /// Until when it was valid. Absent: it still is.
    pub valid_to: Option<DateTime<Utc>>,
    /// The node that took its place.
    pub superseded_by: Option<Uuid>,
}

/// A page of nodes.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct NodePage {
    /// The nodes.
    pub nodes: Vec<NodeInfo>,
    /// The cursor of the next page; absent on the last one.
    pub next_cursor: Option<String>,
}

/// Reads a node with its dossier: the votes, the clusters of equal answers, the weights, the dissent and the events that
/// its score rests on.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct NodeDossier {
    /// The node.
    pub node_id: Uuid,
}

impl QueryType for NodeDossier {
    type Answer = NodeDossierAnswer;

    const KIND: &'static QueryKind = &QueryKind::new::<Self>(
        "node",
        "dossier",
        "A node with all that its score and status rest on: votes, clusters, weights, dissent, events.",
    );

    fn session_id(&self) -> Option<&str> {
        None
    }
}

/// A node and its dossier.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct NodeDossierAnswer {
    /// The node.
    pub node: NodeInfo,
    /// The latest verdict on it.
    pub verdict: Option<NodeVerdict>,
    /// Its dossier. Absent: no agents have been asked about it.
    pub dossier: Option<DossierInfo>,
}

/// A verdict on a node.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct NodeVerdict {
    /// `confirmed` or `rejected`.
    pub verdict: String,
    /// Who gave it.
    pub given_by: Option<String>,
    /// Why.
    pub reason: Option<String>,
    /// When.
    pub given_at: Option<DateTime<Utc>>,
}

/// A stored dossier.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct DossierInfo {
    /// The version of the rules that it was computed under.
    pub rules_version: i32,
    /// The SHA-256 of its frozen inputs, in hexadecimal.
    pub inputs_sha256: String,
    /// When it was computed.
    pub computed_at: DateTime<Utc>,
    /// The dossier, as `memfleet consensus explain --json` prints it. Its numbers are in millionths.
    pub content: Json,
}
