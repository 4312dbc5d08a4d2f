//! How much consensus-builder does at once, and who waits for it.

use std::time::Duration;

use consensus_builder::{ConsensusBuilder, Job};
use diesel_async::SimpleAsyncConnection;
use runtime::Job as _;
use serde_json::json;
use testkit::{RequestMessage, eventually, request};
use tokio::time::timeout;
use uuid::Uuid;

use crate::support::consensus::{
    Task, builder, process, start, three_families, verdict, verified, with_users,
};
use crate::support::ticks::tick;

const THREE: [&str; 3] = ["a", "b", "c"];

fn propose(user: i32, service: &str) -> RequestMessage {
    let body = json!({ "node_id": Uuid::now_v7(), "node_type": "note", "node_key": "k", "title": "Title",
        "content": { "answer": "The Tagus" } });
    let mut request = request("knowledge.propose", user, body);
    request.subject = request.subject.replacen(".test.", &format!(".{service}."), 1);
    request
}

#[tokio::test(flavor = "multi_thread")]
async fn a_verdict_holds_up_its_user_alone() {
    let fixture = with_users([1, 2]).await;
    fixture.register("other", "*:*").await;
    let task = Task::of(1);
    let mut requests = three_families(1);
    requests.push(task.delegate(&THREE, 3, json!({})));
    requests.extend(task.all_say(&THREE, "The Tagus"));
    process(&fixture, requests).await;
    let node = task.node(&fixture).await;
    let mut settings = fixture.settings.clone();
    // Longer than the test waits.
    settings.postgres.lock_timeout_ms = 60_000;
    settings.postgres.statement_timeout_ms = 60_000;
    let worker = fixture.run_with(builder(&fixture).await, settings);
    let mut holder = fixture.connection().await;
    let lock = format!(
        "SET idle_in_transaction_session_timeout = 0; BEGIN; SELECT FROM consensus_memory_nodes WHERE id = '{node}' FOR UPDATE"
    );
    holder.batch_execute(&lock).await.expect("a lock");

    fixture.publish([verdict(1, node, "confirm")]).await;
    eventually("the verdict waits for the lock", async || {
        let waiting = "pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'";
        (fixture.count(waiting).await > 0).then_some(())
    })
    .await;
    fixture.publish([propose(1, "test"), propose(2, "test"), propose(2, "other")]).await;
    let others = eventually("the others are written", async || {
        (fixture.count("consensus_memory_nodes WHERE user_id = 2").await == 2).then_some(())
    });
    timeout(Duration::from_secs(20), others).await.expect("nobody else waits for a verdict");
    let own = "consensus_memory_nodes WHERE user_id = 1 AND node_type = 'note'";
    assert_eq!(fixture.count(own).await, 0, "what follows a verdict keeps its place");
    holder.batch_execute("ROLLBACK").await.expect("no lock");
    fixture.drained::<ConsensusBuilder>().await;
    assert_eq!(fixture.count(own).await, 1);
    assert_eq!(fixture.count("blackboard_events WHERE event_type = 'verdict.given'").await, 1);
    assert_eq!(worker.stats.report().retried, 0);
    assert_eq!(fixture.dead_letters().await, Vec::<String>::new());
    worker.stop().await.expect("a clean end");
}

/// However small they are, and although all of them wait.
#[tokio::test(flavor = "multi_thread")]
async fn each_verdict_is_a_transaction_of_its_own() {
    let fixture = with_users([1, 2, 3, 4]).await;
    let mut verdicts = Vec::new();
    for user in 1..=4 {
        let proposal = propose(user, "test");
        let body: serde_json::Value = serde_json::from_slice(&proposal.body).expect("JSON");
        let node = body["node_id"].as_str().expect("an id").parse().expect("a UUID");
        process(&fixture, [proposal]).await;
        verdicts.push(verdict(user, node, "confirm"));
    }
    process(&fixture, verdicts).await;
    let given = "blackboard_events WHERE event_type = 'verdict.given'";
    assert_eq!(fixture.count(given).await, 4);
    assert_eq!(fixture.lines(&format!("count(DISTINCT transaction_id) FROM {given}")).await, ["4"]);
}

/// The row of a dossier holds all answers, and the audit trail digests it.
#[tokio::test(flavor = "multi_thread")]
async fn a_verdict_that_changes_nothing_leaves_the_dossier() {
    let fixture = with_users([1]).await;
    let task = Task::of(1);
    let mut requests = three_families(1);
    requests.push(task.delegate(&THREE, 3, json!({})));
    requests.extend(task.all_say(&THREE, "The Tagus"));
    process(&fixture, requests).await;
    let node = task.node(&fixture).await;
    let written = async || fixture.lines("xmin FROM consensus_dossiers").await;
    let mut before = written().await;
    for (number, (kind, status, is_written)) in [
        ("reopen", "validated", false),
        ("reject", "rejected", true),
        ("reject", "rejected", false),
        ("confirm", "validated", true),
        ("reopen", "validated", true),
        ("reopen", "validated", false),
    ]
    .into_iter()
    .enumerate()
    {
        process(&fixture, [verdict(1, node, kind)]).await;
        let after = written().await;
        assert_eq!(after != before, is_written, "{number}: {kind}");
        assert!(task.outcome(&fixture).await.starts_with(status), "{number}: {kind}");
        assert_eq!(verified(&fixture).await, 1);
        before = after;
    }
    let events = "event_payload ->> 'validation_status' FROM blackboard_events WHERE event_type = 'verdict.given' ORDER BY event_sequence";
    let statuses = ["validated", "rejected", "rejected", "validated", "validated", "validated"];
    assert_eq!(fixture.lines(events).await, statuses);
    assert_eq!(fixture.dead_letters().await, Vec::<String>::new());
}

