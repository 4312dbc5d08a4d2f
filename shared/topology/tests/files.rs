//! The files under `nats/`, which follow from the catalogue.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::collections::BTreeSet;
use std::path::Path;

use contract::REQUESTS;
use serde_json::{Value, json};
use topology::{Service, Topology, TopologyError, documents};

const RENEW: &str = "renew the files with `memfleet nats render --folder nats`";

fn shipped() -> Topology {
    Topology::shipped().unwrap()
}

#[test]
fn the_folder_is_what_the_catalogue_gives() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../nats");
    for document in documents(&Service::shipped().unwrap()).unwrap() {
        let text = std::fs::read_to_string(folder.join(&document.path)).unwrap_or_default();
        assert_eq!(text, document.text, "nats/{}; {RENEW}", document.path);
    }
    assert!(
        Topology::read(&folder).unwrap() == shipped(),
        "nats/ has other files too; {RENEW}, and delete them"
    );
}

#[test]
fn a_stream_takes_exactly_the_nouns_of_its_requests() {
    let request_streams: BTreeSet<&str> = REQUESTS.iter().map(|kind| kind.stream).collect();
    for name in request_streams {
        let nouns: BTreeSet<String> = REQUESTS
            .iter()
            .filter(|kind| kind.stream == name)
            .map(|kind| format!("memory.req.*.{}.>", kind.noun))
            .collect();
        let stream = shipped().streams.into_iter().find(|stream| stream.name == name).unwrap();
        let subjects: BTreeSet<String> = serde_json::from_value(stream.config["subjects"].clone()).unwrap();
        assert_eq!(subjects, nouns, "nats/streams/{name}.json against contract::REQUESTS");
    }
}

#[test]
fn every_stream_is_bounded_and_loses_nothing_when_full() {
    for stream in shipped().streams {
        let field = |name: &str| stream.config.get(name).cloned().unwrap_or(Value::Null);
        assert!(field("max_age").as_i64() > Some(0), "{} max_age", stream.name);
        assert!(field("max_bytes").as_i64() > Some(0), "{} max_bytes", stream.name);
        // A full stream refuses what is held nowhere else. Events are in the database too, and a worker that
        // cannot publish one must not stand still for it. Ticks are repeated, and schedules need it.
        let copies = ["EVENTS", "ADVISORY", "JOBS", "WAKES"].contains(&stream.name.as_str());
        assert_eq!(field("discard"), if copies { "old" } else { "new" }, "{}", stream.name);
        assert_eq!(field("storage"), "file", "{}", stream.name);
        assert_eq!(field("duplicate_window"), json!(600_000_000_000_i64), "{}", stream.name);
    }
}

/// A length of time or a size as documents write it: `7 days`, `8 GiB`.
fn documented(text: &str) -> i64 {
    let (number, unit) = text.split_once(' ').unwrap();
    let unit: i64 = match unit {
        "hour" => 3_600_000_000_000,
        "days" => 86_400_000_000_000,
        "years" => 365 * 86_400_000_000_000,
        "MiB" => 1 << 20,
        "GiB" => 1 << 30,
        other => panic!("an unknown unit: {other}"),
    };
    number.parse::<i64>().unwrap() * unit
}

#[test]
fn the_operators_document_says_what_the_streams_are() {
    let document = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/OPERATIONS.md");
    let document = std::fs::read_to_string(document).unwrap();
    for stream in shipped().streams {
        let row = document.lines().find(|line| line.starts_with(&format!("| {} |", stream.name)));
        let row = row.unwrap_or_else(|| panic!("docs/OPERATIONS.md has no row for {}", stream.name));
        let cells: Vec<&str> = row.split('|').map(str::trim).collect();
        let [_, _, _, age, bytes, when_full, _] = cells[..] else { panic!("{row}") };
        assert_eq!(json!(documented(age)), stream.config["max_age"], "{row}");
        assert_eq!(json!(documented(bytes)), stream.config["max_bytes"], "{row}");
        let drops = stream.config["discard"] == "old";
        assert_eq!(when_full.contains("are dropped"), drops, "{row}");
    }
}

#[test]
fn every_consumer_consumes_a_shipped_stream_and_acknowledges() {
    let topology = shipped();
    for consumer in &topology.consumers {
        assert!(topology.streams.iter().any(|stream| stream.name == consumer.stream), "{}", consumer.name);
        assert_eq!(consumer.config["ack_policy"], "explicit", "{}", consumer.name);
    }
}

#[test]
fn replicas_can_be_overridden() {
    let topology = shipped().with_replicas(3);
    assert!(topology.streams.iter().all(|stream| stream.config["num_replicas"] == 3));
}

#[test]
fn a_misspelt_field_is_named() {
    let folder = std::env::temp_dir().join(format!("topology-{}", std::process::id()));
    std::fs::create_dir_all(folder.join("streams")).unwrap();
    std::fs::create_dir_all(folder.join("consumers")).unwrap();
    let file = folder.join("streams/X.json");
    let written = |field: &str| {
        let text = json!({ "name": "X", "subjects": ["x"], "retention": "limits", "storage": "file",
            "discard": "new", "num_replicas": 1, field: 5 });
        std::fs::write(&file, text.to_string()).unwrap();
        Topology::read(&folder)
    };
    assert!(written("max_age").is_ok());
    let error = written("max_agee").unwrap_err();
    assert!(
        matches!(&error, TopologyError::Invalid { problem, .. } if problem.contains("max_agee")),
        "{error}"
    );
    std::fs::remove_dir_all(&folder).unwrap();
    let error = Topology::read(&folder).unwrap_err();
    assert!(matches!(error, TopologyError::Unreadable { .. }), "{error}");
}
