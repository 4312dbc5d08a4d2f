use chrono::{DateTime, Utc};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::number::{Bounded, Score};
use crate::value::{JsonObject, List, SessionId, Text};
use crate::vector::{Embedding, VectorType};

/// Asks for memories that are like a text or a vector, the most alike first.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct SearchSimilar {
    /// What is looked for, in plain words. Needed unless there is an embedding.
    #[serde(default)]
    pub text: Option<Text<1, 4096>>,
    /// Its vector. Absent: it is made of the text.
    #[serde(default)]
    pub embedding: Option<Embedding>,
    /// What counts.
    #[serde(default)]
    pub mode: SearchMode,
    /// Only memories of these types; none: of any that the service may search.
    #[serde(default)]
    pub vector_types: List<VectorType, 4>,
    /// Only those of this session.
    #[serde(default)]
    pub session_id: Option<SessionId>,
    /// Only what was said at this time or later.
    #[serde(default, deserialize_with = "crate::value::time")]
    pub since: Option<DateTime<Utc>>,
    /// Only what was said before this time.
    #[serde(default, deserialize_with = "crate::value::time")]
    pub until: Option<DateTime<Utc>>,
    /// Only those whose metadata hold all of these values: at most 16 texts, numbers or booleans.
    #[serde(default)]
    pub metadata: JsonObject,
    /// How much later memories are preferred, 0 to 1: of equally alike ones, what was said now has so much more than what was
    /// said long ago.
    #[serde(default)]
    pub recency_boost: Score,
    /// In how many hours the preference for what was said now halves.
    #[serde(default = "a_week")]
    pub recency_half_life_hours: Bounded<1, 87_600>,
    /// How much memories are preferred whose node agents agree on, 0 to 1.
    #[serde(default)]
    pub consensus_boost: Score,
    /// Whether every vector of the user is compared, instead of those that an index leads to.
    #[serde(default)]
    pub exact: bool,
    /// The most memories.
    #[serde(default = "ten")]
    pub limit: Bounded<1, 100>,
}

fn a_week() -> Bounded<1, 87_600> {
    Bounded::literal(168)
}

fn ten() -> Bounded<1, 100> {
    Bounded::literal(10)
}

/// What counts in a search.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum SearchMode {
    /// Meaning and words, fused by reciprocal rank; without a text, meaning alone.
    #[default]
    Hybrid,
    /// The vectors alone.
    Vector,
    /// The words alone.
    Fulltext,
}

/// The memories that were found.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct SearchAnswer {
    /// The most alike first.
    pub hits: Vec<SearchHit>,
    /// The model whose vectors were compared; absent where words alone count.
    pub model: Option<String>,
}

/// A memory that was found.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct SearchHit {
    /// The memory.
    pub memory_id: Uuid,
    /// The node of the knowledge graph that it tells of.
    pub memory_node_id: Uuid,
    /// The session that it is from.
    pub session_id: Option<String>,
    /// What it is in a conversation.
    pub vector_type: VectorType,
    /// Who said it.
    pub speaker: Option<String>,
    /// The text.
    pub content_text: String,
    /// What came with it.
    pub metadata: crate::Json,
    /// When it was said.
    pub occurred_at: DateTime<Utc>,
    /// What it is ordered by.
    pub score: f64,
    /// What the score is made of.
    pub parts: ScoreParts,
}

/// What a score is made of. A part that found nothing is absent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct ScoreParts {
    /// The cosine between its vector and that of the query, -1 to 1.
    pub cosine: Option<f64>,
    /// Its place among the vectors, from 1.
    pub vector_rank: Option<u32>,
    /// How well its words fit, BM25.
    pub fulltext: Option<f64>,
    /// Its place by words, from 1.
    pub fulltext_rank: Option<u32>,
    /// Both places fused.
    pub fused: f64,
    /// What it has been multiplied with for being recent, from 1 on.
    pub recency: f64,
    /// What it has been multiplied with for being agreed on, from 1 on.
    pub consensus: f64,
}
