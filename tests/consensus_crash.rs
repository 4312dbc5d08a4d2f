//! consensus-builder killed with SIGKILL at every stage boundary, in ticks and at random: no response is lost, no counter is
//! doubled, no node is half.

use std::time::Duration;

use consensus_builder::{ConsensusBuilder, Job};
use serde_json::json;
use testkit::{Fixture, RequestMessage, eventually, request, set_duplicate_window, set_redelivery};
use tokio::process::Child;
use tokio::time::timeout;
use uuid::Uuid;

use crate::support::consensus::{SESSION, Task, builder, know, process, three_families, verdict, verified};
use crate::support::program::start_worker;
use crate::support::ticks;

const POINTS: [&str; 7] =
    ["Pulled", "Authorized", "Taken", "Written", "Committed", "EventsPublished", "Acknowledging"];
const TASKS_AT_EACH: usize = 25;
const THREE: [&str; 3] = ["a", "b", "c"];
const USERS: i32 = 5;
const RANDOM_DEATHS: usize = 3;

fn start(fixture: &Fixture, crash_at: Option<&str>) -> Child {
    let options = [("MEMFLEET_WORKER__BATCH_SIZE", "20"), ("MEMFLEET_WORKER__RETRY_FIRST_DELAY_MS", "50")];
    start_worker(fixture, "consensus-builder", crash_at, &options)
}

/// Tasks of every user, with one answer more than the quorum.
fn load(tasks: &[Task]) -> Vec<RequestMessage> {
    let mut messages: Vec<RequestMessage> =
        tasks.iter().map(|task| task.delegate(&THREE, 2, json!({ "node_key": "k" }))).collect();
    for id in THREE {
        messages.extend(tasks.iter().map(|task| task.respond(id, "The Tagus", json!({}))));
    }
    messages
}

/// Of every user, a task that is cancelled after a response, and a proposal that is confirmed.
fn aside() -> Vec<RequestMessage> {
    let mut messages = Vec::new();
    for user in 1..=USERS {
        let (task, node) = (Task::of(user), Uuid::now_v7());
        let proposal = json!({ "node_id": node, "node_type": "note", "node_key": node, "title": "Noted", "content": {} });
        messages.extend([
            task.delegate(&THREE, 3, json!({})),
            task.respond("a", "The Tagus", json!({})),
            request(
                "task.cancel",
                user,
                json!({ "task_id": task.id, "session_id": SESSION, "reason": "Off." }),
            ),
            request("knowledge.propose", user, proposal),
            verdict(user, node, "confirm"),
        ]);
    }
    messages
}

/// The tasks of a round, and all its messages.
fn round() -> (Vec<Task>, Vec<RequestMessage>) {
    let tasks: Vec<Task> =
        (0..TASKS_AT_EACH).map(|n| Task::of(i32::try_from(n).expect("a number") % USERS + 1)).collect();
    let mut messages = load(&tasks);
    messages.extend(aside());
    (tasks, messages)
}

#[tokio::test(flavor = "multi_thread")]
async fn no_response_is_lost_no_counter_doubled_and_no_node_half() {
    let fixture = Fixture::with_topology(|topology| {
        set_duplicate_window(topology, "CONSENSUS", Duration::from_millis(100));
        // What a dead worker held comes back soon, and often enough for all the deaths.
        set_redelivery(topology, "consensus-builder", Duration::from_secs(2), 1_000);
    })
    .await;
    let fixture = know(fixture, 1..=USERS).await;
    process(&fixture, (1..=USERS).flat_map(three_families).collect::<Vec<_>>()).await;
    let mut tasks = 0;
    for (place, point) in POINTS.iter().enumerate() {
        let (new, messages) = round();
        tasks += new.len();
        let (dying, beside) =
            (start(&fixture, Some(&format!("{point}:{}", place % 3 + 1))), start(&fixture, None));
        fixture.publish(messages.clone()).await;
        fixture.publish(messages.into_iter().step_by(5)).await;
        die(&fixture, dying).await;
        kill(beside).await;
    }
    let mut random = fastrand::Rng::with_seed(19);
    for _ in 0..RANDOM_DEATHS {
        let (new, messages) = round();
        tasks += new.len();
        let (dying, beside) = (start(&fixture, None), start(&fixture, None));
        let more = random.i64(1..i64::try_from(messages.len()).expect("a count"));
        let before = fixture.count("inbox").await;
        fixture.publish(messages).await;
        eventually("some work is done", async || {
            (fixture.count("inbox").await >= before + more).then_some(())
        })
        .await;
        kill(dying).await;
        kill(beside).await;
    }
    let survivors = [start(&fixture, None), start(&fixture, None)];
    fixture.drained::<ConsensusBuilder>().await;
    check(&fixture, tasks, POINTS.len() + RANDOM_DEATHS).await;
    drop(survivors);
}

