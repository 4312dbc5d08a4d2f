//! Every request of consensus-builder: found in its table, with its event; and every bad one with its outcome.

use std::collections::BTreeSet;

use contract::REQUESTS;
use serde_json::{Value, json};
use testkit::{RequestMessage, request};
use uuid::Uuid;

use crate::support::consensus::{SESSION, Task, agent, process, start, verdict, with_users};

const TASK: &str = "0193c0de-0000-7000-8000-000000000051";
const CANCELLED: &str = "0193c0de-0000-7000-8000-000000000052";
const NODE: &str = "0193c0de-0000-7000-8000-000000000071";
const OTHER: &str = "0193c0de-0000-7000-8000-000000000072";

/// One of each kind, in the order of need.
fn all() -> Vec<RequestMessage> {
    let configure = json!({ "agent_id": "geographer", "agent_type": "expert", "agent_role": "maps", "assigned_llm": "claude-sonnet",
        "model_provider": "anthropic", "gpu_assignment": 1, "system_prompt": "You know maps.", "temperature": 0.25,
        "constraints": { "max": 1 }, "capabilities": ["maps"] });
    let profile = json!({ "agent_id": "geographer", "display_name": "The geographer", "description": "Knows maps.",
        "expertise_areas": ["rivers"], "current_status": "online", "performance_metrics": { "n": 1 } });
    let delegate = json!({ "task_id": TASK, "session_id": SESSION, "pm_agent_id": "pm", "question": "Which river?",
        "agents": ["geographer", "historian"], "quorum": 2, "task_kind": "geography", "deadline": "2030-01-01T00:00:00Z",
        "options": ["Tagus", "Douro"], "node_type": "fact", "node_key": "river", "title": "The river", "semantic_tags": ["t"] });
    let cancelled = json!({ "task_id": CANCELLED, "session_id": SESSION, "pm_agent_id": "pm", "question": "And the sea?",
        "agents": ["geographer"], "quorum": 1 });
    let respond = json!({ "response_id": NODE, "task_id": TASK, "session_id": SESSION, "agent_id": "geographer",
        "response_text": "The Tagus.", "claim": { "river": "Tagus", "length": 1.10 }, "confidence": 0.75,
        "evidence": [{ "source": "atlas" }, { "recalled": OTHER }], "processing_time_seconds": 1.5 });
    let propose = |id: &str, key: &str| {
        json!({ "node_id": id, "node_type": "fact", "node_key": key, "title": "A title",
        "content": { "answer": "Tagus" }, "semantic_tags": ["lisbon"], "agent_id": "geographer", "session_id": SESSION })
    };
    let relation = json!({ "source_node_id": NODE, "target_node_id": OTHER, "relation_type": "supports", "strength": 0.5,
        "confidence": 0.25 });
    let remove = json!({ "source_node_id": OTHER, "target_node_id": NODE, "relation_type": "supports" });
    vec![
        request("agent.configure", 1, configure),
        agent(1, "historian", "x"),
        request("agent.retire", 1, json!({ "agent_id": "historian" })),
        request("agent.profile", 1, profile),
        start(1),
        request("expert-conversation.phase", 1, json!({ "session_id": SESSION, "phase": "planning" })),
        request("expert-conversation.end", 1, json!({ "session_id": SESSION, "outcome": "failed" })),
        request("task.delegate", 1, delegate),
        request("task.delegate", 1, cancelled),
        request("task.cancel", 1, json!({ "task_id": CANCELLED, "session_id": SESSION, "reason": "Off." })),
        request("response.submit", 1, respond),
        request("knowledge.propose", 1, propose(NODE, "river of lisbon")),
        request("knowledge.propose", 1, propose(OTHER, "river of porto")),
        request("relation.put", 1, relation),
        request(
            "relation.put",
            1,
            json!({ "source_node_id": OTHER, "target_node_id": NODE, "relation_type": "supports" }),
        ),
        request("relation.remove", 1, remove),
        verdict(1, OTHER.parse().expect("an id"), "reject"),
    ]
}

