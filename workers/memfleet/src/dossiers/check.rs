//! Whether a node, its dossier, the inputs of the dossier and the rows these came from agree.

use std::collections::{BTreeMap, BTreeSet};

use consensus::{
    Dossier, Evidence, Inputs, Micro, Response, Rules, Standing, Verification, canonical, verify,
};
use serde_json::Value;

use super::load::{Held, ResponseRow};

/// All that differs, in words that name the place.
pub(super) fn check(held: &Held, rules: &Rules) -> Vec<String> {
    let node = &held.node;
    let (Some(stored_inputs), Some(standing), Some(stored)) = (&node.inputs, &node.standing, &node.dossier)
    else {
        return vec!["the node answers a task, but its dossier is gone".to_owned()];
    };
    let mut found = Vec::new();
    let inputs = match serde_json::from_slice::<Inputs>(stored_inputs) {
        Ok(inputs) => inputs,
        Err(error) => {
            found.push(format!("the inputs are not readable: {error}"));
            // What can be said without them.
            found.extend(serde_json::from_slice::<Dossier>(stored).is_err().then(unreadable));
            return found;
        }
    };
    let inputs = with_standing(held, inputs, stored_inputs, standing, &mut found);
    compare_rows(held, &inputs, &mut found);
    let computed = match Dossier::compute(&inputs, rules) {
        Ok(computed) => computed,
        Err(fault) => {
            found.push(format!("the inputs cannot be computed with: {fault}"));
            return found;
        }
    };
    compare_dossier(held, stored, &inputs, &computed, rules, &mut found);
    // Under other rules there is nothing to compare the node with.
    if serde_json::from_slice::<Dossier>(stored).map_or(true, |dossier| dossier.rules == rules.id) {
        compare_node(held, &computed, &mut found);
    }
    found
}

fn unreadable() -> String {
    "the dossier is not readable as one".to_owned()
}

/// The inputs with their standing, which is stored beside them, after a look at bytes that have no influence on the dossier.
fn with_standing(
    held: &Held,
    mut inputs: Inputs,
    stored: &[u8],
    standing: &str,
    found: &mut Vec<String>,
) -> Inputs {
    for response in &mut inputs.responses {
        let row = held.responses.iter().find(|row| row.id.to_string() == response.id);
        // The parser of JSON may be off by the last bit of a number with many digits, PostgreSQL's binary form is not.
        if let Some(row) = row.filter(|row| same_number(row.confidence_score, response.confidence)) {
            response.confidence = row.confidence_score;
        }
    }
    if serde_json::to_vec(&inputs).is_ok_and(|bytes| bytes != stored) {
        found.push("the inputs are not in the bytes that their content is written as".to_owned());
    }
    if inputs.standing != Standing::default() {
        found.push("the inputs have a standing of their own".to_owned());
    }
    match serde_json::from_str::<Standing>(standing) {
        Ok(standing) => inputs.standing = standing,
        Err(error) => found.push(format!("the standing of the inputs is not readable: {error}")),
    }
    inputs
}

fn compare_dossier(
    held: &Held,
    stored: &[u8],
    inputs: &Inputs,
    computed: &Dossier,
    rules: &Rules,
    found: &mut Vec<String>,
) {
    match verify(stored, inputs, rules) {
        Ok(Verification::Same) => {}
        Ok(Verification::OtherRules(id)) => found.push(format!(
            "the dossier names rules of version {} ({}), which are not those of this program: version {} ({})",
            id.version, id.sha256, rules.id.version, rules.id.sha256
        )),
        // The hash is stored at three places; if the other two agree, it is the dossier that was changed.
        Ok(Verification::OtherInputs { stored: hash, computed: right })
            if held.node.inputs_sha256.as_ref() == Some(&right) =>
        {
            found.push(format!("the dossier was changed: inputs_sha256 is {hash}, recomputed {right}"));
        }
        Ok(Verification::OtherInputs { stored, computed }) => found.push(format!(
            "the inputs were changed: their SHA-256 is {computed}; the dossier was computed from {stored}"
        )),
        Ok(Verification::Changed(_)) => found.push(changed(stored, computed)),
        Ok(Verification::Unreadable) => found.push(unreadable()),
        Err(fault) => found.push(format!("the dossier cannot be recomputed: {fault}")),
    }
    let node = &held.node;
    for (place, hash) in [("its row", &node.inputs_sha256), ("the node", &node.node_inputs_sha256)] {
        if hash.as_ref() != Some(&computed.inputs_sha256) {
            let hash = hash.as_deref().unwrap_or("none");
            found.push(format!("{place} has inputs_sha256 {hash}, recomputed {}", computed.inputs_sha256));
        }
    }
}

