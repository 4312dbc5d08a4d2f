use consensus::{Agent, Record};
use uuid::Uuid;

use super::*;
use crate::dossiers::load::{NodeRow, TaskRow};

fn response(number: u64, agent: &str, text: &str) -> Response {
    Response {
        id: Uuid::from_u64_pair(1, number).to_string(),
        agent: agent.to_owned(),
        sequence: number,
        text: text.to_owned(),
        claim: Some(r#"{"port": 8080}"#.to_owned()),
        confidence: Some(0.872_345_678_901_234_5),
        embedding: Some(vec![0.25, -0.123_456_7]),
        evidence: vec![Evidence::Source(format!("doc:{agent}"))],
    }
}

fn row(response: &Response) -> ResponseRow {
    ResponseRow {
        id: response.id.parse().unwrap(),
        agent_id: response.agent.clone(),
        response_text: response.text.clone(),
        // As PostgreSQL writes it.
        claim: response.claim.clone().map(|claim| claim.replace(' ', "")),
        evidence: serde_json::to_string(&response.evidence).unwrap(),
        confidence_score: response.confidence,
        stored_sequence: i64::try_from(response.sequence).unwrap(),
        embedding: response.embedding.as_deref().map(bytes),
        embedding_model: response.embedding.as_ref().map(|_| "small".to_owned()),
        event_id: None,
    }
}

/// Three agents of three families, of which one corrected itself.
fn consistent(rules: &Rules) -> Held {
    let task = Uuid::from_u64_pair(0, 7);
    let responses = vec![
        response(1, "ada", "On 8080."),
        response(2, "bo", "Port 8080."),
        response(3, "cy", "I do not know."),
        response(4, "cy", "8080, as ever."),
    ];
    let agent = |family: &str| Agent {
        family: Some(family.to_owned()),
        prompt: None,
        record: Record { right: Micro::from_f64(12.5), ..Record::default() },
    };
    let agents = ["ada", "bo", "cy"].map(|name| (name.to_owned(), agent(name)));
    let inputs = Inputs {
        task: task.to_string(),
        question: "Which port does the gateway listen on?".to_owned(),
        task_kind: "fact".to_owned(),
        quorum: 3,
        agents: agents.into_iter().collect(),
        standing: Standing::default(),
        causality: vec!["task.delegated 1".to_owned()],
        responses: responses.clone(),
    };
    let dossier = Dossier::compute(&inputs, rules).unwrap();
    let version = i32::try_from(rules.id.version).ok();
    Held {
        node: NodeRow {
            task_id: Some(task),
            validation_status: "validated".to_owned(),
            consensus_score: dossier.score(),
            verdict: None,
            superseded_by: None,
            node_rules_version: version,
            node_inputs_sha256: Some(dossier.inputs_sha256.clone()),
            inputs: Some(serde_json::to_vec(&inputs).unwrap()),
            standing: Some(serde_json::to_string(&inputs.standing).unwrap()),
            dossier: Some(dossier.to_bytes().unwrap()),
            rules_version: version,
            inputs_sha256: Some(dossier.inputs_sha256),
        },
        task: Some(TaskRow {
            question: inputs.question.clone(),
            task_kind: inputs.task_kind.clone(),
            quorum: 3,
        }),
        responses: responses.iter().map(row).collect(),
    }
}

/// The differences after a change.
fn after(change: impl FnOnce(&mut Held)) -> String {
    let rules = Rules::current().unwrap();
    let mut held = consistent(&rules);
    change(&mut held);
    check(&held, &rules).join("\n")
}

#[test]
fn what_agrees_has_no_difference() {
    assert_eq!(after(|_| {}), "");
    // A vector of another model is not in the inputs, and an earlier response of an agent need not be.
    let other_model = after(|held| {
        let mut inputs: Inputs = serde_json::from_slice(held.node.inputs.as_ref().unwrap()).unwrap();
        inputs.responses[0].embedding = None;
        let dossier = Dossier::compute(&inputs, &Rules::current().unwrap()).unwrap();
        held.node.inputs = serde_json::to_vec(&inputs).ok();
        held.node.dossier = dossier.to_bytes().ok();
        held.node.inputs_sha256 = Some(dossier.inputs_sha256.clone());
        held.node.node_inputs_sha256 = Some(dossier.inputs_sha256);
        held.responses[0].embedding_model = Some("other".to_owned());
    });
    assert_eq!(other_model, "");
    let without_earlier = after(|held| {
        let text = String::from_utf8(held.node.inputs.take().unwrap()).unwrap();
        let mut inputs: Inputs = serde_json::from_str(&text).unwrap();
        inputs.responses.remove(2);
        held.node.inputs = serde_json::to_vec(&inputs).ok();
    });
    assert_eq!(without_earlier, "");
}

#[test]
fn every_changed_byte_is_found() {
    let rules = Rules::current().unwrap();
    let mut held = consistent(&rules);
    type Place = fn(&mut Held) -> &mut Option<Vec<u8>>;
    let places: [Place; 2] = [|held| &mut held.node.inputs, |held| &mut held.node.dossier];
    for of in places {
        let length = of(&mut held).as_ref().map_or(0, Vec::len);
        assert!(length > 500);
        for at in 0..length {
            of(&mut held).as_mut().unwrap()[at] ^= 1;
            assert!(!check(&held, &rules).is_empty(), "byte {at}");
            of(&mut held).as_mut().unwrap()[at] ^= 1;
        }
    }
    assert!(check(&held, &rules).is_empty());
}

#[test]
fn a_changed_row_is_named_with_its_column() {
    type Change = fn(&mut ResponseRow);
    let changes: [(&str, Change); 8] = [
        ("event_id", |row| row.event_id = Some(Uuid::nil())),
        ("response_text", |row| row.response_text.push('!')),
        ("claim", |row| row.claim = Some("{\"port\":8081}".to_owned())),
        ("confidence_score", |row| row.confidence_score = Some(0.872_345_678_9)),
        ("evidence", |row| row.evidence = "[]".to_owned()),
        ("stored_sequence", |row| row.stored_sequence = 9),
        ("embedding", |row| row.embedding = None),
        ("agent_id", |row| row.agent_id = "eve".to_owned()),
    ];
    for (column, change) in changes {
        let found = after(|held| change(&mut held.responses[1]));
        let id = Uuid::from_u64_pair(1, 2);
        let expected =
            format!("response {id}: {column} in the inputs is not that of its row in agent_responses");
        assert_eq!(found, expected);
    }
    assert!(after(|held| drop(held.responses.remove(0))).contains("has no row that counts"));
    let added = after(|held| held.responses.push(row(&response(9, "eve", "8081"))));
    assert!(added.contains("counts, but is not in the inputs"), "{added}");
}

#[test]
fn a_changed_node_or_task_is_named() {
    type Change = fn(&mut Held);
    let changes: [(&str, Change); 10] = [
        ("the node has consensus_score 0.9,", |held| held.node.consensus_score = 0.9),
        ("the node has validation_status \"disputed\"", |held| {
            held.node.validation_status = "disputed".to_owned();
        }),
        ("the node has inputs_sha256 none", |held| held.node.node_inputs_sha256 = None),
        ("the node has rules_version 9", |held| held.node.node_rules_version = Some(9)),
        ("its row has rules_version 9", |held| held.node.rules_version = Some(9)),
        ("the node has superseded_by", |held| held.node.superseded_by = Some(Uuid::nil())),
        ("the verdict in the standing", |held| held.node.verdict = Some("confirmed".to_owned())),
        ("the node has validation_status \"validated\", recomputed \"rejected\"", |held| {
            held.node.standing =
                Some(r#"{"verdict":"rejected","superseded_by":null,"contradicts":[]}"#.to_owned());
        }),
        ("question in the inputs", |held| held.task.as_mut().unwrap().question.push('?')),
        ("its dossier is gone", |held| held.node.dossier = None),
    ];
    for (expected, change) in changes {
        let found = after(change);
        assert!(found.contains(expected), "{expected}: {found}");
    }
}

#[test]
fn a_changed_member_is_named_with_its_path() {
    let found = after(|held| {
        let text = String::from_utf8(held.node.dossier.take().unwrap()).unwrap();
        held.node.dossier = Some(text.replacen("\"agent\":\"bo\"", "\"agent\":\"eve\"", 1).into_bytes());
    });
    assert_eq!(found, "the dossier was changed: votes[1].agent is \"eve\", recomputed \"bo\"");
    let other_rules = after(|held| {
        let text = String::from_utf8(held.node.dossier.take().unwrap()).unwrap();
        held.node.dossier = Some(text.replacen("\"version\":", "\"version\":7", 1).into_bytes());
    });
    assert!(other_rules.contains("names rules of version 7"), "{other_rules}");
}