/// What a tick has not done when its worker dies is done by the next one, once.
#[tokio::test(flavor = "multi_thread")]
async fn a_tick_that_is_cut_off_closes_and_estimates_once() {
    const ROUNDS: [(&str, Job); 4] = [
        ("Written", Job::Close),
        ("Committed", Job::Close),
        ("Written", Job::Reestimate),
        ("Committed", Job::Reestimate),
    ];
    let fixture = Fixture::with_topology(|topology| {
        set_redelivery(topology, "consensus-builder-jobs", Duration::from_millis(500), 1_000);
    })
    .await;
    let fixture = know(fixture, 1..=USERS).await;
    process(&fixture, (1..=USERS).flat_map(three_families).collect::<Vec<_>>()).await;
    for (point, job) in ROUNDS {
        let mut requests = Vec::new();
        for task in (1..=USERS).flat_map(|user| [Task::of(user), Task::of(user)]) {
            requests.push(task.delegate(&THREE, 3, json!({ "deadline": "2100-01-01T00:00:00Z" })));
            requests.extend(task.all_say(&["a", "b"], "The Tagus"));
        }
        process(&fixture, requests).await;
        let late = "UPDATE consensus_tasks SET deadline = '2026-01-01T00:00:00Z' WHERE state = 'open'";
        fixture.execute(&format!("SET session_replication_role = replica; {late}")).await;
        if job == Job::Reestimate {
            tick(&fixture, &[Job::Close]).await;
        }
        die_in_tick(&fixture, start(&fixture, Some(&format!("{point}:1"))), job).await;
        tick(&fixture, &[Job::Close, Job::Reestimate]).await;
    }
    assert_eq!(fixture.dead_letters().await, Vec::<String>::new());
    let users = i64::from(USERS);
    let count = 2 * users * i64::try_from(ROUNDS.len()).expect("a count");
    let tasks = "concat_ws(' ', state, close_reason, responded, count(*)) FROM consensus_tasks GROUP BY state, close_reason, responded";
    assert_eq!(fixture.lines(tasks).await, [format!("closed deadline 2 {count}")]);
    let counters =
        "concat_ws(' ', sum(total_tasks_delegated), sum(tasks_completed)) FROM multi_agent_conversations";
    assert_eq!(fixture.lines(counters).await, [format!("{count} {count}")]);
    assert_eq!(fixture.count("consensus_memory_nodes").await, count);
    assert_eq!(verified(&fixture).await, usize::try_from(count).expect("a count"));
    assert_eq!(fixture.count("task_estimates WHERE estimated_at IS NOT NULL").await, count);
    let records = "round(sum(right_micro + wrong_micro) / 1e6) FROM agent_records";
    assert_eq!(fixture.lines(records).await, [(2 * count).to_string()], "each answer counts once");
    let events = |kind: &str| format!("blackboard_events WHERE event_type = '{kind}'");
    for (kind, expected) in [
        ("task.completed", count),
        ("node.established", count),
        ("reliability.estimated", users * i64::try_from(ROUNDS.len()).expect("a count")),
    ] {
        assert_eq!(fixture.count(&events(kind)).await, expected, "{kind}");
    }
    all_are_published(&fixture).await;
}

/// Has a worker in this process do what is due.
async fn tick(fixture: &Fixture, jobs: &[Job]) {
    let worker = fixture.run(builder(fixture).await);
    for job in jobs {
        ticks::tick(fixture, "consensus-builder", runtime::Job::name(*job)).await;
    }
    worker.stop().await.expect("a clean end");
}

/// Waits for a worker to die in a tick.
async fn die_in_tick(fixture: &Fixture, mut worker: Child, job: Job) {
    for _ in 0..60 {
        ticks::publish_tick(fixture, runtime::Job::name(job)).await;
        if let Ok(status) = timeout(Duration::from_secs(1), worker.wait()).await {
            return assert_killed(status.expect("a status"));
        }
    }
    panic!("a worker did not die in a tick");
}

