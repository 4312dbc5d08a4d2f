//! Values with limits. A limit is part of the type: it is checked when the field is decoded, reported with the field's
//! path when it is exceeded, and appears in the JSON Schema.

use std::borrow::Cow;
use std::fmt;

use chrono::{DateTime, Datelike, Utc};
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use secrecy::{ExposeSecret, SecretString};
use serde::de::{self, Deserializer, Visitor};
use serde::{Deserialize, Serialize, Serializer};
use serde_json::value::RawValue;

use crate::limit;

const NUL: &str = "contains a NUL character (\\u0000), which PostgreSQL cannot store; remove it";

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

impl<const MIN: usize, const MAX: usize> fmt::Display for Text<MIN, MAX> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

struct StringVisitor;

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

/// Any JSON value, kept as its original text: PostgreSQL parses it, and nothing else does.
///
/// It contains no NUL character. In a request it nests at most [`limit::JSON_DEPTH`] levels, and its numbers grow by at
/// most [`limit::JSON_EXPANSION`] digits when they are written without an exponent.
#[derive(Clone, Debug)]
pub struct Json(pub(crate) Box<RawValue>);

/// The deepest nesting of a value, and the most digits that its numbers may grow by.
#[derive(Clone, Copy)]
struct JsonLimits {
    depth: usize,
    expansion: usize,
}

impl Json {
    const VALUE_LIMITS: JsonLimits =
        JsonLimits { depth: limit::JSON_DEPTH, expansion: limit::JSON_EXPANSION };
    const BODY_LIMITS: JsonLimits = JsonLimits { depth: limit::BODY_DEPTH, expansion: limit::BODY_EXPANSION };

    /// Checks that the text is one JSON value within the limits of a body.
    ///
    /// # Errors
    /// A sentence that names what is wrong.
    pub fn new(text: impl Into<String>) -> Result<Self, String> {
        let raw = RawValue::from_string(text.into()).map_err(|error| error.to_string())?;
        Self::checked(raw, Self::BODY_LIMITS)
    }

    fn checked(raw: Box<RawValue>, limits: JsonLimits) -> Result<Self, String> {
        let bytes = raw.get().as_bytes();
        let opened = bytes.iter().filter(|&&byte| byte == b'[' || byte == b'{').count();
        // No early exit and no branches, so that the compiler can vectorize the loop.
        let pairs = bytes.iter().zip(bytes.iter().skip(1));
        let exponents = pairs
            .fold(false, |seen, (before, byte)| seen | (before.is_ascii_digit() & (byte | 0x20 == b'e')));
        // Nearly every value passes these cheap tests and is not scanned in detail.
        if opened > limits.depth || exponents || raw.get().contains("\\u") {
            scan(bytes, limits)?;
        }
        Ok(Self(raw))
    }

    /// The JSON text.
    pub fn as_str(&self) -> &str {
        self.0.get()
    }
}

/// Checks that a whole body, which is valid JSON, fits the payload of an event. Each of its values can be within its
/// limit while all values together exceed that of the body.
pub(crate) fn check_body(body: &[u8]) -> Result<(), String> {
    let pairs = body.iter().zip(body.iter().skip(1));
    let exponents =
        pairs.fold(false, |seen, (before, byte)| seen | (before.is_ascii_digit() & (byte | 0x20 == b'e')));
    if exponents { scan(body, Json::BODY_LIMITS) } else { Ok(()) }
}

/// A time, read from RFC 3339.
struct Time(DateTime<Utc>);

impl<'de> Deserialize<'de> for Time {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = deserializer.deserialize_string(StringVisitor)?;
        text.parse()
            .map(Self)
            .map_err(|_| de::Error::custom("is not a time in RFC 3339, such as 2026-01-31T12:00:00Z"))
    }
}

/// An optional time, in the years that both PostgreSQL and RFC 3339 support: 1 to 9999.
pub(crate) fn time<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<DateTime<Utc>>, D::Error> {
    let time = Option::<Time>::deserialize(deserializer)?.map(|Time(time)| time);
    match time {
        Some(time) if !(1..=9999).contains(&time.year()) => {
            Err(de::Error::custom(format!("is in the year {}; it must be from 1 to 9999", time.year())))
        }
        Some(_) | None => Ok(time),
    }
}

