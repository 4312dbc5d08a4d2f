//! Every request at its limits: what the contract accepts, the database stores.

use context_writer::ContextWriter;
use contract::REQUESTS;
use router_logger::RouterLogger;
use serde_json::{Map, Value, json};
use testkit::{Fixture, RequestMessage, request};
use uuid::Uuid;

/// Which values a body has.
#[derive(Clone, Copy, PartialEq)]
enum Extreme {
    /// The largest of each field, and texts of the longest characters. Two of them differ in their flags.
    Largest { flags: bool },
    /// The smallest of each required field.
    Smallest,
}

/// Longer texts do not fit into a body together.
const LONG: u64 = 20_000;

struct Bodies {
    extreme: Extreme,
    random: fastrand::Rng,
}

impl Bodies {
    /// A value that a JSON Schema allows. `root` has the definitions.
    fn value(&mut self, schema: &Value, root: &Value) -> Value {
        if let Some(path) = schema["$ref"].as_str() {
            return self
                .value(&root.pointer(path.trim_start_matches('#')).expect("a definition").clone(), root);
        }
        if let Some(choices) = schema["anyOf"].as_array().or(schema["oneOf"].as_array()) {
            return self.value(&choices[0], root);
        }
        if let Some(labels) = schema["enum"].as_array() {
            return labels[0].clone();
        }
        if !schema["const"].is_null() {
            return schema["const"].clone();
        }
        let kind = schema["type"].as_str().or(schema["type"][0].as_str());
        let (largest, flags) = match self.extreme {
            Extreme::Largest { flags } => (true, flags),
            Extreme::Smallest => (false, false),
        };
        let pick = |most: &str, least: &str| schema[if largest { most } else { least }].clone();
        match kind {
            Some("string") => self.text(schema, largest),
            Some("integer" | "number") => pick("maximum", "minimum"),
            Some("boolean") => json!(flags),
            Some("array") => {
                let items = pick("maxItems", "minItems").as_u64().unwrap_or(0);
                (0..items).map(|_| self.value(&schema["items"], root)).collect()
            }
            Some("object") if schema["properties"].is_object() => self.object(schema, root),
            _ if largest => json!({ "number": 1e300, "text": "\u{10ffff}", "list": [null, true, -1e-300] }),
            _ => json!({}),
        }
    }

    fn object(&mut self, schema: &Value, root: &Value) -> Value {
        let required =
            |name: &str| schema["required"].as_array().is_some_and(|all| all.contains(&json!(name)));
        let mut object = Map::new();
        for (name, property) in schema["properties"].as_object().expect("properties") {
            if self.extreme != Extreme::Smallest || required(name) {
                object.insert(name.clone(), self.value(property, root));
            }
        }
        object.into()
    }

    fn text(&mut self, schema: &Value, largest: bool) -> Value {
        match schema["format"].as_str() {
            Some("uuid") => return json!(Uuid::from_u128(7)),
            Some("date-time") => {
                return json!(if largest {
                    "9999-12-31T23:59:59.999999999Z"
                } else {
                    "0001-01-01T00:00:00Z"
                });
            }
            _ => {}
        }
        let length = schema[if largest { "maxLength" } else { "minLength" }].as_u64().unwrap_or(0).min(LONG);
        if schema["pattern"].is_string() {
            return json!("z".repeat(usize::try_from(length).expect("a length")));
        }
        // Different characters, so that an index cannot compress them.
        let character = || char::from_u32(self.random.u32(0x1_0000..0x10_ffff)).unwrap_or('\u{10ffff}');
        let text: String =
            std::iter::repeat_with(character).take(usize::try_from(length).expect("a length")).collect();
        json!(text)
    }
}

