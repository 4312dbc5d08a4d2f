use serde::de::DeserializeOwned;

use crate::malformed::Malformed;

/// Reads a body that cannot be read once more, slowly, to find which field is at fault.
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
        return Malformed::new("body", format!("{problem}{place}"));
    }
    let fault = Fault::read(problem);
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

/// What serde says, without the value that it says it about: it may be a secret.
struct Fault<'a> {
    field: Option<&'a str>,
    is_missing: bool,
    problem: String,
}

impl<'a> Fault<'a> {
    fn read(message: &'a str) -> Self {
        let plain = |problem: String| Fault { field: None, is_missing: false, problem };
        if let Some(field) = quoted(message, "missing field `", "`") {
            return Fault { field: Some(field), is_missing: true, ..plain("is missing".to_owned()) };
        }
        if let Some(field) = quoted(message, "duplicate field `", "`") {
            return Fault { field: Some(field), ..plain("is given twice".to_owned()) };
        }
        if message.starts_with("unknown field `") {
            return plain(format!("is unknown; {}", expected(message)));
        }
        if message.starts_with("unknown variant `") {
            return plain(format!("is none of the values it may have; {}", expected(message)));
        }
        if let Some(found) = message.strip_prefix("invalid type: ") {
            return plain(format!("is {}; {}", kind(found), expected(message)));
        }
        if message.starts_with("invalid value: ") || message.starts_with("invalid length ") {
            return plain(format!("is out of range; {}", expected(message)));
        }
        plain(message.to_owned())
    }
}

fn quoted<'a>(message: &'a str, before: &str, after: &str) -> Option<&'a str> {
    message.strip_prefix(before)?.strip_suffix(after)
}

/// The part of the message that we and the standard library wrote; what the publisher wrote stands before it.
fn expected(message: &str) -> String {
    match message.rsplit_once(", expected ").or_else(|| message.rsplit_once(", there are ")) {
        // The standard library's names of numbers say nothing to a publisher.
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
