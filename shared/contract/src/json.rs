//! Free-form JSON values, and what PostgreSQL could not store of them.

use std::borrow::Cow;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::de::{self, Deserializer};
use serde::{Deserialize, Serialize, Serializer};
use serde_json::value::RawValue;

use crate::limit;
use crate::value::NUL;

/// Any JSON value, kept as its original text: PostgreSQL parses it, and nothing else does.
///
/// It contains no NUL character. In a request or query it nests at most [`limit::JSON_DEPTH`] levels, its numbers grow
/// by at most [`limit::JSON_EXPANSION`] digits when they are written without an exponent, and no object in it has a key
/// twice.
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

    /// Checks that the text is one JSON value within the limits of a body, and that no object has a key twice.
    ///
    /// # Errors
    /// A sentence that names what is wrong.
    pub fn new(text: impl Into<String>) -> Result<Self, String> {
        let json = Self::recorded(text)?;
        check_keys(json.as_str())?;
        Ok(json)
    }

    /// As [`Json::new`], for a text that memfleet has checked or stored before: its keys are not compared again.
    ///
    /// # Errors
    /// A sentence that names what is wrong.
    pub fn recorded(text: impl Into<String>) -> Result<Self, String> {
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
        let long = bytes.len() > limit::FRACTION_DIGITS;
        if opened > limits.depth || exponents || long || raw.get().contains("\\u") {
            scan(bytes, limits)?;
        }
        Ok(Self(raw))
    }

    /// The JSON text.
    pub fn as_str(&self) -> &str {
        self.0.get()
    }
}

/// Reads a member that is there: `null` is a value, and no absence.
pub(crate) fn present<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Json>, D::Error> {
    Json::deserialize(deserializer).map(Some)
}

/// Checks that a whole body, which is valid JSON, fits the payload of an event. Each of its values can be within its
/// limit while all values together exceed that of the body.
pub(crate) fn check_body(body: &[u8]) -> Result<(), String> {
    let pairs = body.iter().zip(body.iter().skip(1));
    let exponents =
        pairs.fold(false, |seen, (before, byte)| seen | (before.is_ascii_digit() & (byte | 0x20 == b'e')));
    if exponents { scan(body, Json::BODY_LIMITS) } else { Ok(()) }
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
            b'0'..=b'9' if !in_string => {
                let number = Number::at_start_of(&json[at..]);
                expansion = expansion.saturating_add(number.exponent.unsigned_abs());
                if expansion > limits.expansion {
                    return Err(format!(
                        "holds numbers that take more than {} further digits when written out",
                        limits.expansion
                    ));
                }
                number.check()?;
                at += number.length - 1;
            }
            _ => {}
        }
        at += 1;
    }
    Ok(())
}

/// A number without its sign.
struct Number {
    /// Its bytes.
    length: usize,
    /// The digits before and after the decimal point.
    whole: usize,
    fraction: usize,
    /// Saturated, but never `isize::MIN`.
    exponent: isize,
}

impl Number {
    /// The number that a text starts with.
    fn at_start_of(text: &[u8]) -> Self {
        let digits = |from: usize| {
            text.get(from..).unwrap_or_default().iter().take_while(|byte| byte.is_ascii_digit()).count()
        };
        let whole = digits(0);
        let fraction = if text.get(whole) == Some(&b'.') { digits(whole + 1) } else { 0 };
        let mut length = if fraction > 0 { whole + 1 + fraction } else { whole };
        let mut exponent = 0_isize;
        if matches!(text.get(length), Some(b'e' | b'E')) {
            let sign = text.get(length + 1).filter(|byte| matches!(byte, b'+' | b'-'));
            let start = length + 1 + usize::from(sign.is_some());
            length = start + digits(start);
            let size = text[start..length].iter().fold(0_isize, |size, digit| {
                size.saturating_mul(10).saturating_add_unsigned(usize::from(digit - b'0'))
            });
            exponent = if sign == Some(&b'-') { -size } else { size };
        }
        Self { length, whole, fraction, exponent }
    }

    /// Whether PostgreSQL's `numeric` can hold it.
    fn check(&self) -> Result<(), String> {
        let whole = self.exponent.saturating_add_unsigned(self.whole);
        let fraction = self.exponent.saturating_neg().saturating_add_unsigned(self.fraction);
        let exceeds = |digits: isize, most: usize| usize::try_from(digits).is_ok_and(|digits| digits > most);
        if exceeds(whole, limit::WHOLE_DIGITS) || exceeds(fraction, limit::FRACTION_DIGITS) {
            return Err(format!(
                "holds a number with more than {} digits before or {} after the decimal point",
                limit::WHOLE_DIGITS,
                limit::FRACTION_DIGITS
            ));
        }
        Ok(())
    }
}

/// Rejects a text, known to be valid JSON, with an object that has a key twice. PostgreSQL keeps the last of its values,
/// a subscriber of the event may take the first one.
fn check_keys(json: &str) -> Result<(), String> {
    // Most values are no objects, or have a single key.
    if json.matches(':').nth(1).is_none() {
        return Ok(());
    }
    let bytes = json.as_bytes();
    // The keys of the open objects, and where those of each begin.
    let (mut keys, mut objects): (Vec<Cow<'_, str>>, Vec<usize>) = (Vec::new(), Vec::new());
    let mut at = 0;
    while let Some(&byte) = bytes.get(at) {
        match byte {
            b'{' => objects.push(keys.len()),
            b'}' => {
                let start = objects.pop().unwrap_or(0);
                let own = keys.get_mut(start..).unwrap_or_default();
                own.sort_unstable();
                if own.windows(2).any(|two| two[0] == two[1]) {
                    return Err("has an object with the same key twice".to_owned());
                }
                keys.truncate(start);
            }
            b'"' => {
                let end = end_of_string(json, at);
                let next = bytes[end..].iter().find(|byte| !byte.is_ascii_whitespace());
                if next == Some(&b':') {
                    keys.push(key(&json[at..end]));
                }
                at = end - 1;
            }
            _ => {}
        }
        at += 1;
    }
    Ok(())
}

/// The position after the string that starts at `at`.
fn end_of_string(json: &str, at: usize) -> usize {
    let mut end = at + 1;
    // Searching for a character is faster than looking at each byte, and few strings have escapes.
    while let Some(found) = json[end..].find('"') {
        let quote = end + found;
        let backslashes = json.as_bytes()[..quote].iter().rev().take_while(|&&byte| byte == b'\\').count();
        if backslashes % 2 == 0 {
            return quote + 1;
        }
        end = quote + 1;
    }
    json.len()
}

/// The text of a string with its quotes. A key can be written with and without escapes.
fn key(string: &str) -> Cow<'_, str> {
    match string.contains('\\') {
        true => serde_json::from_str(string).map_or(Cow::Borrowed(string), Cow::Owned),
        false => Cow::Borrowed(&string[1..string.len() - 1]),
    }
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
        let json = Self::checked(Box::<RawValue>::deserialize(deserializer)?, Self::VALUE_LIMITS);
        let json = json.map_err(de::Error::custom)?;
        check_keys(json.as_str()).map_err(de::Error::custom)?;
        Ok(json)
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