/// Names the first member that differs.
fn changed(stored: &[u8], computed: &Dossier) -> String {
    let parsed = |bytes: &[u8]| serde_json::from_slice::<Value>(bytes).unwrap_or(Value::Null);
    let bytes = computed.to_bytes().unwrap_or_default();
    match difference("", &parsed(stored), &parsed(&bytes)) {
        Some((path, stored, right)) => {
            format!("the dossier was changed: {path} is {stored}, recomputed {right}")
        }
        None => "the dossier was changed: it says the same in other bytes".to_owned(),
    }
}

fn difference(path: &str, stored: &Value, right: &Value) -> Option<(String, String, String)> {
    let child = |name: &str| if path.is_empty() { name.to_owned() } else { format!("{path}.{name}") };
    match (stored, right) {
        (Value::Object(stored), Value::Object(right)) => {
            let names: BTreeSet<&String> = stored.keys().chain(right.keys()).collect();
            let value = |of: &serde_json::Map<String, Value>, name| of.get(name).cloned().unwrap_or_default();
            names
                .into_iter()
                .find_map(|name| difference(&child(name), &value(stored, name), &value(right, name)))
        }
        (Value::Array(stored), Value::Array(right)) if stored.len() == right.len() => {
            let mut pairs = stored.iter().zip(right).enumerate();
            pairs.find_map(|(at, (stored, right))| difference(&format!("{path}[{at}]"), stored, right))
        }
        (stored, right) if stored == right => None,
        (stored, right) => Some((path.to_owned(), excerpt(stored), excerpt(right))),
    }
}

/// A value as JSON, shortened.
fn excerpt(value: &Value) -> String {
    let json = value.to_string();
    match json.char_indices().nth(80) {
        Some((end, _)) => format!("{}…", &json[..end]),
        None => json,
    }
}

/// Whether the node shows what the dossier says.
fn compare_node(held: &Held, computed: &Dossier, found: &mut Vec<String>) {
    let node = &held.node;
    let status = serde_json::to_value(computed.outcome.status).unwrap_or_default();
    if status != node.validation_status.as_str() {
        found.push(format!(
            "the node has validation_status {:?}, recomputed {status}",
            node.validation_status
        ));
    }
    // Compared bit by bit: both are the double that is nearest to the same decimal fraction.
    if node.consensus_score.to_bits() != computed.score().to_bits() {
        found.push(format!(
            "the node has consensus_score {}, recomputed {}",
            node.consensus_score,
            computed.score()
        ));
    }
    let version = i32::try_from(computed.rules.version).ok();
    for (place, stored) in [("its row", node.rules_version), ("the node", node.node_rules_version)] {
        if stored != version {
            let stored = stored.map_or_else(|| "none".to_owned(), |version| version.to_string());
            found.push(format!("{place} has rules_version {stored}, recomputed {}", computed.rules.version));
        }
    }
    let superseded_by = node.superseded_by.map(|id| id.to_string());
    if superseded_by != computed.superseded_by {
        let name = |id: &Option<String>| id.clone().unwrap_or_else(|| "none".to_owned());
        found.push(format!(
            "the node has superseded_by {}; the dossier has {}",
            name(&superseded_by),
            name(&computed.superseded_by)
        ));
    }
}

