//! Golden messages: the message contract stays backward compatible.
//!
//! `tests/golden/<noun>.<verb>.json` contains a `full` request with every field, a `minimal` one with the required fields only, and
//! the `defaults` that decoding adds to the minimal one.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use contract::{REQUESTS, Request, RequestKind, RequestSubject};
use serde::Deserialize;
use serde_json::{Map, Value};

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Golden {
    full: Map<String, Value>,
    minimal: Map<String, Value>,
    defaults: Map<String, Value>,
}

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden")
}

fn golden(kind: &RequestKind) -> Golden {
    let file = folder().join(format!("{}.json", kind.name()));
    let text = std::fs::read_to_string(&file).unwrap_or_else(|error| panic!("{}: {error}", file.display()));
    serde_json::from_str(&text).unwrap_or_else(|error| panic!("{}: {error}", file.display()))
}

fn decode(kind: &RequestKind, body: &Map<String, Value>) -> Request {
    let subject: RequestSubject = format!("memory.req.simple-chat.{}.42", kind.name()).parse().unwrap();
    let body = serde_json::to_vec(body).unwrap();
    Request::decode(&subject, &body).unwrap_or_else(|error| panic!("{}: {error}", kind.name()))
}

fn encoded(request: &Request) -> Value {
    serde_json::to_value(request).unwrap()
}

#[test]
fn every_kind_has_its_golden_file_and_every_file_its_kind() {
    let files: BTreeSet<String> = std::fs::read_dir(folder())
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    let kinds: BTreeSet<String> = REQUESTS.iter().map(|kind| format!("{}.json", kind.name())).collect();
    assert_eq!(files, kinds);
}

#[test]
fn the_full_request_comes_back_as_it_was() {
    for kind in REQUESTS {
        let full = golden(kind).full;
        let request = decode(kind, &full);
        assert_eq!(request.kind().name(), kind.name());
        assert_eq!(encoded(&request), Value::Object(full), "{}", kind.name());
    }
}

#[test]
fn the_minimal_request_comes_back_with_its_defaults() {
    for kind in REQUESTS {
        let Golden { minimal, defaults, .. } = golden(kind);
        let request = decode(kind, &minimal);
        let mut filled = minimal;
        filled.extend(defaults);
        assert_eq!(encoded(&request), Value::Object(filled.clone()), "{}", kind.name());
        assert_eq!(encoded(&decode(kind, &filled)), Value::Object(filled), "{}: with defaults", kind.name());
    }
}

#[test]
fn every_field_of_the_minimal_request_is_needed() {
    for kind in REQUESTS {
        let minimal = golden(kind).minimal;
        let subject: RequestSubject = format!("memory.req.simple-chat.{}.42", kind.name()).parse().unwrap();
        for field in minimal.keys() {
            let mut without = minimal.clone();
            without.remove(field);
            let error = Request::decode(&subject, &serde_json::to_vec(&without).unwrap()).unwrap_err();
            assert_eq!(error.field, *field, "{}", kind.name());
        }
    }
}

#[test]
fn the_schema_has_the_shape_of_the_golden_messages() {
    for kind in REQUESTS {
        let golden = golden(kind);
        let schema = (kind.schema)(schemars::SchemaGenerator::default());
        let schema = schema.as_object().unwrap();
        let names = |value: Option<&Value>| -> BTreeSet<String> {
            match value {
                Some(Value::Object(properties)) => properties.keys().cloned().collect(),
                Some(Value::Array(items)) => {
                    items.iter().filter_map(|item| item.as_str().map(str::to_owned)).collect()
                }
                _ => BTreeSet::new(),
            }
        };
        let keys = |map: &Map<String, Value>| map.keys().cloned().collect::<BTreeSet<String>>();
        assert_eq!(names(schema.get("properties")), keys(&golden.full), "{}: properties", kind.name());
        assert_eq!(names(schema.get("required")), keys(&golden.minimal), "{}: required", kind.name());
        assert_eq!(schema.get("additionalProperties"), Some(&Value::Bool(false)), "{}", kind.name());
    }
}

#[test]
fn the_event_of_a_request_about_an_agent_or_a_tool_is_addressed_to_it() {
    let addressed: Vec<(String, String)> = REQUESTS
        .iter()
        .filter_map(|kind| {
            let full = golden(kind).full;
            let request = decode(kind, &full);
            let agent = request.facts().target_agent()?;
            let field = full.iter().find(|(_, value)| value.as_str() == Some(agent));
            Some((kind.name(), field.map_or_else(String::new, |(name, _)| name.clone())))
        })
        .collect();
    let expected = [
        ("tool.report", "tool"),
        ("agent.configure", "agent_id"),
        ("agent.retire", "agent_id"),
        ("agent.profile", "agent_id"),
    ];
    let expected: BTreeSet<(String, String)> =
        expected.iter().map(|(kind, field)| ((*kind).to_owned(), (*field).to_owned())).collect();
    assert_eq!(addressed.into_iter().collect::<BTreeSet<_>>(), expected);
}
