use chrono::{DateTime, Utc};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::{QueryKind, QueryType};
use crate::json::JsonObject;
use crate::number::{Bounded, Score};
use crate::value::{List, SessionId, Text};
use crate::vector::{Embedding, VectorType};

/// Searches for memories similar to a text or a vector, the most similar first.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct SearchSimilar {
    /// The text to search for. Required unless there is an embedding.
    #[serde(default)]
    pub text: Option<Text<1, 4096>>,
    /// Its vector. Absent: the text is embedded.
    #[serde(default)]
    pub embedding: Option<Embedding>,
    /// How memories are ranked.
    #[serde(default)]
    pub mode: SearchMode,
    /// Only memories of these types. Empty: all types that the service may search.
    #[serde(default)]
    pub vector_types: List<VectorType, 4>,
    /// Only memories of this session.
    #[serde(default)]
    pub session_id: Option<SessionId>,
    /// Only memories from this time or later.
    #[serde(default, deserialize_with = "crate::time::read")]
    pub since: Option<DateTime<Utc>>,
    /// Only memories from before this time.
    #[serde(default, deserialize_with = "crate::time::read")]
    pub until: Option<DateTime<Utc>>,
    /// Only memories whose metadata contain all of these values: at most 16 strings, numbers or booleans.
    #[serde(default)]
    pub metadata: JsonObject,
    /// How much recent memories are preferred, 0 to 1: of two equally similar memories, one from now scores this share
    /// higher than one from long ago.
    #[serde(default)]
    pub recency_boost: Score,
    /// The half-life of the preference for recent memories, in hours.
    #[serde(default = "a_week")]
    pub recency_half_life_hours: Bounded<1, 87_600>,
    /// How much memories are preferred if the agents agree on their node, 0 to 1.
    #[serde(default)]
    pub consensus_boost: Score,
    /// Whether every vector of the user is compared, instead of an approximate search in the index.
    #[serde(default)]
    pub exact: bool,
    /// The maximum number of memories.
    #[serde(default = "ten")]
    pub limit: Bounded<1, 100>,
}

impl QueryType for SearchSimilar {
    type Answer = SearchAnswer;

    const KIND: &'static QueryKind = &QueryKind::new::<Self>(
        "search",
        "similar",
        "Memories similar to a text or a vector, the most similar first.",
    );

    fn session_id(&self) -> Option<&str> {
        self.session_id.as_ref().map(SessionId::as_str)
    }
}

fn a_week() -> Bounded<1, 87_600> {
    Bounded::literal(168)
}

fn ten() -> Bounded<1, 100> {
    Bounded::literal(10)
}

/// How a search ranks memories.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum SearchMode {
    /// Vectors and full text, combined by reciprocal rank fusion; without a text, vectors only.
    #[default]
    Hybrid,
    /// Vectors only.
    Vector,
    /// Full text only.
    Fulltext,
}

/// The memories found by a search.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct SearchAnswer {
    /// The memories, the most similar first.
    pub hits: Vec<SearchHit>,
    /// The embedding model of the compared vectors; absent in full-text searches.
    pub model: Option<String>,
}

/// A memory found by a search.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct SearchHit {
    /// The memory id.
    pub memory_id: Uuid,
    /// The node of the knowledge graph it belongs to.
    pub memory_node_id: Uuid,
    /// The session it is from.
    pub session_id: Option<String>,
    /// Its type.
    pub vector_type: VectorType,
    /// The speaker or author.
    pub speaker: Option<String>,
    /// Its text.
    pub content_text: String,
    /// Its metadata.
    pub metadata: crate::Json,
    /// When it was said or written.
    pub occurred_at: DateTime<Utc>,
    /// The score that the hits are ordered by.
    pub score: f64,
    /// The parts of the score.
    pub parts: ScoreParts,
}

/// The parts of a score. A part that did not contribute is absent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct ScoreParts {
    /// The cosine similarity of its vector and that of the query, -1 to 1.
    pub cosine: Option<f64>,
    /// Its rank by vector similarity, from 1.
    pub vector_rank: Option<u32>,
    /// Its full-text score (BM25).
    pub fulltext: Option<f64>,
    /// Its full-text rank, from 1.
    pub fulltext_rank: Option<u32>,
    /// Both ranks, combined by reciprocal rank fusion.
    pub fused: f64,
    /// The factor for recency, 1 or more.
    pub recency: f64,
    /// The factor for consensus, 1 or more.
    pub consensus: f64,
}
