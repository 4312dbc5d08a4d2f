//! The AsyncAPI document in the repository is the one that the contract makes.

use contract::{REQUESTS, Request, RequestSubject, asyncapi};

use crate::support::in_repository;

#[test]
fn the_document_is_current() {
    let written = std::fs::read_to_string(in_repository("nats/asyncapi.yaml")).unwrap_or_default();
    let made = asyncapi::document().unwrap();
    let line = written.lines().zip(made.lines()).position(|(written, made)| written != made);
    let line = line.unwrap_or_else(|| written.lines().count().min(made.lines().count())) + 1;
    assert!(
        written == made,
        "nats/asyncapi.yaml is not what the contract makes (first in line {line}); write it again with:\n  \
         cargo run -p memfleet -- contract asyncapi > nats/asyncapi.yaml"
    );
}

#[test]
fn every_kind_has_an_example_that_the_worker_takes() {
    for kind in REQUESTS {
        let (full, minimal) = asyncapi::examples(kind).unwrap();
        let subject: RequestSubject = format!("memory.req.simple-chat.{}.42", kind.name()).parse().unwrap();
        for example in [full, minimal] {
            Request::decode(&subject, example.to_string().as_bytes()).unwrap();
        }
    }
}

#[test]
fn every_reference_leads_somewhere() {
    let document = asyncapi::document().unwrap();
    let names: Vec<&str> = document
        .lines()
        .filter_map(|line| line.split_once("#/components/schemas/"))
        .map(|(_, name)| name.trim_end_matches(['"', '\'']))
        .collect();
    assert!(names.len() > REQUESTS.len());
    for name in names {
        assert!(document.contains(&format!("\n    {name}:\n")), "there is no schema {name}");
    }
}
