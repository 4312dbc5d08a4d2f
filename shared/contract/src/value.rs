//! Values with limits. A limit is part of the type: it is checked when the field is decoded, reported with the field's
//! path when it is exceeded, and appears in the JSON Schema.

use std::borrow::Cow;
use std::fmt;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use secrecy::{ExposeSecret, SecretString};
use serde::de::{self, Deserializer, Visitor};
use serde::{Deserialize, Serialize, Serializer};

use crate::limit;

pub(crate) const NUL: &str = "contains a NUL character (\\u0000), which PostgreSQL cannot store; remove it";

/// A string of `MIN` to `MAX` characters without NUL.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
#[serde(transparent)]
pub struct Text<const MIN: usize, const MAX: usize>(pub(crate) String);

/// A key or a name of 1 to 256 characters.
pub type Name = Text<1, { limit::KEY_CHARS }>;

impl<const MIN: usize, const MAX: usize> Text<MIN, MAX> {
    /// Checks the length and the characters.
    ///
    /// # Errors
    /// A sentence that names the limit that is exceeded.
    pub fn new(text: impl Into<String>) -> Result<Self, String> {
        let text = text.into();
        // Bytes are an upper bound of characters, so most texts need no counting.
        if text.len() > MAX && text.chars().count() > MAX {
            return Err(format!("is longer than {MAX} characters"));
        }
        // A text of at least 4 * MIN bytes has at least MIN characters, so only shorter texts need counting.
        if text.len() < MIN * 4 && text.chars().count() < MIN {
            let empty = text.is_empty() && MIN == 1;
            return Err(if empty {
                "is empty".to_owned()
            } else {
                format!("is shorter than {MIN} characters")
            });
        }
        if text.as_bytes().contains(&0) {
            return Err(NUL.to_owned());
        }
        Ok(Self(text))
    }

    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl<const MAX: usize> Default for Text<0, MAX> {
    fn default() -> Self {
        Self(String::new())
    }
}

impl<const MIN: usize, const MAX: usize> fmt::Display for Text<MIN, MAX> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

pub(crate) struct StringVisitor;

impl Visitor<'_> for StringVisitor {
    type Value = String;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a string")
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<String, E> {
        Ok(text.to_owned())
    }

    fn visit_string<E: de::Error>(self, text: String) -> Result<String, E> {
        Ok(text)
    }
}

impl<'de, const MIN: usize, const MAX: usize> Deserialize<'de> for Text<MIN, MAX> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Self::new(deserializer.deserialize_string(StringVisitor)?).map_err(de::Error::custom)
    }
}

impl<const MIN: usize, const MAX: usize> JsonSchema for Text<MIN, MAX> {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> Cow<'static, str> {
        format!("Text{MIN}To{MAX}").into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "type": "string", "minLength": MIN, "maxLength": MAX })
    }
}

/// The identifier of a session, an agent or a conversation: 1 to 128 of `A-Z a-z 0-9 . _ : -`.
///
/// The restriction keeps identifiers printable and reserves `@` for names that memfleet assigns.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
#[serde(transparent)]
pub struct SessionId(String);

impl SessionId {
    /// Checks the alphabet and the length.
    ///
    /// # Errors
    /// A sentence that names the allowed length and characters.
    pub fn new(id: impl Into<String>) -> Result<Self, String> {
        let id = id.into();
        let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"._:-".contains(&byte);
        if id.is_empty() || id.len() > limit::IDENTIFIER_CHARS || !id.bytes().all(allowed) {
            return Err(format!(
                "must be 1 to {} characters out of A-Z a-z 0-9 . _ : -",
                limit::IDENTIFIER_CHARS
            ));
        }
        Ok(Self(id))
    }

    /// The identifier.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for SessionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for SessionId {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Self::new(deserializer.deserialize_string(StringVisitor)?).map_err(de::Error::custom)
    }
}

impl JsonSchema for SessionId {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> Cow<'static, str> {
        "SessionId".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "type": "string",
            "minLength": 1,
            "maxLength": limit::IDENTIFIER_CHARS,
            "pattern": "^[A-Za-z0-9._:-]+$"
        })
    }
}

/// A list of at most `MAX` items.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(transparent)]
pub struct List<T, const MAX: usize>(pub(crate) Vec<T>);

impl<T, const MAX: usize> List<T, MAX> {
    /// The items.
    pub fn as_slice(&self) -> &[T] {
        &self.0
    }
}

impl<T, const MAX: usize> Default for List<T, MAX> {
    fn default() -> Self {
        Self(Vec::new())
    }
}

impl<'de, T: Deserialize<'de>, const MAX: usize> Deserialize<'de> for List<T, MAX> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let items = Vec::deserialize(deserializer)?;
        if items.len() > MAX {
            return Err(de::Error::custom(format!("has {} items, more than {MAX}", items.len())));
        }
        Ok(Self(items))
    }
}

impl<T: JsonSchema, const MAX: usize> JsonSchema for List<T, MAX> {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> Cow<'static, str> {
        format!("ListOf{}UpTo{MAX}", T::schema_name()).into()
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        let items = generator.subschema_for::<T>();
        json_schema!({ "type": "array", "items": items, "maxItems": MAX })
    }
}

/// A list of 1 to `MAX` items.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(transparent)]
pub struct NonEmptyList<T, const MAX: usize>(List<T, MAX>);

impl<T, const MAX: usize> NonEmptyList<T, MAX> {
    /// The items.
    pub fn as_slice(&self) -> &[T] {
        self.0.as_slice()
    }

    /// The items, mutable.
    pub fn as_mut_slice(&mut self) -> &mut [T] {
        &mut self.0.0
    }
}

impl<'de, T: Deserialize<'de>, const MAX: usize> Deserialize<'de> for NonEmptyList<T, MAX> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let items = List::deserialize(deserializer)?;
        if items.as_slice().is_empty() {
            return Err(de::Error::custom("is empty; it must have at least one item"));
        }
        Ok(Self(items))
    }
}

impl<T: JsonSchema, const MAX: usize> JsonSchema for NonEmptyList<T, MAX> {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> Cow<'static, str> {
        format!("ListOf{}From1To{MAX}", T::schema_name()).into()
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        let items = generator.subschema_for::<T>();
        json_schema!({ "type": "array", "items": items, "minItems": 1, "maxItems": MAX })
    }
}

/// A secret text of 1 to 4096 characters. Its `Debug` does not show it, and its memory is wiped on drop.
#[derive(Clone, Debug)]
pub struct Secret(pub(crate) SecretString);

/// The limits of a [`Secret`].
type SecretText = Text<1, 4096>;

/// For publishers: the serialized request contains the secret in clear.
impl Serialize for Secret {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.0.expose_secret())
    }
}

impl<'de> Deserialize<'de> for Secret {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Ok(Self(SecretText::deserialize(deserializer)?.0.into()))
    }
}

impl JsonSchema for Secret {
    fn inline_schema() -> bool {
        false
    }

    fn schema_name() -> Cow<'static, str> {
        "Secret".into()
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        let mut schema = SecretText::json_schema(generator);
        schema.insert("description".to_owned(), "A secret text, stored encrypted only.".into());
        schema
    }
}