/// Each is short, but there are 500 of them, which are compared in pairs.
#[tokio::test(flavor = "multi_thread")]
async fn the_last_responses_to_large_tasks_close_a_few_of_them_at_a_time() {
    let fixture = with_users([1]).await;
    let agents: Vec<String> = (1..500).map(|n| format!("agent-{n}")).chain(["last".to_owned()]).collect();
    let names: Vec<&str> = agents.iter().map(String::as_str).collect();
    let tasks: Vec<Task> = (0..6).map(|_| Task::of(1)).collect();
    let delegations = tasks.iter().map(|task| task.delegate(&names, 500, json!({})));
    process(&fixture, [start(1)].into_iter().chain(delegations)).await;
    fixture
        .execute(
            "SET session_replication_role = replica;
             INSERT INTO agent_responses (id, user_id, task_delegation_id, task_id, agent_id, response_text)
             SELECT md5(t.id::text || a)::uuid, 1, md5(t.id::text || a)::uuid, t.id, 'agent-' || a, 'yes'
             FROM consensus_tasks t, generate_series(1, 499) AS a;
             UPDATE consensus_tasks SET responded = 499, answered = 499",
        )
        .await;
    fixture.publish(tasks.iter().map(|task| task.respond("last", "no", json!({})))).await;
    let mut settings = fixture.settings.clone();
    // They come in one batch.
    settings.worker.batch_wait_ms = 1_000;
    let worker = fixture.run_with(builder(&fixture).await, settings);
    fixture.drained::<ConsensusBuilder>().await;
    let closed = async || {
        let found = fixture.lines("state || ' ' || coalesce(close_reason, '') || ' ' || answered FROM consensus_tasks ORDER BY 1").await;
        (found.iter().filter(|task| *task == "closed quorum 500").count(), found.len())
    };
    assert_eq!(closed().await, (4, 6));
    // The others are complete: nothing that comes later takes their turn.
    let open =
        "id FROM consensus_tasks WHERE state = 'open' AND answered = 500 AND deadline <= now() ORDER BY id";
    let open = fixture.lines(open).await;
    assert_eq!(open.len(), 2);
    let is_open = |task: &&Task| open.contains(&task.id.to_string());
    let cancel = |task: &Task| {
        let body = json!({ "task_id": task.id, "session_id": "group", "reason": "Off." });
        request("task.cancel", 1, body)
    };
    let late = tasks
        .iter()
        .filter(is_open)
        .flat_map(|task| [task.respond("agent-1", "another answer", json!({})), cancel(task)]);
    fixture.publish(late).await;
    fixture.drained::<ConsensusBuilder>().await;
    assert_eq!(
        fixture.count("agent_responses WHERE response_text = 'another answer' AND NOT is_counted").await,
        2
    );
    tick(&fixture, "consensus-builder", Job::Close.name()).await;
    assert_eq!(closed().await, (6, 6));
    assert_eq!(fixture.dead_letters().await, Vec::<String>::new());
    worker.stop().await.expect("a clean end");
}

/// Short answers of many agents: four tasks of 500 and one more.
#[tokio::test(flavor = "multi_thread")]
async fn a_tick_compares_a_limited_number_of_pairs() {
    let fixture = with_users([1]).await;
    process(&fixture, three_families(1)).await;
    fixture
        .execute(
            "SET session_replication_role = replica;
             INSERT INTO consensus_tasks (id, user_id, session_id, pm_agent_id, question, task_kind, node_type, node_key, title, quorum,
                asked, responded, answered, deadline)
             SELECT md5('many' || t)::uuid, 1, 'group', 'pm', 'q', 'kind', 'answer', 'many' || t, 'n', 500, 500, 500, 500,
                '2026-01-01T00:00:00Z'
             FROM generate_series(1, 6) AS t;
             INSERT INTO agent_responses (id, user_id, task_delegation_id, task_id, agent_id, response_text)
             SELECT md5(t.id::text || a)::uuid, 1, md5(t.id::text || a)::uuid, t.id, 'agent-' || a, 'yes'
             FROM consensus_tasks t, generate_series(1, 500) AS a;
             UPDATE multi_agent_conversations SET total_tasks_delegated = 6 WHERE user_id = 1",
        )
        .await;
    let worker = fixture.run(builder(&fixture).await);
    tick(&fixture, "consensus-builder", Job::Close.name()).await;
    assert_eq!(fixture.count("consensus_tasks WHERE state = 'closed'").await, 5);
    tick(&fixture, "consensus-builder", Job::Close.name()).await;
    assert_eq!(fixture.count("consensus_tasks WHERE state = 'closed'").await, 6);
    worker.stop().await.expect("a clean end");
}
