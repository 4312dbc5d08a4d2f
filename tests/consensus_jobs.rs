//! The jobs of consensus-builder: tasks close at their deadline, and records of agents are estimated anew.

use std::time::Duration;

use chrono::{SecondsFormat, Utc};
use consensus_builder::{ConsensusBuilder, Job};
use serde_json::{Value, json};
use testkit::{Fixture, RequestMessage, eventually};

use crate::support::consensus::{Task, agent, builder, start, three_families, verdict, with_users};

const THREE: [&str; 3] = ["a", "b", "c"];

/// Has the server publish a tick at once. It takes the place of the shipped schedule.
async fn tick(fixture: &Fixture, job: Job) {
    let consumer = fixture.consumer("JOBS", "consensus-builder-jobs").await;
    let before = consumer.get_info().await.expect("a consumer").delivered.consumer_sequence;
    let mut headers = async_nats::HeaderMap::new();
    let time = (Utc::now() + Duration::from_millis(100)).to_rfc3339_opts(SecondsFormat::Millis, true);
    headers.insert("Nats-Schedule", format!("@at {time}"));
    headers.insert("Nats-Schedule-Target", format!("memory.job.{}", job.name()));
    let subject = format!("memory.schedule.{}", job.name());
    let sent = fixture.jetstream.publish_with_headers(subject, headers, "".into()).await;
    sent.expect("a publish").await.expect("a stored schedule");
    eventually("the tick is acknowledged", async || {
        let info = consumer.get_info().await.ok()?;
        (info.delivered.consumer_sequence > before && info.num_pending == 0 && info.num_ack_pending == 0)
            .then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_task_closes_at_its_deadline_by_the_shipped_schedule() {
    let fixture = with_users([1]).await;
    let task = Task::of(1);
    let worker = fixture.run(builder(&fixture).await);
    let mut requests = three_families(1);
    let soon = (Utc::now() + Duration::from_secs(1)).to_rfc3339();
    requests.push(task.delegate(&THREE, 3, json!({ "deadline": soon })));
    requests.extend(task.all_say(&["a", "b"], "The Tagus"));
    fixture.publish(requests).await;
    eventually("the task is closed", async || {
        (fixture.count("consensus_tasks WHERE state = 'closed'").await == 1).then_some(())
    })
    .await;
    worker.stop().await.expect("a clean end");
    assert_eq!(task.outcome(&fixture).await, r#"unvalidated 0.666667 ["no-quorum"]"#);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_deadline_closes_what_is_due_of_each_user_and_nothing_else() {
    let fixture = with_users([1, 2, 3]).await;
    let tasks: Vec<Task> = (1..=3).map(Task::of).collect();
    let mut requests: Vec<RequestMessage> = (1..=3).flat_map(three_families).collect();
    for task in &tasks {
        let deadline = if task.user == 3 { "2100-01-01T00:00:00Z" } else { "2026-01-01T00:00:00Z" };
        requests.push(task.delegate(&THREE, 3, json!({ "deadline": deadline })));
        requests.extend(task.all_say(&["a", "b"], "The Tagus"));
    }
    // One of a user who has work due, and that is not due itself.
    requests.push(Task::of(1).delegate(&THREE, 3, json!({ "deadline": "2100-01-01T00:00:00Z" })));
    let worker = fixture.run(builder(&fixture).await);
    fixture.publish(requests).await;
    fixture.drained::<ConsensusBuilder>().await;
    tick(&fixture, Job::Close).await;
    let states =
        "concat_ws(' ', state, close_reason, responded) FROM consensus_tasks ORDER BY user_id, deadline";
    assert_eq!(fixture.lines(states).await, ["closed deadline 2", "open 0", "closed deadline 2", "open 2"]);
    let events = "concat_ws(' ', user_id, event_type, source_agent_id) FROM blackboard_events
        WHERE event_type IN ('task.completed', 'node.established') ORDER BY user_id, event_sequence";
    let job = "job:consensus-close";
    assert_eq!(
        fixture.lines(events).await,
        [
            format!("1 task.completed {job}"),
            format!("1 node.established {job}"),
            format!("2 task.completed {job}"),
            format!("2 node.established {job}")
        ]
    );
    let counters = "tasks_completed FROM multi_agent_conversations ORDER BY user_id";
    assert_eq!(fixture.lines(counters).await, ["1", "1", "0"]);
    let published = fixture.messages("EVENTS").await.len();
    tick(&fixture, Job::Close).await;
    assert_eq!(fixture.messages("EVENTS").await.len(), published, "there was nothing more to close");
    // A response after the deadline is late.
    fixture.publish([tasks[0].respond("c", "The Tagus", json!({}))]).await;
    fixture.drained::<ConsensusBuilder>().await;
    assert_eq!(fixture.count("agent_responses WHERE NOT is_counted").await, 1);
    assert_eq!(fixture.dead_letters().await, Vec::<String>::new());
    worker.stop().await.expect("a clean end");
}

/// Twenty questions: `a`, `b` and `d` agree, `c` says something else. `e` repeats `c`, being of its family.
fn questions(user: i32, count: usize, more: &Value) -> (Vec<Task>, Vec<RequestMessage>) {
    let agents = ["a", "b", "c", "d", "e"];
    let tasks: Vec<Task> = (0..count).map(|_| Task::of(user)).collect();
    let mut requests: Vec<RequestMessage> =
        agents.iter().zip(["v", "w", "x", "y", "x"]).map(|(id, family)| agent(user, id, family)).collect();
    requests.push(start(user));
    for (place, task) in tasks.iter().enumerate() {
        let (right, wrong) = if place % 2 == 0 { ("Tagus", "Douro") } else { ("Douro", "Tagus") };
        requests.push(task.delegate(&agents, 5, more.clone()));
        for (id, text) in agents.iter().zip([right, right, wrong, right, wrong]) {
            requests.push(task.respond(id, text, json!({ "confidence": 0.5 })));
        }
    }
    (tasks, requests)
}

#[tokio::test(flavor = "multi_thread")]
async fn records_are_estimated_from_closed_tasks_and_weigh_the_next_answers() {
    let fixture = with_users([1, 2]).await;
    let options = json!({ "task_kind": "rivers", "options": ["Tagus", "Douro"] });
    let (tasks, mut requests) = questions(1, 20, &options);
    let (_, open) = questions(2, 10, &json!({ "task_kind": "open" }));
    requests.extend(open);
    let worker = fixture.run(builder(&fixture).await);
    fixture.publish(requests).await;
    fixture.drained::<ConsensusBuilder>().await;
    assert_eq!(fixture.dead_letters().await, Vec::<String>::new());
    tick(&fixture, Job::Reestimate).await;

    let records = "concat_ws(' ', user_id, agent_id, task_kind, round(right_micro / 1e6), round(wrong_micro / 1e6), confidence_micro)
        FROM agent_records ORDER BY user_id, agent_id";
    let expected = [("a", [20, 0]), ("b", [20, 0]), ("c", [0, 20]), ("d", [20, 0]), ("e", [0, 20])];
    let line = |user, kind: &str, scale: i32| {
        let kind = kind.to_owned();
        expected.map(move |(id, [right, wrong])| {
            format!("{user} {id} {kind} {} {} {}", right / scale, wrong / scale, 10_000_000 / scale)
        })
    };
    assert_eq!(fixture.lines(records).await, [line(1, "rivers", 1), line(2, "open", 2)].concat());
    let estimated = "concat_ws(' ', estimated_answer, estimated_probability > 0.95, estimated_at IS NOT NULL)
        FROM consensus_tasks WHERE user_id = 1 GROUP BY 1 ORDER BY 1";
    assert_eq!(fixture.lines(estimated).await, ["0 t t", "1 t t"]);
    let events = "concat_ws(' ', user_id, event_payload) FROM blackboard_events WHERE event_type = 'reliability.estimated' ORDER BY user_id";
    assert_eq!(
        fixture.lines(events).await,
        [
            r#"1 {"tasks": 20, "agents": 5, "task_kind": "rivers"}"#,
            r#"2 {"tasks": 10, "agents": 5, "task_kind": "open"}"#
        ]
    );

    // Nothing is due any more.
    tick(&fixture, Job::Reestimate).await;
    assert_eq!(fixture.count("blackboard_events WHERE event_type = 'reliability.estimated'").await, 2);

    // The next dossier takes the records in; an agent that was never right has no weight.
    let next = Task::of(1);
    let mut requests = vec![next.delegate(&["a", "c"], 2, options.clone())];
    requests.push(next.respond("a", "Tagus", json!({})));
    requests.push(next.respond("c", "Douro", json!({})));
    fixture.publish(requests).await;
    fixture.drained::<ConsensusBuilder>().await;
    let votes = format!(
        "concat_ws(' ', v ->> 'agent', round((v ->> 'right')::numeric / 1e6), v ->> 'uncounted') FROM consensus_dossiers d
         JOIN consensus_tasks t ON t.node_id = d.id,
         jsonb_array_elements(convert_from(d.dossier, 'UTF8')::jsonb -> 'votes') AS v WHERE t.id = '{}'",
        next.id
    );
    assert_eq!(fixture.lines(&votes).await, ["a 20", "c 0 unreliable"]);

    // A verdict is the truth of its task, which is estimated again.
    tick(&fixture, Job::Reestimate).await;
    let node = tasks[0].node(&fixture).await;
    fixture.publish([verdict(1, node, "confirm")]).await;
    fixture.drained::<ConsensusBuilder>().await;
    let due = "count(*) FROM consensus_tasks WHERE estimated_at IS NULL AND truth = 0";
    assert_eq!(fixture.lines(due).await, ["1"]);
    tick(&fixture, Job::Reestimate).await;
    assert_eq!(fixture.lines(due).await, ["0"]);
    let sure = format!("estimated_probability FROM consensus_tasks WHERE id = '{}'", tasks[0].id);
    assert_eq!(fixture.lines(&sure).await, ["1"]);
    worker.stop().await.expect("a clean end");
}