fn assert_killed(status: std::process::ExitStatus) {
    use std::os::unix::process::ExitStatusExt as _;
    assert_eq!(status.signal(), Some(9), "it was killed: {status}");
}

/// Waits for a worker to die where it should. If the other one takes all messages, it gets more.
async fn die(fixture: &Fixture, mut worker: Child) {
    for _ in 0..600 {
        if let Ok(status) = timeout(Duration::from_millis(100), worker.wait()).await {
            return assert_killed(status.expect("a status"));
        }
        fixture.publish((1..=USERS).map(|user| crate::support::consensus::agent(user, "fed", "x"))).await;
    }
    panic!("a worker did not die where it should");
}

async fn kill(mut worker: Child) {
    worker.start_kill().expect("SIGKILL");
    worker.wait().await.expect("a status");
}

/// So many tasks have closed; in each of the rounds, every user has cancelled one and confirmed a proposal.
async fn check(fixture: &Fixture, tasks: usize, rounds: usize) {
    let count = i64::try_from(tasks).expect("a count");
    let aside = i64::from(USERS) * i64::try_from(rounds).expect("a count");
    assert_eq!(fixture.dead_letters().await, Vec::<String>::new());
    assert_eq!(fixture.count("agent_responses").await, 3 * count + aside, "no response is lost");
    let counted = "agent_responses r JOIN consensus_tasks t ON t.user_id = r.user_id AND t.id = r.task_id
        WHERE r.is_counted AND t.state = 'closed'";
    assert_eq!(fixture.count(counted).await, 2 * count);
    let counters =
        "concat_ws(' ', sum(total_tasks_delegated), sum(tasks_completed)) FROM multi_agent_conversations";
    let delegated = count + aside;
    assert_eq!(fixture.lines(counters).await, [format!("{delegated} {count}")], "no counter is doubled");
    let miscounted =
        "consensus_tasks t WHERE t.responded <> (SELECT count(DISTINCT r.agent_id) FROM agent_responses r
        WHERE r.user_id = t.user_id AND r.task_id = t.id AND r.is_counted)";
    assert_eq!(fixture.count(miscounted).await, 0);
    let half =
        "consensus_tasks t LEFT JOIN consensus_memory_nodes n ON n.user_id = t.user_id AND n.id = t.node_id
        LEFT JOIN consensus_dossiers d ON d.user_id = n.user_id AND d.id = n.id
        WHERE t.state = 'closed' AND (n.id IS NULL OR d.id IS NULL OR n.inputs_sha256 <> d.inputs_sha256)";
    assert_eq!(fixture.count(half).await, 0, "no node is half");
    let states = "concat_ws(' ', state, count(*)) FROM consensus_tasks GROUP BY state ORDER BY state";
    assert_eq!(fixture.lines(states).await, [format!("cancelled {aside}"), format!("closed {count}")]);
    let notes = "consensus_memory_nodes WHERE node_type = 'note' AND validation_status = 'validated'";
    assert_eq!(fixture.count(notes).await, aside);
    assert_eq!(fixture.count("consensus_memory_nodes").await, count + aside);
    let events = |kind: &str| format!("blackboard_events WHERE event_type = '{kind}'");
    for (kind, expected) in [
        ("task.delegated", delegated),
        ("task.cancelled", aside),
        ("response.recorded", 3 * count + aside),
        ("task.completed", count),
        ("node.established", count),
        ("knowledge.proposed", aside),
        ("verdict.given", aside),
    ] {
        assert_eq!(fixture.count(&events(kind)).await, expected, "{kind}");
    }
    all_are_published(fixture).await;
}

async fn all_are_published(fixture: &Fixture) {
    let all = fixture.count("blackboard_events WHERE event_type <> 'user.stored'").await;
    eventually("every effect is published", async || {
        let mut told: Vec<Uuid> = fixture
            .messages("EVENTS")
            .await
            .iter()
            .map(|message| serde_json::from_slice::<contract::Event>(&message.payload).expect("an event"))
            .filter(|event| event.event_type != contract::EventType::UserStored)
            .map(|event| event.event_id)
            .collect();
        told.sort_unstable();
        told.dedup();
        (i64::try_from(told.len()).expect("a count") == all).then_some(())
    })
    .await;
}
