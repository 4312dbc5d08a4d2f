//! JSON values with exact numbers.

use std::collections::BTreeMap;
use std::fmt::{self, Write};

use serde::de::{Deserialize, Deserializer, Error as _};
use serde::ser::{Error as _, Serialize, Serializer};
use serde_json::value::RawValue;

/// The deepest nesting that is read at all. `serde_json` refuses more by itself.
const DEEPEST: usize = 128;

/// A JSON value. A number is kept as it is written: PostgreSQL's have more digits than a double.
///
/// It can be read and written by `serde_json` only.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Json {
    /// `null`, which is a value and not absence.
    Null,
    /// A truth value.
    Bool(bool),
    /// A number, by its text.
    Number(String),
    /// A string.
    Text(String),
    /// An array.
    List(Vec<Json>),
    /// An object.
    Object(BTreeMap<String, Json>),
}

/// Why a text is not accepted.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a JSON value that can be synced: {0}")]
pub struct JsonError(String);

impl Json {
    /// Reads a text. Of members of the same name, the last one counts, as in PostgreSQL.
    ///
    /// # Errors
    /// If it is not JSON, or nests deeper than 128 levels.
    pub fn parse(text: &str) -> Result<Self, JsonError> {
        // Whatever follows is known to be valid.
        let raw: &RawValue = serde_json::from_str(text).map_err(|error| JsonError(error.to_string()))?;
        let mut reader = Reader { rest: raw.get() };
        reader.value(0)
    }

    /// An integer.
    pub fn integer(value: i128) -> Self {
        Self::Number(value.to_string())
    }

    /// The integer that a number is, if it is one and written without fraction and exponent.
    pub fn as_integer(&self) -> Option<i128> {
        match self {
            Self::Number(text) => text.parse().ok(),
            Self::Null | Self::Bool(_) | Self::Text(_) | Self::List(_) | Self::Object(_) => None,
        }
    }

    /// The string.
    pub fn as_text(&self) -> Option<&str> {
        match self {
            Self::Text(text) => Some(text),
            Self::Null | Self::Bool(_) | Self::Number(_) | Self::List(_) | Self::Object(_) => None,
        }
    }

    /// How many arrays and objects are nested.
    pub fn depth(&self) -> usize {
        match self {
            Self::Null | Self::Bool(_) | Self::Number(_) | Self::Text(_) => 0,
            Self::List(items) => 1 + items.iter().map(Self::depth).max().unwrap_or(0),
            Self::Object(members) => 1 + members.values().map(Self::depth).max().unwrap_or(0),
        }
    }
}

impl fmt::Display for Json {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Null => f.write_str("null"),
            Self::Bool(value) => write!(f, "{value}"),
            Self::Number(text) => f.write_str(text),
            Self::Text(text) => quote(text, f),
            Self::List(items) => {
                f.write_char('[')?;
                for (at, item) in items.iter().enumerate() {
                    write!(f, "{}{item}", if at == 0 { "" } else { "," })?;
                }
                f.write_char(']')
            }
            Self::Object(members) => {
                f.write_char('{')?;
                for (at, (name, value)) in members.iter().enumerate() {
                    f.write_str(if at == 0 { "" } else { "," })?;
                    quote(name, f)?;
                    write!(f, ":{value}")?;
                }
                f.write_char('}')
            }
        }
    }
}

fn quote(text: &str, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    f.write_str(&serde_json::to_string(text).map_err(|_| fmt::Error)?)
}

impl Serialize for Json {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        RawValue::from_string(self.to_string()).map_err(S::Error::custom)?.serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Json {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let raw = Box::<RawValue>::deserialize(deserializer)?;
        Self::parse(raw.get()).map_err(D::Error::custom)
    }
}

/// Reads a field that may be absent, and tells that apart from `null`.
pub(crate) fn present<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Json>, D::Error> {
    Json::deserialize(deserializer).map(Some)
}

struct Reader<'a> {
    rest: &'a str,
}

impl<'a> Reader<'a> {
    fn skip_space(&mut self) {
        self.rest = self.rest.trim_start_matches([' ', '\t', '\n', '\r']);
    }

