//! The close of tasks: what is validated, disputed and superseded, whoever closes a task and in whatever order responses come.

use std::collections::BTreeSet;
use std::time::Duration;

use consensus_builder::ConsensusBuilder;
use diesel_async::SimpleAsyncConnection;
use serde_json::{Value, json};
use testkit::{Fixture, RequestMessage, eventually, request, set_duplicate_window};
use uuid::Uuid;

use crate::support::consensus::{
    SESSION, Task, agent, builder, know, process, start, three_families, verdict, verified, with_users,
};

const THREE: [&str; 3] = ["a", "b", "c"];

/// A task with a node of this key, to three agents of three families.
fn keyed(user: i32) -> (Task, RequestMessage) {
    let task = Task::of(user);
    let delegate = task.delegate(&THREE, 3, json!({ "node_type": "fact", "node_key": "river" }));
    (task, delegate)
}

const EVENTS: &str =
    "event_type FROM blackboard_events WHERE event_type <> 'user.stored' ORDER BY event_sequence";

#[tokio::test(flavor = "multi_thread")]
async fn three_families_validate_and_four_agents_of_one_family_do_not() {
    let fixture = with_users([1, 2]).await;
    let (three, four) = (Task::of(1), Task::of(2));
    let mut requests = three_families(1);
    requests.push(three.delegate(&THREE, 3, json!({})));
    requests.extend(three.all_say(&THREE, "The Tagus"));
    let all = ["a", "b", "c", "d"];
    requests.push(start(2));
    requests.extend(all.iter().map(|id| agent(2, id, "x")));
    requests.push(four.delegate(&all, 4, json!({})));
    requests.extend(four.all_say(&all, "The Tagus"));
    process(&fixture, requests).await;
    assert_eq!(fixture.dead_letters().await, Vec::<String>::new());
    assert_eq!(three.outcome(&fixture).await, r#"validated 0.75 ["sufficient"]"#);
    let outcome = four.outcome(&fixture).await;
    assert!(
        outcome.starts_with("unvalidated 0.5") && outcome.ends_with(r#"["few-independent"]"#),
        "{outcome}"
    );
    let row = "concat_ws(' ', content ->> 'answer', content ->> 'question', title, valid_to IS NULL, is_active) FROM consensus_memory_nodes
        WHERE user_id = 1";
    assert_eq!(
        fixture.lines(row).await,
        ["The Tagus Which river flows through Lisbon? Which river flows through Lisbon? t t"]
    );
    let tasks = "concat_ws(' ', state, close_reason, responded, answered, voters, choices, node_id IS NOT NULL) FROM consensus_tasks WHERE user_id = 1";
    assert_eq!(fixture.lines(tasks).await, ["closed quorum 3 3 {a,b,c} {0,0,0} t"]);
    let counters = "concat_ws(' ', total_tasks_delegated, tasks_completed) FROM multi_agent_conversations";
    assert_eq!(fixture.lines(counters).await, ["1 1", "1 1"]);
    assert_eq!(verified(&fixture).await, 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_last_response_causes_all_events_in_order() {
    let fixture = with_users([1]).await;
    let (first, delegate_first) = keyed(1);
    let (second, delegate_second) = keyed(1);
    let mut requests = three_families(1);
    requests.push(delegate_first);
    requests.extend(first.all_say(&THREE, "The Tagus"));
    process(&fixture, requests).await;
    let skip = fixture.lines(EVENTS).await.len();
    process(&fixture, [delegate_second].into_iter().chain(second.all_say(&THREE, "the  TAGUS"))).await;
    let events = fixture.lines(EVENTS).await.split_off(skip);
    assert_eq!(
        events,
        [
            "task.delegated",
            "response.recorded",
            "response.recorded",
            "response.recorded",
            "task.completed",
            "node.established",
            "node.superseded"
        ]
    );
    let sessions =
        "session_id FROM blackboard_events WHERE event_type::text ~ '^(task|node|response)' GROUP BY 1";
    assert_eq!(fixture.lines(sessions).await, [SESSION]);
    let payload = "concat_ws(' ', event_payload ->> 'node_id', event_payload ->> 'superseded_by') FROM blackboard_events
        WHERE event_type = 'node.superseded'";
    let (old, new) = (first.node(&fixture).await, second.node(&fixture).await);
    assert_eq!(fixture.lines(payload).await, [format!("{old} {new}")]);
    // The dossier names what led to it: the delegation, and the responses.
    let causes =
        "jsonb_array_length(convert_from(dossier, 'UTF8')::jsonb -> 'causality') FROM consensus_dossiers";
    assert_eq!(fixture.lines(causes).await, ["4", "4"]);
    let known = "count(*) FROM consensus_dossiers d, jsonb_array_elements_text(convert_from(dossier, 'UTF8')::jsonb -> 'causality') AS c
        JOIN blackboard_events e ON e.id = c::uuid";
    assert_eq!(fixture.lines(known).await, ["8"]);
}

/// JSON may nest deeper than a claim.
#[tokio::test(flavor = "multi_thread")]
async fn a_proposal_that_no_answer_can_be_compared_with_keeps_no_task_open() {
    let fixture = with_users([1]).await;
    let claim = format!("{}1{}", "[".repeat(40), "]".repeat(40));
    let claim: Value = serde_json::from_str(&claim).expect("JSON");
    let (node, (task, delegate)) = (Uuid::now_v7(), keyed(1));
    let proposal = json!({ "node_id": node, "node_type": "fact", "node_key": "river", "title": "The river",
        "content": { "answer": "The Tagus", "claim": claim } });
    let mut requests = three_families(1);
    requests.extend([request("knowledge.propose", 1, proposal), verdict(1, node, "confirm"), delegate]);
    requests.extend(task.all_say(&THREE, "The Tagus"));
    process(&fixture, requests).await;
    assert_eq!(fixture.dead_letters().await, Vec::<String>::new());
    assert_eq!(task.outcome(&fixture).await, r#"disputed 0.75 ["contradiction"]"#);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_validated_answer_supersedes_and_a_contradiction_is_disputed_until_a_verdict() {
    let fixture = with_users([1]).await;
    let tasks: Vec<(Task, RequestMessage)> = (0..3).map(|_| keyed(1)).collect();
    let [(first, one), (second, two), (third, three)] = tasks.try_into().expect("three");
    let mut requests = three_families(1);
    requests.push(one);
    requests.extend(first.all_say(&THREE, "The Tagus"));
    requests.push(two);
    requests.extend(second.all_say(&THREE, "the tagus"));
    requests.push(three);
    requests.extend(third.all_say(&THREE, "The Douro"));
    // All in one batch: each sees what the one before established.
    process(&fixture, requests).await;
    assert_eq!(fixture.dead_letters().await, Vec::<String>::new());
    let nodes = [first.node(&fixture).await, second.node(&fixture).await, third.node(&fixture).await];
    assert!(first.outcome(&fixture).await.starts_with("superseded "));
    assert!(second.outcome(&fixture).await.starts_with("validated "));
    assert_eq!(third.outcome(&fixture).await, r#"disputed 0.75 ["contradiction"]"#);
    let interval = "o.superseded_by = n.id AND o.valid_to = n.valid_from AND NOT o.is_active
        FROM consensus_memory_nodes o JOIN consensus_memory_nodes n ON n.id = o.superseded_by";
    assert_eq!(fixture.lines(interval).await, ["true"]);
    let contradicts = format!("standing -> 'contradicts' FROM consensus_dossiers WHERE id = '{}'", nodes[2]);
    assert_eq!(fixture.lines(&contradicts).await, [format!("[\"{}\"]", nodes[1])]);
    assert_eq!(verified(&fixture).await, 3);

    // A human says that the new answer is right: it takes the place of the validated one.
    process(&fixture, [verdict(1, nodes[2], "confirm")]).await;
    assert_eq!(third.outcome(&fixture).await, r#"validated 0.75 ["contradiction"]"#);
    assert!(second.outcome(&fixture).await.starts_with("superseded "));
    assert_eq!(fixture.lines(interval).await, ["true", "true"]);
    let truth = "concat_ws(' ', t.truth, e.estimated_at IS NULL) FROM consensus_tasks t JOIN task_estimates e USING (user_id, id)
        WHERE t.truth IS NOT NULL";
    assert_eq!(fixture.lines(truth).await, ["0 t"]);
    // Rejected, it is valid no more, and nothing is valid for the key; reopened, its votes count again.
    process(&fixture, [verdict(1, nodes[2], "reject")]).await;
    assert!(third.outcome(&fixture).await.starts_with("rejected "));
    assert_eq!(fixture.count("consensus_memory_nodes WHERE valid_to IS NULL").await, 0);
    process(&fixture, [verdict(1, nodes[2], "reopen")]).await;
    assert!(third.outcome(&fixture).await.starts_with("validated "));
    assert_eq!(fixture.count("consensus_memory_nodes WHERE valid_to IS NULL").await, 1);
    // One that was superseded stays so.
    process(&fixture, [verdict(1, nodes[0], "confirm")]).await;
    assert!(first.outcome(&fixture).await.starts_with("superseded "));
    assert_eq!(verified(&fixture).await, 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_confirmed_proposal_is_superseded_by_the_same_answer_and_contradicted_by_another() {
    let fixture = with_users([1]).await;
    let proposal = Uuid::now_v7();
    let body = json!({ "node_id": proposal, "node_type": "fact", "node_key": "river", "title": "The river",
        "content": { "answer": "The Tagus" } });
    let (other, delegate_other) = keyed(1);
    let mut requests = three_families(1);
    requests.push(request("knowledge.propose", 1, body));
    requests.push(verdict(1, proposal, "confirm"));
    requests.push(delegate_other);
    requests.extend(other.all_say(&THREE, "The Douro"));
    process(&fixture, requests).await;
    let status = format!("validation_status FROM consensus_memory_nodes WHERE id = '{proposal}'");
    assert_eq!(fixture.lines(&status).await, ["validated"]);
    assert!(other.outcome(&fixture).await.starts_with("disputed "));
    let (same, delegate_same) = keyed(1);
    process(&fixture, [delegate_same].into_iter().chain(same.all_say(&THREE, "The Tagus"))).await;
    assert_eq!(fixture.lines(&status).await, ["superseded"]);
    assert!(same.outcome(&fixture).await.starts_with("validated "));
    assert!(other.outcome(&fixture).await.starts_with("superseded "), "what was disputed is settled");
}

/// Publishers choose the ids of nodes that they propose. None can take the one that a task's node will have.
#[tokio::test(flavor = "multi_thread")]
async fn the_id_of_a_node_cannot_be_taken_before_its_task_closes() {
    let fixture = with_users([1]).await;
    let (task, delegate) = keyed(1);
    let mut requests = three_families(1);
    requests.push(delegate);
    for (number, foreseen) in
        [task.id, Uuid::new_v5(&task.id, b"node"), Uuid::new_v5(&Uuid::NAMESPACE_OID, task.id.as_bytes())]
            .into_iter()
            .enumerate()
    {
        let body = json!({ "node_id": foreseen, "node_type": "note", "node_key": format!("n{number}"), "title": "Taken",
            "content": {} });
        requests.push(request("knowledge.propose", 1, body));
    }
    requests.extend(task.all_say(&THREE, "The Tagus"));
    process(&fixture, requests).await;
    assert!(task.outcome(&fixture).await.starts_with("validated "));
    assert_eq!(fixture.dead_letters().await, [""; 0]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tie_is_disputed_with_both_named() {
    let fixture = with_users([1]).await;
    let task = Task::of(1);
    let agents = ["a", "b", "c", "d"];
    let mut requests: Vec<RequestMessage> =
        agents.iter().zip(["w", "x", "y", "z"]).map(|(id, family)| agent(1, id, family)).collect();
    requests.extend([start(1), task.delegate(&agents, 4, json!({}))]);
    requests.extend(task.all_say(&["a", "b"], "The Tagus"));
    requests.extend(task.all_say(&["c", "d"], "The Douro"));
    process(&fixture, requests).await;
    let outcome = task.outcome(&fixture).await;
    assert!(outcome.starts_with("disputed ") && outcome.contains("\"tie\""), "{outcome}");
    let content = fixture.lines("content FROM consensus_memory_nodes").await;
    let content: Value = serde_json::from_str(&content[0]).expect("JSON");
    assert_eq!(content.get("answer"), None);
    let answers: BTreeSet<&str> = content["candidates"]
        .as_array()
        .expect("both")
        .iter()
        .filter_map(|one| one["answer"].as_str())
        .collect();
    assert_eq!(answers, BTreeSet::from(["The Douro", "The Tagus"]));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_late_response_is_recorded_and_not_counted() {
    let fixture = with_users([1]).await;
    let task = Task::of(1);
    let mut requests = three_families(1);
    requests.push(task.delegate(&["a", "b", "c", "d"], 3, json!({})));
    requests.extend(task.all_say(&THREE, "The Tagus"));
    requests.push(task.respond("d", "The Douro", json!({})));
    requests.push(task.respond("a", "The Douro", json!({})));
    process(&fixture, requests).await;
    assert_eq!(fixture.dead_letters().await, Vec::<String>::new());
    assert_eq!(task.outcome(&fixture).await, r#"validated 0.75 ["sufficient"]"#);
    let counted = "is_counted FROM agent_responses ORDER BY stored_sequence";
    assert_eq!(fixture.lines(counted).await, ["true", "true", "true", "false", "false"]);
    let told = "event_payload ->> 'is_counted' FROM blackboard_events WHERE event_type = 'response.recorded' ORDER BY event_sequence";
    assert_eq!(fixture.lines(told).await, ["NULL", "NULL", "NULL", "false", "false"]);
    let delegations = "status FROM task_delegations ORDER BY target_agent_id";
    assert_eq!(fixture.lines(delegations).await, ["completed", "completed", "completed", "cancelled"]);
    let row = "concat_ws(' ', responded, answered) FROM consensus_tasks";
    assert_eq!(fixture.lines(row).await, ["3 3"]);
    assert_eq!(fixture.lines("tasks_completed FROM multi_agent_conversations").await, ["1"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn abstentions_are_no_answers_and_what_was_recalled_is_no_evidence() {
    let fixture = with_users([1, 2, 3]).await;
    let (silent, recalled, revised) = (Task::of(1), Task::of(2), Task::of(3));
    let mut requests: Vec<RequestMessage> = (1..=3).flat_map(three_families).collect();
    requests.push(silent.delegate(&THREE, 2, json!({})));
    requests.push(silent.respond("a", "", json!({})));
    requests.push(silent.respond("b", "I don't know", json!({})));
    requests.push(silent.respond("c", "  ", json!({ "claim": null })));
    requests.push(recalled.delegate(&THREE, 3, json!({})));
    let memory = json!({ "evidence": [{ "recalled": Uuid::now_v7() }] });
    requests.extend(THREE.map(|id| recalled.respond(id, "The Tagus", memory.clone())));
    // The latest response of an agent counts: b abstains first and answers then.
    requests.push(revised.delegate(&THREE, 3, json!({})));
    requests.push(revised.respond("a", "The Douro", json!({})));
    requests.push(revised.respond("b", "", json!({})));
    requests.push(revised.respond("a", "The Tagus", json!({})));
    requests.push(revised.respond("b", "The Tagus", json!({})));
    requests.push(revised.respond("c", "The Tagus", json!({})));
    process(&fixture, requests).await;
    assert_eq!(fixture.dead_letters().await, Vec::<String>::new());
    assert_eq!(silent.outcome(&fixture).await, r#"unvalidated 0 ["no-answer", "no-quorum"]"#);
    let reasons = "close_reason FROM consensus_tasks ORDER BY user_id";
    assert_eq!(fixture.lines(reasons).await, ["all-answered", "quorum", "quorum"]);
    let outcome = recalled.outcome(&fixture).await;
    assert!(outcome.starts_with("unvalidated 0 "), "{outcome}");
    assert_eq!(revised.outcome(&fixture).await, r#"validated 0.75 ["sufficient"]"#);
    assert_eq!(verified(&fixture).await, 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn claims_count_before_texts_and_keep_their_digits() {
    let fixture = with_users([1]).await;
    let task = Task::of(1);
    let long = "0.1234567890123456789012345";
    let mut requests = three_families(1);
    requests.push(task.delegate(&THREE, 3, json!({})));
    requests.extend(THREE.map(|id| {
        let claim = json!({ "claim": { "length": "LONG" } });
        task.respond(id, &format!("{id} says so"), claim).map_body(|body| body.replace("\"LONG\"", long))
    }));
    process(&fixture, requests).await;
    assert_eq!(task.outcome(&fixture).await, r#"validated 0.75 ["sufficient"]"#);
    let claim = "content -> 'claim' FROM consensus_memory_nodes";
    assert_eq!(fixture.lines(claim).await, [format!("{{\"length\": {long}}}")]);
}

/// The same responses in several orders, each for a user of its own.
#[tokio::test(flavor = "multi_thread")]
async fn the_order_of_arrival_does_not_change_the_result() {
    const USERS: i32 = 12;
    let fixture = with_users(1..=USERS).await;
    let agents = ["a", "b", "c", "d", "e", "f"];
    let mut requests = Vec::new();
    let mut random = fastrand::Rng::with_seed(19);
    for user in 1..=USERS {
        let task = Task::of(user);
        requests.extend(
            agents.iter().zip(["v", "v", "w", "x", "y", "z"]).map(|(id, family)| agent(user, id, family)),
        );
        requests.extend([start(user), task.delegate(&agents, 6, json!({}))]);
        let answers = ["Tagus", "tagus", "Tagus", "Douro", "TAGUS", "The Tagus"];
        let mut responses: Vec<RequestMessage> = agents
            .iter()
            .zip(answers)
            .enumerate()
            .map(|(place, (id, text))| {
                let more = json!({ "confidence": 0.1 * place as f64, "evidence": [{ "source": format!("s{}", place % 4) }] });
                task.respond(id, text, more)
            })
            .collect();
        random.shuffle(&mut responses);
        requests.extend(responses);
    }
    process(&fixture, requests).await;
    assert_eq!(fixture.count("consensus_memory_nodes").await, i64::from(USERS));
    let results = "concat_ws(' ', n.validation_status, n.consensus_score, d.dossier -> 'outcome', d.dossier #> '{clusters,0,agents}',
        d.dossier #> '{clusters,0,answer}') FROM consensus_memory_nodes n
        JOIN (SELECT user_id, id, convert_from(dossier, 'UTF8')::jsonb AS dossier FROM consensus_dossiers) d
        ON d.user_id = n.user_id AND d.id = n.id GROUP BY 1";
    let results = fixture.lines(results).await;
    assert_eq!(results.len(), 1, "{results:#?}");
    assert_eq!(verified(&fixture).await, usize::try_from(USERS).expect("a count"));
}

/// Replicas with small batches, and every message twice.
/// A response is decided by what the transaction before it has left of its task.
#[tokio::test(flavor = "multi_thread")]
async fn a_response_waits_for_whoever_writes_its_task() {
    let mut fixture = with_users([1]).await;
    fixture.settings.postgres.lock_timeout_ms = 30_000;
    let task = Task::of(1);
    let mut requests = three_families(1);
    requests.push(task.delegate(&THREE, 2, json!({})));
    process(&fixture, requests).await;
    let mut other = fixture.connection().await;
    let hold = "SET session_replication_role = replica; BEGIN; UPDATE consensus_tasks SET quorum = 1";
    other.batch_execute(hold).await.expect("a lock");
    let worker = fixture.run(builder(&fixture).await);
    fixture.publish([task.respond("a", "The Tagus", json!({}))]).await;
    let waits = "pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'
        AND query LIKE '%consensus_tasks%'";
    eventually("the response waits", async || (fixture.count(waits).await > 0).then_some(())).await;
    other.batch_execute("COMMIT").await.expect("a commit");
    fixture.drained::<ConsensusBuilder>().await;
    worker.stop().await.expect("a clean end");
    assert_eq!(fixture.count("consensus_tasks WHERE state = 'closed'").await, 1);
    assert_eq!(fixture.dead_letters().await, Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn replicas_close_each_task_once_and_a_repeat_changes_no_counter() {
    const TASKS: usize = 60;
    let fixture = know(
        Fixture::with_topology(|topology| {
            set_duplicate_window(topology, "CONSENSUS", Duration::from_millis(100));
        })
        .await,
        [1],
    )
    .await;
    process(&fixture, three_families(1)).await;
    let mut settings = fixture.settings.clone();
    settings.worker.batch_size = 3;
    let mut replicas = Vec::new();
    for _ in 0..3 {
        replicas.push(fixture.run_with(builder(&fixture).await, settings.clone()));
    }
    let tasks: Vec<Task> = (0..TASKS).map(|_| Task::of(1)).collect();
    let mut messages: Vec<RequestMessage> = Vec::new();
    // Ten keys, so that tasks of one key close beside each other.
    messages.extend(
        tasks
            .iter()
            .enumerate()
            .map(|(place, task)| task.delegate(&THREE, 2, json!({ "node_key": format!("k{}", place % 10) }))),
    );
    for id in THREE {
        messages.extend(tasks.iter().map(|task| task.respond(id, "The Tagus", json!({}))));
    }
    fixture.publish(messages.clone()).await;
    fixture.drained::<ConsensusBuilder>().await;
    fixture.publish(messages).await;
    fixture.drained::<ConsensusBuilder>().await;
    for replica in replicas {
        replica.stop().await.expect("a clean end");
    }
    assert_eq!(fixture.dead_letters().await, Vec::<String>::new());
    let count = i64::try_from(TASKS).expect("a count");
    let counters = "concat_ws(' ', total_tasks_delegated, tasks_completed) FROM multi_agent_conversations";
    assert_eq!(fixture.lines(counters).await, [format!("{TASKS} {TASKS}")]);
    assert_eq!(fixture.count("consensus_memory_nodes").await, count);
    assert_eq!(fixture.count("consensus_tasks WHERE state = 'closed' AND answered = 2").await, count);
    assert_eq!(fixture.count("agent_responses").await, 3 * count);
    assert_eq!(fixture.count("agent_responses WHERE is_counted").await, 2 * count);
    for event in ["task.completed", "node.established", "task.delegated"] {
        assert_eq!(
            fixture.count(&format!("blackboard_events WHERE event_type = '{event}'")).await,
            count,
            "{event}"
        );
    }
    assert_eq!(verified(&fixture).await, TASKS);
}

/// Of one key, at most one validated node is valid at a time, also when replicas validate beside each other.
#[tokio::test(flavor = "multi_thread")]
async fn replicas_that_validate_one_key_leave_one_valid_node() {
    const TASKS: usize = 30;
    let fixture = with_users([1]).await;
    process(&fixture, three_families(1)).await;
    let mut settings = fixture.settings.clone();
    settings.worker.batch_size = 2;
    let mut replicas = Vec::new();
    for _ in 0..3 {
        replicas.push(fixture.run_with(builder(&fixture).await, settings.clone()));
    }
    let tasks: Vec<(Task, RequestMessage)> = (0..TASKS).map(|_| keyed(1)).collect();
    let mut messages: Vec<RequestMessage> = tasks.iter().map(|(_, delegate)| delegate.clone()).collect();
    for id in THREE {
        messages.extend(tasks.iter().map(|(task, _)| task.respond(id, "The Tagus", json!({}))));
    }
    fixture.publish(messages).await;
    fixture.drained::<ConsensusBuilder>().await;
    for replica in replicas {
        replica.stop().await.expect("a clean end");
    }
    assert_eq!(fixture.dead_letters().await, Vec::<String>::new());
    let status = "concat_ws(' ', validation_status, count(*)) FROM consensus_memory_nodes GROUP BY validation_status ORDER BY 1";
    assert_eq!(fixture.lines(status).await, [format!("superseded {}", TASKS - 1), "validated 1".to_owned()]);
    let chain =
        "count(*) FROM consensus_memory_nodes o JOIN consensus_memory_nodes n ON n.id = o.superseded_by
        AND o.valid_to = n.valid_from";
    assert_eq!(fixture.lines(chain).await, [(TASKS - 1).to_string()]);
    assert_eq!(verified(&fixture).await, TASKS);
}
