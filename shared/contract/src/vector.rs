use std::borrow::Cow;

use chrono::{DateTime, Utc};
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::de::{self, Deserializer};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::limit;
use crate::number::Score;
use crate::value::{JsonObject, NonEmptyList, SessionId, Text};

/// What a text is in a conversation. The type `vectortype` of the reference document's "Unified Memory Vectors".
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum VectorType {
    /// Somebody asked it.
    Query,
    /// Somebody answered it.
    Response,
    /// It was said around them.
    Context,
    /// It is known apart from a conversation.
    Knowledge,
}

impl VectorType {
    /// Every type.
    pub const ALL: &'static [Self] = &[Self::Query, Self::Response, Self::Context, Self::Knowledge];

    /// The label of the PostgreSQL enumeration `vectortype`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Query => "query",
            Self::Response => "response",
            Self::Context => "context",
            Self::Knowledge => "knowledge",
        }
    }
}

/// Makes texts findable by what they mean and by their words. Of two requests for one memory, the one that was stored later
/// wins. Either all the memories of a request take effect or none.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct VectorIndex {
    /// The session that they are from; absent: none.
    #[serde(default)]
    pub session_id: Option<SessionId>,
    /// The texts, 1 to 100.
    pub memories: NonEmptyList<Memory, 100>,
}

/// A text to remember.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Memory {
    /// Unique among the memories of its user, and within the request.
    pub memory_id: Uuid,
    /// The node of the knowledge graph that it tells of. Absent: the memory is a node of its own, with its id, of the type
    /// `memory`.
    #[serde(default)]
    pub memory_node_id: Option<Uuid>,
    /// What it is in a conversation.
    pub vector_type: VectorType,
    /// The text. White space alone is none.
    #[serde(deserialize_with = "not_blank")]
    pub content_text: Text<1, { limit::TEXT_CHARS }>,
    /// Who said it. The name is searched with the text.
    #[serde(default)]
    pub speaker: Option<Text<1, { limit::NAME_CHARS }>>,
    /// What was said before it, or whatever else helps to understand it. It is embedded with the text, and stands in no event.
    #[serde(default)]
    pub preceding_text: Option<Text<1, { limit::PRECEDING_CHARS }>>,
    /// Its vector, if the publisher has made one. Absent: the worker makes it.
    #[serde(default)]
    pub embedding: Option<Embedding>,
    /// Who said it, where, and whatever else searches filter by: the values directly in it, if they are texts, numbers or
    /// booleans.
    #[serde(default)]
    pub metadata: JsonObject,
    /// How much it matters, 0 to 1.
    #[serde(default)]
    pub relevance_score: Option<Score>,
    /// When it was said; the date is searched with the text. Absent, or later than that: when the message was published.
    #[serde(default, deserialize_with = "crate::value::time")]
    pub occurred_at: Option<DateTime<Utc>>,
}

fn not_blank<'de, D: Deserializer<'de>>(from: D) -> Result<Text<1, { limit::TEXT_CHARS }>, D::Error> {
    let text = Text::deserialize(from)?;
    if text.as_str().trim().is_empty() {
        return Err(de::Error::custom("holds nothing but white space"));
    }
    Ok(text)
}

/// Makes memories unfindable and forgets their texts. Those that are not there yet are not indexed later by a request that
/// was published before.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct VectorRemove {
    /// The session that they are from; absent: whichever.
    #[serde(default)]
    pub session_id: Option<SessionId>,
    /// The memories, 1 to 100.
    pub memory_ids: NonEmptyList<Uuid, 100>,
}

/// A vector and the model that made it.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Embedding {
    /// The name of the model, which the collection must be for.
    pub model: Text<1, 100>,
    /// The vector. Its length need not be 1.
    pub vector: Vector,
}

/// The most numbers of a vector.
pub const VECTOR_DIMENSIONS: usize = 8_192;

/// Finite numbers, of which not all are zero.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(transparent)]
pub struct Vector(Vec<f32>);

impl Vector {
    /// Checks the bounds.
    ///
    /// # Errors
    /// A sentence that says which number is wrong.
    pub fn new(numbers: Vec<f32>) -> Result<Self, String> {
        if numbers.is_empty() || numbers.len() > VECTOR_DIMENSIONS {
            return Err(format!("has {} numbers; it must have 1 to {VECTOR_DIMENSIONS}", numbers.len()));
        }
        if let Some(place) = numbers.iter().position(|number| !number.is_finite()) {
            return Err(format!("its number {place} is not finite"));
        }
        let square: f64 = numbers.iter().map(|&number| f64::from(number) * f64::from(number)).sum();
        // What is shorter has no direction left once its numbers are rounded.
        if square < 1e-24 {
            return Err("has no direction: all its numbers are zero, or nearly so".to_owned());
        }
        Ok(Self(numbers))
    }

    /// The numbers.
    pub fn as_slice(&self) -> &[f32] {
        &self.0
    }

    /// The same direction, of length 1: whoever compares vectors need not fear very long or very short ones.
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