    fn take(&mut self, bytes: usize) -> &'a str {
        let (taken, rest) = self.rest.split_at_checked(bytes).unwrap_or((self.rest, ""));
        self.rest = rest;
        taken
    }

    fn eat(&mut self, byte: char) -> bool {
        self.skip_space();
        let found = self.rest.starts_with(byte);
        if found {
            self.take(1);
        }
        found
    }

    fn value(&mut self, depth: usize) -> Result<Json, JsonError> {
        if depth > DEEPEST {
            return Err(JsonError(format!("nests deeper than {DEEPEST} levels")));
        }
        self.skip_space();
        match self.rest.as_bytes().first() {
            Some(b'{') => self.object(depth),
            Some(b'[') => self.list(depth),
            Some(b'"') => Ok(Json::Text(self.string()?)),
            Some(_) => Ok(self.word()),
            None => Err(JsonError("it ends early".into())),
        }
    }

    fn object(&mut self, depth: usize) -> Result<Json, JsonError> {
        self.take(1);
        let mut members = BTreeMap::new();
        while !self.eat('}') {
            self.eat(',');
            self.skip_space();
            let name = self.string()?;
            self.eat(':');
            members.insert(name, self.value(depth + 1)?);
        }
        Ok(Json::Object(members))
    }

    fn list(&mut self, depth: usize) -> Result<Json, JsonError> {
        self.take(1);
        let mut items = Vec::new();
        while !self.eat(']') {
            self.eat(',');
            items.push(self.value(depth + 1)?);
        }
        Ok(Json::List(items))
    }

    fn string(&mut self) -> Result<String, JsonError> {
        let (mut end, mut escaped) = (1, false);
        for byte in self.rest.bytes().skip(1) {
            end += 1;
            match byte {
                _ if escaped => escaped = false,
                b'\\' => escaped = true,
                b'"' => break,
                _ => {}
            }
        }
        serde_json::from_str(self.take(end)).map_err(|error| JsonError(error.to_string()))
    }

    fn word(&mut self) -> Json {
        let end = self.rest.find([',', ']', '}', ' ', '\t', '\n', '\r']).unwrap_or(self.rest.len());
        match self.take(end) {
            "null" => Json::Null,
            "true" => Json::Bool(true),
            "false" => Json::Bool(false),
            number => Json::Number(number.into()),
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn numbers_keep_all_their_digits() {
        for text in ["0.1234567890123456789012", "123456789012345678901234567890", "-1e400", "1.0"] {
            assert_eq!(Json::parse(text).unwrap(), Json::Number(text.into()));
            assert_eq!(Json::parse(text).unwrap().to_string(), text);
        }
        assert_eq!(Json::parse("-5").unwrap().as_integer(), Some(-5));
        assert_eq!(Json::parse("5.0").unwrap().as_integer(), None);
    }

    #[test]
    fn text_that_is_not_json_is_refused() {
        for text in ["", "{", "[1,]", "{\"a\" 1}", "nul", "01", "\"\\u12\"", "1 2", "{\"a\":1,}"] {
            assert!(Json::parse(text).is_err(), "{text}");
        }
        let deep = format!("{}{}", "[".repeat(200), "]".repeat(200));
        assert!(Json::parse(&deep).is_err());
    }

    #[test]
    fn null_is_not_absence() {
        #[derive(serde::Serialize, serde::Deserialize, PartialEq, Debug)]
        struct Holder {
            #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "present")]
            value: Option<Json>,
        }
        for holder in [Holder { value: None }, Holder { value: Some(Json::Null) }] {
            let text = serde_json::to_string(&holder).unwrap();
            assert_eq!(serde_json::from_str::<Holder>(&text).unwrap(), holder);
        }
    }

    fn any_json() -> impl Strategy<Value = Json> {
        let leaf = prop_oneof![
            Just(Json::Null),
            any::<bool>().prop_map(Json::Bool),
            any::<i64>().prop_map(|value| Json::integer(value.into())),
            any::<String>().prop_map(Json::Text),
        ];
        leaf.prop_recursive(4, 32, 4, |inner| {
            prop_oneof![
                proptest::collection::vec(inner.clone(), 0..4).prop_map(Json::List),
                proptest::collection::btree_map(any::<String>(), inner, 0..4).prop_map(Json::Object),
            ]
        })
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_again(value in any_json()) {
            prop_assert_eq!(&Json::parse(&value.to_string()).unwrap(), &value);
            let spaced: serde_json::Value = serde_json::from_str(&value.to_string()).unwrap();
            let spaced = serde_json::to_string_pretty(&spaced).unwrap();
            prop_assert_eq!(Json::parse(&spaced).unwrap(), value);
        }

        #[test]
        fn any_text_is_read_or_refused(text in r#"[\[\]{}:,"\\a0-9. -]{0,24}"#) {
            let valid = serde_json::from_str::<&RawValue>(&text).is_ok();
            prop_assert_eq!(Json::parse(&text).is_ok(), valid);
        }
    }
}
