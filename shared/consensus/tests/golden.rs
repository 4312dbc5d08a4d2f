//! The bytes of a dossier and its text. `UPDATE_GOLDEN=1` writes them anew, which changes what stored nodes verify to: do so
//! with a new version of the rules or of the form only.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::path::{Path, PathBuf};

use consensus::{
    Agent, Dossier, Evidence, Inputs, Micro, Record, Response, Rules, Verification, render, verify,
};

fn file(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name)
}

fn compare(name: &str, bytes: &[u8]) {
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        std::fs::write(file(name), bytes).unwrap();
    }
    let golden = std::fs::read(file(name)).unwrap();
    assert!(bytes == golden, "{name} differs; now:\n{}", String::from_utf8_lossy(bytes));
}

/// Six agents, among them two of one family, one that recalls, one that abstains and one that dissents.
fn inputs() -> Inputs {
    let response = |agent: &str, sequence, text: &str, confidence, angle: f32, evidence| Response {
        id: format!("{agent}-{sequence}"),
        agent: agent.into(),
        sequence,
        text: text.into(),
        claim: None,
        confidence,
        embedding: Some(vec![angle.cos(), angle.sin(), 0.25]),
        evidence,
    };
    let source = |name: &str| vec![Evidence::Source(name.into())];
    let agent = |name: &str, family: &str, right, wrong, confidence| {
        let micro = Micro::from_f64;
        let record = Record { right: micro(right), wrong: micro(wrong), confidence: micro(confidence) };
        (name.to_owned(), Agent { family: Some(family.into()), prompt: None, record })
    };
    Inputs {
        task: "0197a3c2-5d1e-7c44-9a51-3f6f2f6f9b10".into(),
        question: "How long may a NATS message stay unacknowledged before it is delivered again?".into(),
        task_kind: "operations".into(),
        quorum: 4,
        responses: vec![
            response(
                "atlas",
                3,
                "The default ack wait is 30 seconds.",
                Some(0.9),
                0.0,
                source("docs.nats.io"),
            ),
            response(
                "borealis",
                4,
                "By default it is 30 seconds.",
                Some(0.8),
                0.2,
                source("server/consumer.go"),
            ),
            response("cassini", 2, "It is 10 seconds.", None, 0.1, vec![]),
            response("cassini", 7, "After 30 s, the default ack wait.", Some(0.7), 0.1, vec![]),
            response("dione", 5, "It is 5 minutes.", Some(0.99), 0.1, vec![]),
            response("europa", 6, "30 seconds.", None, 0.05, vec![Evidence::Recalled("node-17".into())]),
            response("fornax", 1, "I don't know.", None, 1.2, vec![]),
            response("ganymede", 8, "It is delivered again after 30 seconds by default.", None, 0.15, vec![]),
        ],
        agents: [
            agent("atlas", "gpt", 41.0, 4.0, 38.25),
            agent("borealis", "claude", 28.5, 3.5, 27.0),
            agent("cassini", "gemini", 0.0, 0.0, 0.0),
            agent("dione", "llama", 6.0, 9.0, 14.0),
            agent("europa", "mistral", 12.0, 1.0, 11.0),
            agent("fornax", "qwen", 3.0, 3.0, 4.0),
            agent("ganymede", "gpt", 10.0, 2.0, 9.0),
        ]
        .into(),
        causality: vec!["task.delegated 0197a3c2".into(), "response.submitted 0197a3c9".into()],
        ..Inputs::default()
    }
}

#[test]
fn the_bytes_of_a_dossier_do_not_change() {
    let dossier = Dossier::compute(&inputs(), &Rules::current().unwrap()).unwrap();
    compare("dossier.json", &dossier.to_bytes().unwrap());
    compare("dossier.txt", render(&dossier).as_bytes());
}

#[test]
fn verification_finds_what_was_changed() {
    let rules = Rules::current().unwrap();
    let stored = Dossier::compute(&inputs(), &rules).unwrap().to_bytes().unwrap();
    assert_eq!(verify(&stored, &inputs(), &rules).unwrap(), Verification::Same);
    let text = String::from_utf8(stored.clone()).unwrap();
    let forged = text.replacen("\"status\":\"validated\"", "\"status\":\"disputed\"", 1);
    assert_ne!(forged, text);
    assert!(matches!(verify(forged.as_bytes(), &inputs(), &rules).unwrap(), Verification::Changed(_)));
    let spaced = text.replacen(':', ": ", 1);
    assert!(matches!(verify(spaced.as_bytes(), &inputs(), &rules).unwrap(), Verification::Changed(_)));
    let mut other = inputs();
    other.responses[0].text.push('!');
    assert!(matches!(verify(&stored, &other, &rules).unwrap(), Verification::OtherInputs { .. }));
    let newer = text.replacen("\"version\":1", "\"version\":2", 1);
    assert!(matches!(verify(newer.as_bytes(), &inputs(), &rules).unwrap(), Verification::OtherRules(_)));
    assert_eq!(verify(b"{}", &inputs(), &rules).unwrap(), Verification::Unreadable);
}
