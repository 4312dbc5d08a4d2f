use std::fmt;

use contract::SCHEDULE_ROOT;
use serde_json::Value;

/// A stream, a consumer or a schedule.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// A stream by name.
    Stream(String),
    /// A consumer by its stream and name.
    Consumer(String, String),
    /// The schedule of this job: a message of the stream JOBS.
    Schedule(String),
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Stream(name) => write!(f, "stream {name}"),
            Self::Consumer(stream, name) => write!(f, "consumer {stream}/{name}"),
            Self::Schedule(job) => write!(f, "schedule {SCHEDULE_ROOT}.{job}"),
        }
    }
}

/// One difference between a broker and a topology. It displays as one line: `+ stream CONTEXT`, or
/// `~ stream CONTEXT max_age: 1d -> 7d`.
#[derive(Clone, Debug, PartialEq)]
pub struct Change {
    /// What differs.
    pub target: Target,
    /// The field that differs; none if the broker lacks it altogether.
    pub field: Option<FieldChange>,
}

/// A field that differs.
#[derive(Clone, Debug, PartialEq)]
pub struct FieldChange {
    /// Its name in the JetStream API.
    pub name: String,
    /// The broker's value; null for a default that it omits.
    pub from: Value,
    /// The document's value; null as above.
    pub to: Value,
}

impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.field {
            None => write!(f, "+ {}", self.target),
            Some(field) => write!(f, "~ {} {field}", self.target),
        }
    }
}

impl fmt::Display for FieldChange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { name, from, to } = self;
        match (from, to) {
            (Value::Array(from), Value::Array(to)) => write!(f, "{name}: {}", difference(from, to)),
            (from, to) => write!(f, "{name}: {} -> {}", shown(name, from), shown(name, to)),
        }
    }
}

/// Long lists are compared by what is added and removed.
fn difference(from: &[Value], to: &[Value]) -> String {
    let gone = from.iter().filter(|item| !to.contains(item)).map(|item| format!("-{}", plain(item)));
    let new = to.iter().filter(|item| !from.contains(item)).map(|item| format!("+{}", plain(item)));
    let parts: Vec<String> = gone.chain(new).collect();
    if parts.is_empty() { "another order".to_owned() } else { parts.join(" ") }
}

fn plain(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}

/// Durations of the JetStream API, in nanoseconds.
const NANOSECONDS: [&str; 7] = [
    "max_age",
    "duplicate_window",
    "ack_wait",
    "max_expires",
    "inactive_threshold",
    "idle_heartbeat",
    "subject_delete_marker_ttl",
];
const BYTES: [&str; 2] = ["max_bytes", "max_msg_size"];

fn shown(field: &str, value: &Value) -> String {
    match value.as_i64() {
        Some(number) if NANOSECONDS.contains(&field) => duration(number),
        Some(number) if BYTES.contains(&field) => bytes(number),
        Some(number) => number.to_string(),
        None if value.is_null() => "default".to_owned(),
        None => plain(value),
    }
}

fn duration(nanoseconds: i64) -> String {
    const UNITS: [(i64, &str); 6] = [
        (86_400_000_000_000, "d"),
        (3_600_000_000_000, "h"),
        (60_000_000_000, "m"),
        (1_000_000_000, "s"),
        (1_000_000, "ms"),
        (1, "ns"),
    ];
    in_units(nanoseconds, &UNITS).unwrap_or_else(|| "none".to_owned())
}

fn bytes(count: i64) -> String {
    const UNITS: [(i64, &str); 4] = [(1 << 30, " GiB"), (1 << 20, " MiB"), (1 << 10, " KiB"), (1, " B")];
    in_units(count, &UNITS).unwrap_or_else(|| "unlimited".to_owned())
}

/// In the largest unit that divides it; none unless the number is positive.
fn in_units(number: i64, units: &[(i64, &str)]) -> Option<String> {
    let (size, name) = units.iter().find(|(size, _)| number > 0 && number % size == 0)?;
    Some(format!("{}{name}", number / size))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn line(name: &str, from: Value, to: Value) -> String {
        let field = FieldChange { name: name.to_owned(), from, to };
        Change { target: Target::Stream("CONTEXT".to_owned()), field: Some(field) }.to_string()
    }

    #[test]
    fn a_change_is_one_line() {
        let day = 86_400_000_000_000_i64;
        assert_eq!(line("max_age", json!(day), json!(7 * day)), "~ stream CONTEXT max_age: 1d -> 7d");
        assert_eq!(
            line("max_age", json!(0), json!(90_000_000_000_i64)),
            "~ stream CONTEXT max_age: none -> 90s"
        );
        assert_eq!(
            line("max_bytes", json!(-1), json!(8_i64 << 30)),
            "~ stream CONTEXT max_bytes: unlimited -> 8 GiB"
        );
        assert_eq!(
            line("storage", json!("memory"), json!("file")),
            "~ stream CONTEXT storage: memory -> file"
        );
        assert_eq!(
            line("deny_purge", json!(true), Value::Null),
            "~ stream CONTEXT deny_purge: true -> default"
        );
        assert_eq!(
            line("subjects", json!(["a", "b"]), json!(["b", "c"])),
            "~ stream CONTEXT subjects: -a +c"
        );
        assert_eq!(
            line("subjects", json!(["a", "b"]), json!(["b", "a"])),
            "~ stream CONTEXT subjects: another order"
        );
        let made =
            Change { target: Target::Consumer("CONTEXT".to_owned(), "writer".to_owned()), field: None };
        assert_eq!(made.to_string(), "+ consumer CONTEXT/writer");
    }
}