/// What the tables then hold.
const ROWS: &[(&str, &[&str])] = &[
    (
        "concat_ws(' ', agent_id, agent_type, agent_role, assigned_llm, model_provider, model_family, gpu_assignment, system_prompt, temperature, constraints, capabilities, is_active) FROM agent_configurations ORDER BY agent_id",
        &[
            "geographer expert maps claude-sonnet anthropic 1 You know maps. 0.25 {\"max\": 1} [\"maps\"] t",
            "historian expert answers m other x 0.7 {} [] f",
        ],
    ),
    (
        "concat_ws(' ', p.agent_id, display_name, description, expertise_areas, current_status, performance_metrics, c.agent_id) FROM agent_profiles p JOIN agent_configurations c ON c.id = p.config_id",
        &["geographer The geographer Knows maps. [\"rivers\"] online {\"n\": 1} geographer"],
    ),
    (
        "concat_ws(' ', session_id, conversation_title, current_phase, total_tasks_delegated, tasks_completed, completed_at IS NOT NULL) FROM multi_agent_conversations",
        &["group Experts failed 2 0 t"],
    ),
    (
        "concat_ws(' ', session_id, pm_agent_id, question, task_kind, node_type, node_key, title, semantic_tags, options, quorum, asked, responded, answered, deadline, state) FROM consensus_tasks ORDER BY id",
        &[
            "group pm Which river? geography fact river The river [\"t\"] [\"Tagus\", \"Douro\"] 2 2 1 1 2030-01-01 00:00:00+00 open",
            "group pm And the sea? general answer 0193c0de-0000-7000-8000-000000000052 And the sea? [] 1 1 0 0 cancelled",
        ],
    ),
    (
        "concat_ws(' ', target_agent_id, pm_agent_id, task_description, status, has_answered) FROM task_delegations ORDER BY task_id, target_agent_id",
        &[
            "geographer pm The river completed t",
            "historian pm The river pending",
            "geographer pm And the sea? cancelled",
        ],
    ),
    (
        "concat_ws(' ', r.agent_id, response_text, claim, evidence, confidence_score, processing_time_seconds, is_counted, d.target_agent_id) FROM agent_responses r JOIN task_delegations d ON d.id = r.task_delegation_id",
        &[
            "geographer The Tagus. {\"river\": \"Tagus\", \"length\": 1.1} [{\"source\": \"atlas\"}, {\"recalled\": \"0193c0de-0000-7000-8000-000000000072\"}] 0.75 1.5 t geographer",
        ],
    ),
    (
        "concat_ws(' ', node_type, node_key, title, content, validation_status, semantic_tags, verdict, verdict_by, verdict_reason, valid_to IS NULL) FROM consensus_memory_nodes ORDER BY id",
        &[
            "fact river of lisbon A title {\"answer\": \"Tagus\"} unvalidated [\"lisbon\"] t",
            "fact river of porto A title {\"answer\": \"Tagus\"} rejected [\"lisbon\"] rejected ada I looked it up. f",
        ],
    ),
    (
        "concat_ws(' ', relation_type, strength, confidence, removed_at IS NULL) FROM consensus_memory_relations ORDER BY source_node_id",
        &["supports 0.5 0.25 t", "supports 1 1 f"],
    ),
];

#[tokio::test(flavor = "multi_thread")]
async fn every_request_is_found_in_its_table_and_has_its_event() {
    let fixture = with_users([1]).await;
    let requests = all();
    process(&fixture, requests.clone()).await;
    assert_eq!(fixture.dead_letters().await, Vec::<String>::new());
    for (select, expected) in ROWS {
        assert_eq!(fixture.lines(select).await, *expected, "{select}");
    }
    // A repeat changes nothing, and has no second event.
    let events = fixture.count("blackboard_events").await;
    process(&fixture, requests.clone().into_iter().map(|one| RequestMessage { id: Uuid::now_v7(), ..one }))
        .await;
    let kinds: BTreeSet<&str> =
        REQUESTS.iter().filter(|kind| kind.stream == "CONSENSUS").map(|kind| kind.event.as_str()).collect();
    let seen: BTreeSet<String> = fixture
        .lines("event_type FROM blackboard_events WHERE source_agent_id <> 'context-writer'")
        .await
        .into_iter()
        .collect();
    assert!(kinds.iter().all(|kind| seen.contains(*kind)), "{kinds:?} {seen:?}");
    let again = fixture
        .lines(&format!("event_type FROM blackboard_events ORDER BY event_sequence OFFSET {events}"))
        .await;
    // What replaces an earlier record, or moves a relation, does so again.
    let replaced = [
        "agent.configured",
        "agent.retired",
        "agent.profiled",
        "relation.stored",
        "relation.removed",
        "verdict.given",
    ];
    assert!(again.iter().all(|event| replaced.contains(&event.as_str())), "{again:?}");
    assert_eq!(fixture.count("agent_responses").await, 1);
    assert_eq!(fixture.lines(ROWS[2].0).await, ROWS[2].1, "the counters stay");
    let linked = "r.event_id = e.id AND e.event_type = 'response.recorded' FROM agent_responses r JOIN blackboard_events e
        ON e.request_id = r.request_id";
    assert_eq!(fixture.lines(linked).await, ["true"]);
}

