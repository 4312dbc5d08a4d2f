use serde::de::DeserializeOwned;
use serde_json::Value;
use serde_path_to_error::{Path, Segment};

use crate::malformed::Malformed;
use crate::suggest::nearest;

/// The most characters of a wrong value that are repeated.
const ECHOED_CHARS: usize = 40;

/// Decodes a body that was rejected a second time, slowly, to find the field at fault.
pub(crate) fn locate<T: DeserializeOwned>(body: &[u8]) -> Malformed {
    let mut reader = serde_json::Deserializer::from_slice(body);
    let error = match serde_path_to_error::deserialize::<_, T>(&mut reader) {
        Err(error) => error,
        Ok(_) => return Malformed::new("body", "has more after the JSON object"),
    };
    // A key that is no text at all shows as `?`.
    let path = error.path().iter().map(ToString::to_string).filter(|segment| segment != "?");
    let path = path.fold(String::new(), |path, segment| match path.as_str() {
        "" => segment,
        _ if segment.starts_with('[') => path + &segment,
        _ => format!("{path}.{segment}"),
    });
    let message = error.inner().to_string();
    let (problem, place) = split_place(&message);
    if error.inner().is_eof() {
        // The path would be that of the field before.
        return Malformed::new("body", format!("is not valid JSON: {problem}{place}"));
    }
    let fault = match problem.strip_prefix(UNKNOWN_VARIANT) {
        Some(rest) => Fault::of_enumeration(rest, error.path(), body),
        // JSON has no largest number and no deepest nesting: serde_json has.
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

/// The sentence, and ` at line 1 column 2`.
fn split_place(message: &str) -> (&str, &str) {
    message.rfind(" at line ").map_or((message, ""), |at| message.split_at(at))
}

/// How serde starts the message about an unknown value of an enumeration; the value follows.
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

    /// An unknown value of an enumeration. It is repeated if it is a short word, so that a misspelling is seen; anything else
    /// may be free text or a secret.
    fn of_enumeration(rest: &str, path: &Path, body: &[u8]) -> Self {
        let value = rest.rsplit_once(", expected ").and_then(|(value, _)| value.strip_suffix('`'));
        let is_given = |word: &&str| value_at(body, path).is_some_and(|value| value == **word);
        let shown = value.filter(|value| is_short_word(value)).filter(is_given);
        let shown = shown.map_or_else(|| "the value".to_owned(), |word| format!("{word:?}"));
        Self::plain(format!("{shown} is not allowed; {}", expected(rest)))
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

/// Whether a value is fit to be repeated: 1 to 40 ASCII letters, digits, `-` and `_`.
fn is_short_word(value: &str) -> bool {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_';
    (1..=ECHOED_CHARS).contains(&value.len()) && value.bytes().all(allowed)
}

/// The value that a body has at a path. Of a field that is given twice, the second value.
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

/// The part of the message that lists what is expected: this crate, serde and the standard library wrote it. The publisher's
/// own text stands before it.
fn expected(message: &str) -> String {
    match message.rsplit_once(", expected ").or_else(|| message.rsplit_once(", there are ")) {
        // A publisher knows integers, and not Rust's types of them.
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