/// Whether the inputs are what the task and its responses say.
fn compare_rows(held: &Held, inputs: &Inputs, found: &mut Vec<String>) {
    let Some(task) = &held.task else {
        found.push("the task of the node is gone".to_owned());
        return;
    };
    let id = held.node.task_id.map(|id| id.to_string()).unwrap_or_default();
    let quorum = task.quorum.to_string();
    for (name, row, input) in [
        ("id", &id, &inputs.task),
        ("question", &task.question, &inputs.question),
        ("task_kind", &task.task_kind, &inputs.task_kind),
        ("quorum", &quorum, &inputs.quorum.to_string()),
    ] {
        if row != input {
            found.push(format!("task {id}: {name} in the inputs is not that of its row in consensus_tasks"));
        }
    }
    let verdict = inputs.standing.verdict.map(|verdict| serde_json::to_value(verdict).unwrap_or_default());
    if verdict.as_ref().and_then(Value::as_str) != held.node.verdict.as_deref() {
        found.push("the verdict in the standing is not that of the node".to_owned());
    }
    compare_responses(held, inputs, found);
}

fn compare_responses(held: &Held, inputs: &Inputs, found: &mut Vec<String>) {
    let rows: BTreeMap<String, &ResponseRow> =
        held.responses.iter().map(|row| (row.id.to_string(), row)).collect();
    let mut taken = BTreeSet::new();
    for response in &inputs.responses {
        let id = &response.id;
        if !taken.insert(id.as_str()) {
            found.push(format!("response {id}: is in the inputs twice"));
        }
        match rows.get(id) {
            None => found.push(format!("response {id}: is in the inputs, but has no row that counts")),
            Some(row) => found.extend(differing(row, response).into_iter().map(|name| {
                format!("response {id}: {name} in the inputs is not that of its row in agent_responses")
            })),
        }
    }
    for (id, row) in &rows {
        // Of an agent the latest counts, so an earlier one may be left out.
        let later = |response: &Response| {
            response.agent == row.agent_id && response.sequence > row.stored_sequence.unsigned_abs()
        };
        if !taken.contains(id.as_str()) && !inputs.responses.iter().any(later) {
            found.push(format!("response {id}: its row in agent_responses counts, but is not in the inputs"));
        }
    }
    let answered: BTreeSet<&str> = inputs.responses.iter().map(|response| response.agent.as_str()).collect();
    for agent in inputs.agents.keys().filter(|agent| !answered.contains(agent.as_str())) {
        found.push(format!("agent {agent}: is in the inputs, but has not responded"));
    }
}

/// The names of the columns that differ.
fn differing(row: &ResponseRow, response: &Response) -> Vec<&'static str> {
    let evidence = serde_json::from_str::<Vec<Evidence>>(&row.evidence).ok();
    let differs = [
        ("agent_id", row.agent_id != response.agent),
        ("stored_sequence", u64::try_from(row.stored_sequence) != Ok(response.sequence)),
        ("response_text", row.response_text != response.text),
        ("claim", !same_claim(row.claim.as_deref(), response.claim.as_deref())),
        ("confidence_score", !same_number(row.confidence_score, response.confidence)),
        ("evidence", evidence.as_ref() != Some(&response.evidence)),
        ("embedding", row.embedding != response.embedding.as_deref().map(bytes)),
    ];
    differs.into_iter().filter_map(|(name, differs)| differs.then_some(name)).collect()
}

/// PostgreSQL may write a claim otherwise than its publisher did.
fn same_claim(row: Option<&str>, input: Option<&str>) -> bool {
    match (row, input) {
        (Some(row), Some(input)) => {
            row == input || matches!((canonical(row), canonical(input)), (Ok(row), Ok(input)) if row == input)
        }
        (None, None) => true,
        (Some(_), None) | (None, Some(_)) => false,
    }
}

fn same_number(row: Option<f64>, input: Option<f64>) -> bool {
    match (row, input) {
        (Some(row), Some(input)) => {
            (row - input).abs() <= f64::EPSILON && Micro::from_f64(row) == Micro::from_f64(input)
        }
        (None, None) => true,
        (Some(_), None) | (None, Some(_)) => false,
    }
}

fn bytes(embedding: &[f32]) -> Vec<u8> {
    embedding.iter().flat_map(|component| component.to_le_bytes()).collect()
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
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
        // An earlier response of an agent may be missing in the inputs.
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
        for of in [|held: &mut Held| &mut held.node.inputs, |held: &mut Held| &mut held.node.dossier] {
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
        let changes: [(&str, Change); 7] = [
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
}