/// Every request of a stream to a user, in the order of the catalogue.
fn requests(stream: &str, user: i32, extreme: Extreme) -> Vec<RequestMessage> {
    let mut bodies = Bodies { extreme, random: fastrand::Rng::with_seed(7) };
    let kinds = REQUESTS.iter().filter(|kind| kind.stream == stream);
    let of_kind = |kind: &&contract::RequestKind| {
        let schema = serde_json::to_value((kind.schema)(Default::default())).expect("a schema");
        let mut body = bodies.value(&schema, &schema);
        // The schema cannot express that a session does not continue itself, nor the bytes of an id.
        if body["parent_session_id"].is_string() {
            body["parent_session_id"] = json!("y".repeat(128));
        }
        // Nor that a version is not ahead of the time.
        if body["version"].as_i64() == Some(i64::MAX) {
            body["version"] =
                json!(chrono::Utc::now().timestamp_millis() + contract::limit::VERSION_AHEAD_MS);
        }
        if kind.stream == "CONSENSUS" {
            as_consensus_wants(&mut body);
        }
        if body["credential_id"].is_string() {
            body["credential_id"] = json!("x".repeat(1_400));
        }
        request(&kind.name(), user, body)
    };
    kinds.map(of_kind).collect()
}

/// What the schema does not say of the requests of agents: names that differ, two nodes, and what follows what.
fn as_consensus_wants(body: &mut Value) {
    if let Some(agents) = body.get_mut("agents").and_then(Value::as_array_mut) {
        for (number, agent) in agents.iter_mut().enumerate().skip(1) {
            *agent = json!(format!("{number:0>128}"));
        }
    }
    if let Some(text) = body["response_text"].as_str().filter(|text| !text.is_empty()) {
        // Each of 500 agents has an equal part of what a task may hold; the claim is short.
        let part = contract::limit::TASK_CHARS / 500 - 200;
        let text: String = text.chars().take(part).collect();
        body["response_text"] = text.into();
    }
    if let Some(evidence) = body.get_mut("evidence").and_then(Value::as_array_mut) {
        // As much for the evidence of each.
        for root in evidence {
            let shorter = |source: &str| source.chars().take(60).collect::<String>();
            if let Some(source) = root["source"].as_str().map(shorter) {
                root["source"] = source.into();
            }
        }
    }
    if body["target_node_id"].is_string() {
        body["target_node_id"] = json!(Uuid::from_u128(8));
    }
    if body["phase"].is_string() {
        body["phase"] = json!("planning");
    }
    if body["outcome"].is_string() {
        body["outcome"] = json!("failed");
    }
}

/// The requests of agents, with a second node for relations.
fn of_agents(user: i32, extreme: Extreme) -> Vec<RequestMessage> {
    let mut all = requests("CONSENSUS", user, extreme);
    let place = all.iter().position(|one| one.subject.contains(".knowledge.propose.")).expect("a proposal");
    let second = RequestMessage { id: Uuid::now_v7(), ..all[place].clone() };
    let other = json!({ "node_id": Uuid::from_u128(8), "node_key": "the other" });
    let second = second.map_body(|body| {
        crate::support::consensus::with(serde_json::from_str(&body).expect("JSON"), other).to_string()
    });
    all.insert(place, second);
    all
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_contract_accepts_can_be_stored() {
    let fixture = Fixture::new().await;
    let extremes = [Extreme::Largest { flags: false }, Extreme::Largest { flags: true }, Extreme::Smallest];
    let of = |requests: fn(i32, Extreme) -> Vec<RequestMessage>| {
        let each = extremes.into_iter().zip(1..).flat_map(|(extreme, user)| requests(user, extreme));
        each.collect::<Vec<_>>()
    };
    let streams = [
        of(|user, extreme| requests("CONTEXT", user, extreme)),
        of(|user, extreme| requests("ROUTER", user, extreme)),
        of(of_agents),
    ];
    let expected: usize = streams.iter().map(Vec::len).sum();
    let [context, router, agents] = streams;
    fixture.process(ContextWriter, context).await;
    fixture.process(RouterLogger, router).await;
    crate::support::consensus::process(&fixture, agents).await;
    assert_eq!(fixture.dead_letters().await, Vec::<String>::new());
    // A scheduled tick may come meanwhile: it acts for user 0, and its events are those of its job.
    let events =
        fixture.count("blackboard_events WHERE coalesce(source_agent_id, '') NOT LIKE 'job:%'").await;
    let unchanged = fixture
        .count(
            "inbox i WHERE i.user_id <> 0 AND NOT EXISTS (SELECT FROM blackboard_events e WHERE e.id = i.event_id)",
        )
        .await;
    assert_eq!(events + unchanged, i64::try_from(expected).expect("a count"));
    assert!(unchanged <= 6, "a removal of the version that was just put changes nothing: {unchanged}");
}
