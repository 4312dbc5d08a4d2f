use serde::de::DeserializeOwned;
use serde_json::Value;
use serde_path_to_error::{Path, Segment};

use crate::malformed::Malformed;
use crate::suggest::nearest;

/// Decodes a rejected body again, with a slower decoder that tracks the path, to find the field at fault.
pub(crate) fn locate<T: DeserializeOwned>(body: &[u8]) -> Malformed {
    let mut reader = serde_json::Deserializer::from_slice(body);
    let error = match serde_path_to_error::deserialize::<_, T>(&mut reader) {
        Err(error) => error,
        Ok(_) => return Malformed::new("body", "has more after the JSON object"),
    };
    // serde_path_to_error shows a key that is not a string as `?`.
    let path = error.path().iter().map(ToString::to_string).filter(|segment| segment != "?");
    let path = path.fold(String::new(), |path, segment| match path.as_str() {
        "" => segment,
        _ if segment.starts_with('[') => path + &segment,
        _ => format!("{path}.{segment}"),
    });
    let message = error.inner().to_string();
    let (problem, place) = split_place(&message);
    if error.inner().is_eof() {
        // At the end of the input, the path is that of the previous field.
        return Malformed::new("body", format!("is not valid JSON: {problem}{place}"));
    }
    let fault = match problem.strip_prefix(UNKNOWN_VARIANT) {
        Some(rest) => Fault::of_enumeration(rest, error.path(), body),
        // Limits of serde_json, not of the JSON syntax.
        None if matches!(problem, "number out of range" | "recursion limit exceeded") => {
            Fault::plain(problem.to_owned())
        }
        None if error.inner().is_syntax() => Fault::plain(format!("is not valid JSON: {problem}")),
        None => Fault::read(problem),
    };
    let field = match fault.field {
        // The path of an unknown field ends with it; that of a missing one does not.
        Some(field) if path.is_empty() => field.to_owned(),
        Some(field) if fault.is_missing => format!("{path}.{field}"),
        Some(_) | None if path.is_empty() => "body".to_owned(),
        Some(_) | None => path,
    };
    let place = if error.inner().is_data() { "" } else { place };
    Malformed::new(field, format!("{}{place}", fault.problem))
}

/// Splits a message of serde_json into the sentence and its position, such as ` at line 1 column 2`.
fn split_place(message: &str) -> (&str, &str) {
    message.rfind(" at line ").map_or((message, ""), |at| message.split_at(at))
}

/// The start of serde's message about an unknown value of an enumeration; the value follows.
const UNKNOWN_VARIANT: &str = "unknown variant `";

/// A problem that serde reports, without the value that it is about, which may be a secret.
struct Fault<'a> {
    field: Option<&'a str>,
    is_missing: bool,
    problem: String,
}

impl<'a> Fault<'a> {
    fn plain(problem: String) -> Self {
        Self { field: None, is_missing: false, problem }
    }

    /// An unknown value of an enumeration. Only a misspelling of an allowed value is repeated: anything else may be text
    /// or a secret in the wrong field.
    fn of_enumeration(rest: &str, path: &Path, body: &[u8]) -> Self {
        let expected = expected(rest);
        let allowed = expected.split('`').skip(1).step_by(2);
        let value = rest.rsplit_once(", expected ").and_then(|(value, _)| value.strip_suffix('`'));
        let is_misspelt = |word: &&str| nearest(&word.to_ascii_lowercase(), allowed.clone()).is_some();
        let is_given = |word: &&str| value_at(body, path).is_some_and(|value| value == **word);
        let shown = value.filter(is_misspelt).filter(is_given);
        let shown = shown.map_or_else(|| "the value".to_owned(), |word| format!("{word:?}"));
        Self::plain(format!("{shown} is not allowed; {expected}"))
    }

    fn read(message: &'a str) -> Self {
        if let Some(field) = quoted(message, "missing field `", "`") {
            return Self { field: Some(field), is_missing: true, ..Self::plain("is missing".to_owned()) };
        }
        if let Some(field) = quoted(message, "duplicate field `", "`") {
            return Self { field: Some(field), ..Self::plain("is given twice".to_owned()) };
        }
        if let Some(rest) = message.strip_prefix("unknown field `") {
            return Self::plain(format!("is unknown; {}", expected_field(rest)));
        }
        if let Some(found) = message.strip_prefix("invalid type: ") {
            return Self::plain(format!("is {}; {}", kind(found), expected(message)));
        }
        if message.starts_with("invalid value: ") || message.starts_with("invalid length ") {
            return Self::plain(format!("is out of range; {}", expected(message)));
        }
        if message.starts_with("UUID parsing failed") {
            return Self::plain("is not a UUID, such as 018f2c5e-7b1a-7c3d-9e4f-5a6b7c8d9e0f".to_owned());
        }
        Self::plain(message.to_owned())
    }
}

/// The value at a path of a body. For a field that occurs twice, the second value.
fn value_at(body: &[u8], path: &Path) -> Option<Value> {
    let mut value: Value = serde_json::from_slice(body).ok()?;
    for segment in path {
        let inner = match segment {
            Segment::Map { key } => value.get_mut(key),
            Segment::Seq { index } => value.get_mut(*index),
            Segment::Enum { .. } | Segment::Unknown => None,
        };
        value = inner?.take();
    }
    Some(value)
}

fn quoted<'a>(message: &'a str, before: &str, after: &str) -> Option<&'a str> {
    message.strip_prefix(before)?.strip_suffix(after)
}

/// The known fields, and the one that was probably meant.
fn expected_field(rest: &str) -> String {
    let expected = expected(rest);
    let (Some((field, _)), known) = (rest.split_once("`, "), expected.split('`').skip(1).step_by(2)) else {
        return expected;
    };
    match nearest(field, known) {
        Some(near) => format!("did you mean `{near}`? ({expected})"),
        None => expected,
    }
}

/// The part of a message that lists what is expected. It is written by this crate, serde or the standard library; the
/// publisher's own text comes before it.
fn expected(message: &str) -> String {
    match message.rsplit_once(", expected ").or_else(|| message.rsplit_once(", there are ")) {
        // Publishers need not know Rust's integer types.
        Some((_, "i32" | "i64" | "u32")) => "expected an integer".to_owned(),
        Some((_, expected)) => format!("expected {expected}"),
        None => "something else is expected".to_owned(),
    }
}

fn kind(found: &str) -> &'static str {
    const KINDS: [(&str, &str); 7] = [
        ("string", "a string"),
        ("integer", "an integer"),
        ("floating point", "a number with a fraction"),
        ("boolean", "true or false"),
        ("null", "null"),
        ("map", "an object"),
        ("sequence", "an array"),
    ];
    KINDS.iter().find(|(start, _)| found.starts_with(start)).map_or("of the wrong type", |(_, name)| name)
}
