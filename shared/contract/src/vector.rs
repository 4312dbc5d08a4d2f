use std::borrow::Cow;

use chrono::{DateTime, Utc};
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::de::{self, Deserializer};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::facts::{Prerequisite, RequestFacts};
use crate::json::JsonObject;
use crate::limit;
use crate::number::Score;
use crate::value::{NonEmptyList, SessionId, Text};

/// The role of a text in a conversation. The PostgreSQL enumeration `vectortype`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum VectorType {
    /// A question.
    Query,
    /// An answer.
    Response,
    /// The context of a question or an answer.
    Context,
    /// Knowledge that is independent of a conversation.
    Knowledge,
}

impl VectorType {
    /// Every type.
    pub const ALL: &'static [Self] = &[Self::Query, Self::Response, Self::Context, Self::Knowledge];

    /// The label in the PostgreSQL enumeration `vectortype`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Query => "query",
            Self::Response => "response",
            Self::Context => "context",
            Self::Knowledge => "knowledge",
        }
    }
}

/// Indexes texts for semantic search and full-text search. Of two requests for the same memory, the one that JetStream
/// stored later wins. A request is applied as a whole or not at all.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct VectorIndex {
    /// The session of the memories. Absent: none.
    #[serde(default)]
    pub session_id: Option<SessionId>,
    /// The memories to index, 1 to 100.
    pub memories: NonEmptyList<Memory, 100>,
}

/// A memory: a text to index.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Memory {
    /// The memory id, unique for the user and within the request.
    pub memory_id: Uuid,
    /// The node of the knowledge graph that the memory describes. Absent: the memory is a node itself, with its own id
    /// and the type `memory`.
    #[serde(default)]
    pub memory_node_id: Option<Uuid>,
    /// The role of the text in a conversation.
    pub vector_type: VectorType,
    /// The text. It must contain more than white space.
    #[serde(deserialize_with = "not_blank")]
    pub content_text: Text<1, { limit::TEXT_CHARS }>,
    /// The speaker. The name is indexed together with the text.
    #[serde(default)]
    pub speaker: Option<Text<1, { limit::NAME_CHARS }>>,
    /// The preceding text, or other context of the text. It is embedded together with the text and omitted from events.
    #[serde(default)]
    pub preceding_text: Option<Text<1, { limit::PRECEDING_CHARS }>>,
    /// Its vector, if the publisher computes it. Absent: the worker computes it.
    #[serde(default)]
    pub embedding: Option<Embedding>,
    /// Metadata. Searches can filter by its top-level strings, numbers and booleans.
    #[serde(default)]
    pub metadata: JsonObject,
    /// The relevance, 0 to 1.
    #[serde(default)]
    pub relevance_score: Option<Score>,
    /// When it was said; the date is indexed together with the text. Absent, or later than the time at which JetStream
    /// stored the request: that time.
    #[serde(default, deserialize_with = "crate::time::read")]
    pub occurred_at: Option<DateTime<Utc>>,
}

fn not_blank<'de, D: Deserializer<'de>>(from: D) -> Result<Text<1, { limit::TEXT_CHARS }>, D::Error> {
    let text = Text::deserialize(from)?;
    if text.as_str().trim().is_empty() {
        return Err(de::Error::custom("contains only white space"));
    }
    Ok(text)
}

/// Removes memories from the index and deletes their texts. A request to index one of them that was stored earlier, but
/// is processed later, does not restore it.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct VectorRemove {
    /// The session of the memories. Absent: any session.
    #[serde(default)]
    pub session_id: Option<SessionId>,
    /// The memories to remove, 1 to 100.
    pub memory_ids: NonEmptyList<Uuid, 100>,
}

/// A vector and the model that computed it.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Embedding {
    /// The name of the model. It must be the model of the collection.
    pub model: Text<1, 100>,
    /// The vector. It need not be normalized.
    pub vector: Vector,
}

/// The maximum number of dimensions of a vector.
pub const VECTOR_DIMENSIONS: usize = 8_192;

/// A vector of finite numbers that are not all zero.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(transparent)]
pub struct Vector(Vec<f32>);

impl Vector {
    /// Checks the number of dimensions and the numbers.
    ///
    /// # Errors
    /// A sentence that names what is wrong.
    pub fn new(numbers: Vec<f32>) -> Result<Self, String> {
        if numbers.is_empty() || numbers.len() > VECTOR_DIMENSIONS {
            return Err(format!("has {} numbers; it must have 1 to {VECTOR_DIMENSIONS}", numbers.len()));
        }
        if let Some(place) = numbers.iter().position(|number| !number.is_finite()) {
            return Err(format!("the number at index {place} is not finite"));
        }
        let square: f64 = numbers.iter().map(|&number| f64::from(number) * f64::from(number)).sum();
        // A shorter vector loses its direction when its numbers are rounded.
        if square < 1e-24 {
            return Err("has no direction: all of its numbers are zero or nearly zero".to_owned());
        }
        Ok(Self(numbers))
    }

    /// The numbers.
    pub fn as_slice(&self) -> &[f32] {
        &self.0
    }

    /// The same direction with length 1.
    pub fn normalized(&self) -> Vec<f32> {
        let square: f64 = self.0.iter().map(|&number| f64::from(number) * f64::from(number)).sum();
        let length = square.sqrt();
        #[allow(clippy::cast_possible_truncation, reason = "at most 1")]
        let shortened = |&number: &f32| (f64::from(number) / length) as f32;
        self.0.iter().map(shortened).collect()
    }
}

impl<'de> Deserialize<'de> for Vector {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        Self::new(Vec::deserialize(from)?).map_err(de::Error::custom)
    }
}

impl JsonSchema for Vector {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> Cow<'static, str> {
        "Vector".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "type": "array", "items": { "type": "number" }, "minItems": 1, "maxItems": VECTOR_DIMENSIONS
        })
    }
}

/// The reason in the outcome of a request that a later one has superseded.
const LATE: &str = "a later request has written or removed it";

impl RequestFacts for VectorIndex {
    fn session_id(&self) -> Option<&SessionId> {
        self.session_id.as_ref()
    }

    fn prerequisite(&self) -> Prerequisite<'_> {
        self.session_id.as_ref().map_or(Prerequisite::User, Prerequisite::Session)
    }

    fn unchanged_reason(&self) -> &'static str {
        LATE
    }

    /// The request without vectors, which are in the vector store, and without preceding texts, which have events of
    /// their own.
    fn event_payload(&self) -> Option<String> {
        let mut index = self.clone();
        for memory in index.memories.as_mut_slice() {
            (memory.embedding, memory.preceding_text) = (None, None);
        }
        // Serialization cannot fail. If it did, the payload would be empty and not contain the vectors.
        Some(serde_json::to_string(&index).unwrap_or_else(|_| "{}".to_owned()))
    }
}

impl RequestFacts for VectorRemove {
    fn session_id(&self) -> Option<&SessionId> {
        self.session_id.as_ref()
    }

    fn prerequisite(&self) -> Prerequisite<'_> {
        self.session_id.as_ref().map_or(Prerequisite::User, Prerequisite::Session)
    }

    fn unchanged_reason(&self) -> &'static str {
        LATE
    }
}
