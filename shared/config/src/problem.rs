//! The messages about invalid options. None contains the value of a text option, which may be a secret.

use contract::{nearest, printable};
use figment::error::{Actual, Kind};

/// What serde expects for the options whose wrong values are repeated: numbers and addresses.
const REPEATED: [&str; 5] = ["u32", "u64", "usize", "f64", "socket address"];

/// The option, the problem, and the file or environment variable that the value came from.
pub(crate) fn describe(error: &figment::Error) -> String {
    let option = error.path.join(".");
    let source = error.metadata.as_ref().map_or_else(String::new, |metadata| {
        let place = metadata.source.as_ref().map_or_else(|| metadata.name.to_string(), ToString::to_string);
        format!(" (from {place})")
    });
    let named = if option.is_empty() { "the configuration".to_owned() } else { option };
    printable(&format!("{named}: {}{source}", problem(&error.kind))).into_owned()
}

fn problem(kind: &Kind) -> String {
    if let Kind::UnknownField(name, known) = kind {
        return match nearest(name, known.iter().copied()) {
            Some(near) => format!("there is no option `{name}`; did you mean `{near}`?"),
            None => format!("there is no option `{name}`; expected one of {}", quoted(known)),
        };
    }
    if let Kind::UnknownVariant(value, known) = kind {
        return format!("{value:?} is not allowed; expected one of {}", quoted(known));
    }
    if let Kind::InvalidType(found, expected) | Kind::InvalidValue(found, expected) = kind
        && !REPEATED.contains(&expected.as_str())
    {
        return format!("is {}; expected {expected}", type_of(found));
    }
    // A TOML syntax error quotes the file between its first and its last line, and the quoted line may contain a
    // password.
    let problem = kind.to_string();
    let (mut lines, last) = (problem.lines(), problem.lines().last().unwrap_or_default());
    match lines.next() {
        Some(first) if first != last => format!("{first}: {last}"),
        Some(_) | None => last.to_owned(),
    }
}

fn type_of(found: &Actual) -> &'static str {
    match found {
        Actual::Bool(_) => "true or false",
        Actual::Unsigned(_) | Actual::Signed(_) => "an integer",
        Actual::Float(_) => "a number with a fraction",
        Actual::Char(_) | Actual::Str(_) => "a string",
        Actual::Seq => "an array",
        Actual::Map => "a table",
        Actual::Bytes(_)
        | Actual::Unit
        | Actual::Option
        | Actual::NewtypeStruct
        | Actual::Enum
        | Actual::UnitVariant
        | Actual::NewtypeVariant
        | Actual::TupleVariant
        | Actual::StructVariant
        | Actual::Other(_) => "of another type",
    }
}

fn quoted(names: &[&str]) -> String {
    names.iter().map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", ")
}