/// A valid task of user 1 and of user 2, and what each bad request becomes.
#[tokio::test(flavor = "multi_thread")]
async fn every_bad_request_has_its_outcome() {
    let mut fixture = with_users([1, 2]).await;
    fixture.settings.worker.retry_attempts = 3;
    let (own, foreign) = (Task::of(1), Task::of(2));
    let node =
        |id: &str| json!({ "node_id": id, "node_type": "t", "node_key": id, "title": "t", "content": {} });
    let good = vec![
        start(1),
        start(2),
        own.delegate(&["a", "b"], 2, json!({})),
        foreign.delegate(&["a"], 1, json!({})),
        request("knowledge.propose", 1, node(NODE)),
        request("knowledge.propose", 2, node(OTHER)),
    ];
    process(&fixture, good).await;
    assert_eq!(fixture.dead_letters().await, Vec::<String>::new());

    let unknown = Task::of(1);
    let stolen = Task { user: 1, id: foreign.id };
    let end = json!({ "source_node_id": NODE, "target_node_id": OTHER, "relation_type": "r" });
    let missing = json!({ "source_node_id": NODE, "target_node_id": TASK, "relation_type": "r" });
    let more = |more: Value| own.respond("a", "Tagus", more);
    let longer = "permanent: response_text, claim: response RESPONSE: a text is much longer in its normal form (NFKC) than it is; \
        spell it in plain characters";
    let cases: Vec<(RequestMessage, String)> = vec![
        (
            unknown.respond("a", "x", json!({})),
            format!("missing-prerequisite: task_id: user 1 has no task {} in session group", unknown.id),
        ),
        (
            stolen.respond("a", "x", json!({})),
            format!("missing-prerequisite: task_id: user 1 has no task {} in session group", foreign.id),
        ),
        (
            more(json!({ "session_id": "elsewhere" })),
            format!("missing-prerequisite: task_id: user 1 has no task {} in session elsewhere", own.id),
        ),
        (
            own.respond("stranger", "x", json!({})),
            format!("permanent: agent_id: agent stranger was not asked in task {}", own.id),
        ),
        (more(json!({ "confidence": 1.5 })), "malformed: confidence: 1.5 is not between 0 and 1".into()),
        (more(json!({ "confidence": -0.1 })), "malformed: confidence: -0.1 is not between 0 and 1".into()),
        (
            more(json!({ "claim": "x".repeat(1024 * 1024) })),
            "malformed: body: has BYTES bytes, more than 1048576".into(),
        ),
        (
            more(json!({ "claim": "x".repeat(20_000) })),
            "malformed: claim: has 20002 bytes, more than 16384".into(),
        ),
        (
            more(
                json!({ "claim": serde_json::from_str::<Value>(&format!("{}1{}", "[".repeat(40), "]".repeat(40))).expect("JSON") }),
            ),
            "permanent: claim: response RESPONSE: the claim nests deeper than 32 levels".into(),
        ),
        (own.respond("a", &"\u{fdfa}".repeat(20), json!({})), longer.into()),
        (more(json!({ "claim": { "\u{fdfa}\u{fdfa}": 1 } })), longer.into()),
        (
            own.delegate(&["a"], 2, json!({ "task_id": TASK })),
            "malformed: quorum: is 2, more than the 1 agents that are asked".into(),
        ),
        (
            own.delegate(&["a", "a"], 1, json!({ "task_id": TASK })),
            "malformed: agents: names an agent twice".into(),
        ),
        (
            own.delegate(&["a"], 1, json!({ "task_id": TASK, "options": ["x", "x"] })),
            "malformed: options: must be several different answers, or none".into(),
        ),
        (
            own.delegate(&["a"], 1, json!({ "task_id": TASK, "session_id": "none" })),
            "missing-prerequisite: session_id: user 1 has started no conversation of agents in session none"
                .into(),
        ),
        (
            request("expert-conversation.phase", 1, json!({ "session_id": SESSION, "phase": "synthesis" })),
            "missing-prerequisite: phase: synthesis cannot follow initialization in session group".into(),
        ),
        (
            request("expert-conversation.phase", 1, json!({ "session_id": SESSION, "phase": "completed" })),
            "malformed: phase: is how a conversation starts or ends; use expert-conversation.start or .end"
                .into(),
        ),
        (
            request("expert-conversation.end", 1, json!({ "session_id": SESSION, "outcome": "completed" })),
            "missing-prerequisite: outcome: completed cannot follow initialization in session group".into(),
        ),
        (
            request("relation.put", 1, end),
            format!("missing-prerequisite: source_node_id: user 1 lacks node {NODE} or node {OTHER}"),
        ),
        (
            request("relation.put", 1, missing),
            format!("missing-prerequisite: source_node_id: user 1 lacks node {NODE} or node {TASK}"),
        ),
        (
            request(
                "relation.put",
                1,
                json!({ "source_node_id": NODE, "target_node_id": NODE, "relation_type": "r" }),
            ),
            "malformed: target_node_id: is the source; a relation is between two nodes".into(),
        ),
        (
            verdict(1, OTHER.parse().expect("an id"), "confirm"),
            format!("missing-prerequisite: node_id: user 1 has no node {OTHER}"),
        ),
        (
            request("agent.retire", 1, json!({ "agent_id": "nobody" })),
            "missing-prerequisite: agent_id: user 1 has configured no agent nobody".into(),
        ),
        (
            request("agent.profile", 1, json!({ "agent_id": "nobody", "display_name": "N" })),
            "missing-prerequisite: agent_id: user 1 has configured no agent nobody".into(),
        ),
    ];
    let responses: Vec<String> = cases
        .iter()
        .filter_map(|(case, _)| {
            serde_json::from_slice::<Value>(&case.body).ok()?["response_id"].as_str().map(str::to_owned)
        })
        .collect();
    let mut expected: Vec<String> = cases.iter().map(|(_, outcome)| outcome.clone()).collect();
    process(&fixture, cases.into_iter().map(|(case, _)| case)).await;
    let mut found: Vec<String> = fixture
        .dead_letters()
        .await
        .into_iter()
        .map(|letter| if letter.contains("body: has") { bytes_hidden(&letter) } else { letter })
        .map(|letter| responses.iter().fold(letter, |letter, id| letter.replace(id.as_str(), "RESPONSE")))
        .collect();
    expected.sort();
    found.sort();
    assert_eq!(found, expected);
    assert_eq!(fixture.count("agent_responses").await, 0);
    assert_eq!(fixture.count("consensus_memory_relations").await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn phases_follow_each_other_also_when_they_overtake() {
    let fixture = with_users([1]).await;
    let phase = |phase: &str| {
        request("expert-conversation.phase", 1, json!({ "session_id": SESSION, "phase": phase }))
    };
    let end = |outcome: &str| {
        request("expert-conversation.end", 1, json!({ "session_id": SESSION, "outcome": outcome }))
    };
    // The end comes first, and is tried again until it can follow.
    let way = ["synthesis", "consensus", "execution", "delegation", "planning"];
    let mut requests: Vec<RequestMessage> = vec![end("completed")];
    requests.extend(way.iter().map(|name| phase(name)));
    requests.push(start(1));
    process(&fixture, requests).await;
    assert_eq!(fixture.dead_letters().await, Vec::<String>::new());
    let row = "concat_ws(' ', current_phase, completed_at IS NOT NULL) FROM multi_agent_conversations";
    assert_eq!(fixture.lines(row).await, ["completed t"]);
    let moves = "event_payload ->> 'phase' FROM blackboard_events WHERE event_type = 'expert-conversation.phase-changed'
        ORDER BY event_sequence";
    assert_eq!(fixture.lines(moves).await, ["planning", "delegation", "execution", "consensus", "synthesis"]);
    // After the end nothing follows; the same end changes nothing.
    process(&fixture, [phase("planning"), end("failed"), end("completed")]).await;
    let mut letters = fixture.dead_letters().await;
    letters.sort();
    assert_eq!(
        letters,
        [
            "permanent: outcome: failed cannot follow completed in session group",
            "permanent: phase: planning cannot follow completed in session group"
        ]
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_stored_later_wins_whatever_comes_first() {
    let fixture = with_users([1]).await;
    let node = |id: &str| {
        request(
            "knowledge.propose",
            1,
            json!({ "node_id": id, "node_type": "t", "node_key": id, "title": "t", "content": {} }),
        )
    };
    let relation = |verb: &str| {
        request(
            &format!("relation.{verb}"),
            1,
            json!({ "source_node_id": NODE, "target_node_id": OTHER, "relation_type": "r" }),
        )
    };
    // The agent and the nodes come last: what needs them is tried again, in any order.
    process(
        &fixture,
        [
            relation("put"),
            relation("remove"),
            request("agent.retire", 1, json!({ "agent_id": "a" })),
            agent(1, "a", "x"),
            node(NODE),
            node(OTHER),
        ],
    )
    .await;
    assert_eq!(fixture.dead_letters().await, Vec::<String>::new());
    assert_eq!(fixture.lines("removed_at IS NOT NULL FROM consensus_memory_relations").await, ["true"]);
    // It was retired before it was configured.
    assert_eq!(fixture.lines("is_active FROM agent_configurations").await, ["true"]);
    process(&fixture, [relation("put")]).await;
    assert_eq!(fixture.lines("removed_at IS NULL FROM consensus_memory_relations").await, ["true"]);
}

/// The dead letter of a body that is too large, whose size depends on ids.
fn bytes_hidden(letter: &str) -> String {
    letter
        .split(' ')
        .map(|word| if word.starts_with("1048") && word != "1048576" { "BYTES" } else { word })
        .collect::<Vec<_>>()
        .join(" ")
}

/// All answers to a task are compared with each other, so that each agent has a part of what a task may hold.
#[tokio::test(flavor = "multi_thread")]
async fn many_agents_give_shorter_answers() {
    let fixture = with_users([1]).await;
    let agents: Vec<String> = (0..128).map(|n| format!("agent-{n}")).collect();
    let names: Vec<&str> = agents.iter().map(String::as_str).collect();
    let task = Task::of(1);
    let sources = |count: usize| vec![json!({ "source": "a".repeat(512) }); count];
    let requests = [
        start(1),
        task.delegate(&names, 128, json!({})),
        task.respond("agent-0", &"a".repeat(8_190), json!({ "claim": 12 })),
        task.respond("agent-1", &"a".repeat(8_190), json!({ "claim": 123 })),
        task.respond("agent-2", "", json!({ "evidence": sources(32) })),
        task.respond("agent-3", "", json!({ "evidence": sources(33) })),
    ];
    process(&fixture, requests).await;
    let mut letters = fixture.dead_letters().await;
    letters.sort();
    assert_eq!(
        letters,
        [
            "permanent: evidence: it has 16896 characters; of 128 agents that are asked, each may use 16384",
            "permanent: response_text: text and claim have 8193 characters; of 128 agents that are asked, each may use 8192"
        ]
    );
    assert_eq!(fixture.count("agent_responses").await, 2);
}

/// All responses before the close are read then.
#[tokio::test(flavor = "multi_thread")]
async fn an_agent_responds_to_a_task_a_limited_number_of_times() {
    let fixture = with_users([1]).await;
    let task = Task::of(1);
    let mut requests = vec![start(1), task.delegate(&["a", "b"], 2, json!({}))];
    requests.extend((0..98).map(|_| task.respond("a", "Douro", json!({}))));
    process(&fixture, requests).await;
    assert_eq!(fixture.dead_letters().await, Vec::<String>::new());
    let further = (0..3).map(|_| task.respond("a", "Tagus", json!({})));
    process(&fixture, further.chain([task.respond("b", "Tagus", json!({}))])).await;
    let refused = "permanent: response_id: agent a has given 100 responses, the most to a task";
    assert_eq!(fixture.dead_letters().await, [refused]);
    let responses = "count(*) FROM agent_responses GROUP BY agent_id ORDER BY agent_id";
    assert_eq!(fixture.lines(responses).await, ["100", "1"]);
    assert_eq!(fixture.lines("close_reason FROM consensus_tasks").await, ["quorum"]);
}