/// Checks strings, escapes, nesting and numbers of a text that is known to be valid JSON.
fn scan(json: &[u8], limits: JsonLimits) -> Result<(), String> {
    let (mut depth, mut in_string, mut expansion, mut at) = (0_usize, false, 0_usize, 0);
    while let Some(&byte) = json.get(at) {
        match byte {
            b'\\' => {
                match json.get(at + 1..at + 6) {
                    Some(b"u0000") => return Err(NUL.to_owned()),
                    Some(escape) if is_surrogate(escape) => at = paired(json, at)?,
                    Some(_) | None => {}
                }
                at += 1;
            }
            b'"' => in_string = !in_string,
            b'[' | b'{' if !in_string => {
                depth += 1;
                if depth > limits.depth {
                    return Err(format!("nests deeper than {} levels", limits.depth));
                }
            }
            b']' | b'}' if !in_string => depth -= 1,
            // Outside of strings, an e after a digit starts an exponent; the e of true and false follows a letter.
            b'e' | b'E' if !in_string && at > 0 && json[at - 1].is_ascii_digit() => {
                expansion = expansion.saturating_add(exponent(&json[at + 1..]));
                if expansion > limits.expansion {
                    return Err(format!(
                        "holds numbers that take more than {} further digits when written out",
                        limits.expansion
                    ));
                }
            }
            _ => {}
        }
        at += 1;
    }
    Ok(())
}

/// The absolute value of the exponent that a text starts with.
fn exponent(text: &[u8]) -> usize {
    let digits =
        text.iter().skip_while(|byte| matches!(byte, b'+' | b'-')).take_while(|byte| byte.is_ascii_digit());
    digits.fold(0, |size, digit| size.saturating_mul(10).saturating_add(usize::from(digit - b'0')))
}

fn is_surrogate(escape: &[u8]) -> bool {
    matches!(escape, [b'u', b'd' | b'D', b'8'..=b'9' | b'a'..=b'f' | b'A'..=b'F', ..])
}

/// The position of the second half of a surrogate pair that starts at `at`; PostgreSQL rejects half a pair.
fn paired(json: &[u8], at: usize) -> Result<usize, String> {
    let high = |escape: &[u8]| matches!(escape, [_, _, b'8' | b'9' | b'a' | b'b' | b'A' | b'B', ..]);
    match (json.get(at + 1..at + 6), json.get(at + 6), json.get(at + 7..at + 12)) {
        (Some(first), Some(b'\\'), Some(second)) if high(first) && is_surrogate(second) && !high(second) => {
            Ok(at + 6)
        }
        _ => Err("contains half of a UTF-16 surrogate pair".to_owned()),
    }
}

impl Serialize for Json {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.0.serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Json {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Self::checked(Box::<RawValue>::deserialize(deserializer)?, Self::VALUE_LIMITS)
            .map_err(de::Error::custom)
    }
}

impl JsonSchema for Json {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> Cow<'static, str> {
        "Json".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!(true)
    }
}

/// A JSON object, with the limits of [`Json`]. The default is `{}`.
#[derive(Clone, Debug, Serialize)]
#[serde(transparent)]
pub struct JsonObject(pub(crate) Json);

impl JsonObject {
    /// Checks that the text is one JSON object within the limits.
    ///
    /// # Errors
    /// A sentence that names what is wrong.
    pub fn new(text: impl Into<String>) -> Result<Self, String> {
        Self::checked(Json::new(text)?)
    }

    fn checked(json: Json) -> Result<Self, String> {
        // A RawValue has no surrounding white space.
        if json.as_str().starts_with('{') { Ok(Self(json)) } else { Err("must be a JSON object".to_owned()) }
    }

    /// The JSON text.
    pub fn as_str(&self) -> &str {
        self.0.as_str()
    }
}

impl Default for JsonObject {
    fn default() -> Self {
        // An empty map always serialises.
        let empty = serde_json::value::to_raw_value(&serde_json::Map::new());
        Self(Json(empty.unwrap_or_else(|_| RawValue::NULL.to_owned())))
    }
}

impl<'de> Deserialize<'de> for JsonObject {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Self::checked(Json::deserialize(deserializer)?).map_err(de::Error::custom)
    }
}

impl JsonSchema for JsonObject {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> Cow<'static, str> {
        "JsonObject".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "type": "object" })
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
