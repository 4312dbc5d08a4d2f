//! consensus-builder where little is certain: votes that say nothing, cancelled tasks, and a deadline that meets the last response.

use consensus_builder::{ConsensusBuilder, Job};
use diesel_async::SimpleAsyncConnection;
use serde_json::json;
use testkit::{Fixture, RequestMessage, eventually, request};

use crate::support::consensus::{
    SESSION, Task, builder, process, start, three_families, verified, with_users,
};
use crate::support::ticks;

const THREE: [&str; 3] = ["a", "b", "c"];
const PAST: &str = "2026-01-01T00:00:00Z";

fn cancel(task: &Task) -> RequestMessage {
    let body = json!({ "task_id": task.id, "session_id": SESSION, "reason": "Not needed." });
    request("task.cancel", task.user, body)
}

/// Lets a worker process the tick of the deadline.
async fn close_late_tasks(fixture: &Fixture) {
    let worker = fixture.run(builder(fixture).await);
    ticks::tick(fixture, "consensus-builder", runtime::Job::name(Job::Close)).await;
    worker.stop().await.expect("a clean end");
}

/// Whatever the votes are, the database accepts the row of the task and of the node.
#[tokio::test(flavor = "multi_thread")]
async fn votes_that_decide_nothing_close_their_tasks() {
    let fixture = with_users(1..=4).await;
    // The agents of user 4 were always wrong.
    fixture
        .execute(
            "SET session_replication_role = replica;
             INSERT INTO agent_records (id, user_id, agent_id, task_kind, right_micro, wrong_micro, confidence_micro)
             SELECT md5(a)::uuid, 4, a, 'rivers', 0, 20000000, 0 FROM unnest(ARRAY['a', 'b', 'c']) AS a",
        )
        .await;
    let [silent, single, scattered, unreliable] = [1, 2, 3, 4].map(Task::of);
    let mut requests: Vec<RequestMessage> = (1..=4).flat_map(three_families).collect();
    requests.push(silent.delegate(&THREE, 2, json!({ "deadline": PAST })));
    requests.push(single.delegate(&["a"], 1, json!({})));
    requests.extend(single.all_say(&["a"], "The Tagus"));
    requests.push(scattered.delegate(&THREE, 3, json!({})));
    for (id, text) in THREE.iter().zip(["The Tagus", "The Douro", "The Minho"]) {
        requests.push(scattered.respond(id, text, json!({})));
    }
    requests.push(unreliable.delegate(&THREE, 3, json!({ "task_kind": "rivers" })));
    requests.extend(unreliable.all_say(&THREE, "The Tagus"));
    process(&fixture, requests).await;
    close_late_tasks(&fixture).await;
    assert_eq!(fixture.dead_letters().await, Vec::<String>::new());
    assert_eq!(silent.outcome(&fixture).await, r#"unvalidated 0 ["no-answer", "no-quorum"]"#);
    assert_eq!(single.outcome(&fixture).await, r#"unvalidated 0.5 ["few-independent"]"#);
    assert_eq!(scattered.outcome(&fixture).await, r#"disputed 0.25 ["tie"]"#);
    let outcome = unreliable.outcome(&fixture).await;
    assert!(outcome.starts_with(r#"unvalidated 0 ["no-answer""#), "{outcome}");
    let tasks = "concat_ws(' ', state, close_reason, responded, answered, voters) FROM consensus_tasks ORDER BY user_id";
    let expected = [
        "closed deadline 0 0 {}",
        "closed quorum 1 1 {a}",
        "closed quorum 3 3 {a,b,c}",
        "closed quorum 3 3 {a,b,c}",
    ];
    assert_eq!(fixture.lines(tasks).await, expected);
    let counters = "concat_ws(' ', total_tasks_delegated, tasks_completed) FROM multi_agent_conversations";
    assert_eq!(fixture.lines(counters).await, ["1 1"; 4]);
    assert_eq!(verified(&fixture).await, 4);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cancelled_task_stays_so_and_a_closed_one_is_not_cancelled() {
    let fixture = with_users([1, 2]).await;
    let [closed, cancelled] = [1, 2].map(Task::of);
    let mut requests: Vec<RequestMessage> = [1, 2].into_iter().flat_map(three_families).collect();
    requests.push(closed.delegate(&THREE, 3, json!({})));
    requests.extend(closed.all_say(&THREE, "The Tagus"));
    requests.push(cancel(&closed));
    requests.push(cancelled.delegate(&THREE, 2, json!({})));
    requests.push(cancelled.respond("a", "The Tagus", json!({})));
    requests.push(cancel(&cancelled));
    requests.push(cancelled.respond("b", "The Tagus", json!({})));
    requests.push(cancel(&cancelled));
    process(&fixture, requests).await;
    // A deadline closes no cancelled task.
    fixture
        .execute(&format!(
            "SET session_replication_role = replica; UPDATE consensus_tasks SET deadline = '{PAST}' WHERE state = 'cancelled'"
        ))
        .await;
    close_late_tasks(&fixture).await;
    assert_eq!(fixture.dead_letters().await, Vec::<String>::new());
    let tasks =
        "concat_ws(' ', state, close_reason, responded, answered, node_id IS NOT NULL) FROM consensus_tasks
        ORDER BY user_id";
    assert_eq!(fixture.lines(tasks).await, ["closed quorum 3 3 t", "cancelled 1 1 f"]);
    let counters = "concat_ws(' ', total_tasks_delegated, tasks_completed) FROM multi_agent_conversations ORDER BY user_id";
    assert_eq!(fixture.lines(counters).await, ["1 1", "1 0"]);
    let responses =
        "concat_ws(' ', agent_id, is_counted) FROM agent_responses WHERE user_id = 2 ORDER BY agent_id";
    assert_eq!(fixture.lines(responses).await, ["a t", "b f"], "the late one is recorded");
    let asked = "concat_ws(' ', target_agent_id, status) FROM task_delegations WHERE user_id = 2 ORDER BY target_agent_id";
    assert_eq!(fixture.lines(asked).await, ["a completed", "b cancelled", "c cancelled"]);
    let events = "concat_ws(' ', user_id, event_type) FROM blackboard_events
        WHERE event_type IN ('task.cancelled', 'task.completed', 'node.established') ORDER BY user_id, event_sequence";
    assert_eq!(
        fixture.lines(events).await,
        ["1 task.completed", "1 node.established", "2 task.cancelled"],
        "the first cancel alone has an effect"
    );
    assert_eq!(fixture.count("task_estimates WHERE user_id = 2").await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_conversation_goes_back_to_planning_and_to_delegation() {
    let fixture = with_users([1]).await;
    let way = [
        "planning",
        "delegation",
        "execution",
        "delegation",
        "execution",
        "consensus",
        "planning",
        "delegation",
        "execution",
        "consensus",
        "delegation",
        "execution",
        "consensus",
        "synthesis",
    ];
    let mut requests = vec![start(1)];
    requests.extend(way.iter().map(|phase| {
        request("expert-conversation.phase", 1, json!({ "session_id": SESSION, "phase": phase }))
    }));
    let end = json!({ "session_id": SESSION, "outcome": "completed" });
    requests.push(request("expert-conversation.end", 1, end));
    process(&fixture, requests).await;
    assert_eq!(fixture.dead_letters().await, Vec::<String>::new());
    let moves = "event_payload ->> 'phase' FROM blackboard_events WHERE event_type = 'expert-conversation.phase-changed'
        ORDER BY event_sequence";
    assert_eq!(fixture.lines(moves).await, way);
    let row = "concat_ws(' ', current_phase, completed_at IS NOT NULL) FROM multi_agent_conversations";
    assert_eq!(fixture.lines(row).await, ["completed t"]);
}

/// Whichever comes first closes the task, and the other one finds it closed: there is one node, of the answers that were counted.
#[tokio::test(flavor = "multi_thread")]
async fn a_deadline_that_meets_the_last_response_closes_a_task_once() {
    const TASKS: usize = 20;
    let mut fixture = with_users([1]).await;
    fixture.settings.postgres.lock_timeout_ms = 30_000;
    fixture.settings.worker.batch_size = 2;
    let tasks: Vec<Task> = (0..TASKS).map(|_| Task::of(1)).collect();
    let mut requests = three_families(1);
    for task in &tasks {
        requests.push(task.delegate(&THREE, 3, json!({ "deadline": "2100-01-01T00:00:00Z" })));
        requests.extend(task.all_say(&["a", "b"], "The Tagus"));
    }
    process(&fixture, requests).await;
    let past =
        format!("SET session_replication_role = replica; UPDATE consensus_tasks SET deadline = '{PAST}'");
    fixture.execute(&past).await;
    // The tick waits for the first of the tasks, so that the responses come while it is open.
    let mut other = fixture.connection().await;
    let hold = "BEGIN; SELECT FROM consensus_tasks ORDER BY user_id, id LIMIT 1 FOR UPDATE";
    other.batch_execute(hold).await.expect("a lock");
    let replicas = [fixture.run(builder(&fixture).await), fixture.run(builder(&fixture).await)];
    ticks::publish_tick(&fixture, runtime::Job::name(Job::Close)).await;
    let waits = "pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'
        AND query LIKE '%WITH waiting AS%'";
    eventually("the tick waits", async || (fixture.count(waits).await > 0).then_some(())).await;
    fixture.publish(tasks.iter().rev().map(|task| task.respond("c", "The Tagus", json!({})))).await;
    other.batch_execute("COMMIT").await.expect("a commit");
    fixture.drained::<ConsensusBuilder>().await;
    let closed = "consensus_tasks WHERE state = 'closed'";
    let count = i64::try_from(TASKS).expect("a count");
    eventually("all are closed", async || (fixture.count(closed).await == count).then_some(())).await;
    for replica in replicas {
        replica.stop().await.expect("a clean end");
    }
    assert_eq!(fixture.dead_letters().await, Vec::<String>::new());
    let counters = "concat_ws(' ', total_tasks_delegated, tasks_completed) FROM multi_agent_conversations";
    assert_eq!(fixture.lines(counters).await, [format!("{TASKS} {TASKS}")]);
    assert_eq!(fixture.count("consensus_memory_nodes").await, count);
    assert_eq!(fixture.count("agent_responses").await, 3 * count);
    for event in ["task.completed", "node.established"] {
        let events = format!("blackboard_events WHERE event_type = '{event}'");
        assert_eq!(fixture.count(&events).await, count, "{event}");
    }
    let wrong = "consensus_tasks t JOIN agent_responses r ON r.user_id = t.user_id AND r.task_id = t.id AND r.agent_id = 'c'
        WHERE (t.close_reason, t.responded, r.is_counted) NOT IN (('deadline', 2, false), ('quorum', 3, true))";
    assert_eq!(fixture.count(wrong).await, 0, "what closes a task is what its node is made of");
    assert_eq!(verified(&fixture).await, TASKS);
}
