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
    let model = model(&rows, inputs);
    let mut taken = BTreeSet::new();
    for response in &inputs.responses {
        let id = &response.id;
        if !taken.insert(id.as_str()) {
            found.push(format!("response {id}: is in the inputs twice"));
        }
        match rows.get(id) {
            None => found.push(format!("response {id}: is in the inputs, but has no row that counts")),
            Some(row) => {
                let mut names = differing(row, response);
                if !same_embedding(row, response, model) {
                    names.push("embedding");
                }
                if row.event_id.is_some_and(|event| !inputs.causality.contains(&event.to_string())) {
                    names.push("event_id");
                }
                found.extend(names.into_iter().map(|name| {
                    format!("response {id}: {name} in the inputs is not that of its row in agent_responses")
                }));
            }
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
    ];
    differs.into_iter().filter_map(|(name, differs)| differs.then_some(name)).collect()
}

/// The model of the vectors in the inputs: those of one model alone can be compared.
fn model<'a>(rows: &BTreeMap<String, &'a ResponseRow>, inputs: &Inputs) -> Option<&'a str> {
    let with_vector = inputs.responses.iter().find(|response| response.embedding.is_some())?;
    rows.get(&with_vector.id)?.embedding_model.as_deref()
}

/// A vector of another model than that of the inputs is not in them.
fn same_embedding(row: &ResponseRow, response: &Response, model: Option<&str>) -> bool {
    match (&row.embedding, &response.embedding) {
        (Some(row), Some(embedding)) => *row == bytes(embedding),
        (Some(_), None) => model.is_some() && row.embedding_model.as_deref() != model,
        (None, embedding) => embedding.is_none(),
    }
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
#[path = "check_tests.rs"]
mod tests;
