//! consensus-builder killed with SIGKILL at every stage boundary: no response is lost, no counter is doubled, no node is half.

use std::time::Duration;

use consensus_builder::ConsensusBuilder;
use serde_json::json;
use testkit::{Fixture, RequestMessage, eventually, set_duplicate_window, set_redelivery};
use tokio::process::Child;
use tokio::time::timeout;

use crate::support::consensus::{Task, know, process, three_families};
use crate::support::program::start_worker;

const POINTS: [&str; 7] =
    ["Pulled", "Authorized", "Taken", "Written", "Committed", "EventsPublished", "Acknowledging"];
const TASKS_AT_EACH: usize = 25;
const THREE: [&str; 3] = ["a", "b", "c"];
const USERS: i32 = 5;

fn start(fixture: &Fixture, crash_at: Option<&str>) -> Child {
    let options = [("MEMFLEET_WORKER__BATCH_SIZE", "20"), ("MEMFLEET_WORKER__RETRY_FIRST_DELAY_MS", "50")];
    start_worker(fixture, "consensus-builder", crash_at, &options)
}

/// Tasks of every user, with one answer more than the quorum, some messages twice.
fn load(tasks: &[Task]) -> Vec<RequestMessage> {
    let mut messages: Vec<RequestMessage> =
        tasks.iter().map(|task| task.delegate(&THREE, 2, json!({ "node_key": "k" }))).collect();
    for id in THREE {
        messages.extend(tasks.iter().map(|task| task.respond(id, "The Tagus", json!({}))));
    }
    messages
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
    let mut tasks = Vec::new();
    for (round, point) in POINTS.iter().enumerate() {
        let new: Vec<Task> =
            (0..TASKS_AT_EACH).map(|n| Task::of(i32::try_from(n).expect("a number") % USERS + 1)).collect();
        let messages = load(&new);
        tasks.extend(new);
        let (dying, beside) =
            (start(&fixture, Some(&format!("{point}:{}", round % 3 + 1))), start(&fixture, None));
        fixture.publish(messages.clone()).await;
        fixture.publish(messages.into_iter().step_by(5)).await;
        die(&fixture, dying).await;
        kill(beside).await;
    }
    let survivors = [start(&fixture, None), start(&fixture, None)];
    fixture.drained::<ConsensusBuilder>().await;
    check(&fixture, tasks.len()).await;
    drop(survivors);
}

/// Waits for a worker to die where it should. If the other one takes all messages, it gets more.
async fn die(fixture: &Fixture, mut worker: Child) {
    use std::os::unix::process::ExitStatusExt as _;
    for _ in 0..600 {
        if let Ok(status) = timeout(Duration::from_millis(100), worker.wait()).await {
            assert_eq!(status.expect("a status").signal(), Some(9), "it was killed");
            return;
        }
        fixture.publish((1..=USERS).map(|user| crate::support::consensus::agent(user, "fed", "x"))).await;
    }
    panic!("a worker did not die where it should");
}

async fn kill(mut worker: Child) {
    worker.start_kill().expect("SIGKILL");
    worker.wait().await.expect("a status");
}

async fn check(fixture: &Fixture, tasks: usize) {
    let count = i64::try_from(tasks).expect("a count");
    assert_eq!(fixture.dead_letters().await, Vec::<String>::new());
    assert_eq!(fixture.count("agent_responses").await, 3 * count, "no response is lost");
    assert_eq!(fixture.count("agent_responses WHERE is_counted").await, 2 * count);
    let counters =
        "concat_ws(' ', sum(total_tasks_delegated), sum(tasks_completed)) FROM multi_agent_conversations";
    assert_eq!(fixture.lines(counters).await, [format!("{tasks} {tasks}")], "no counter is doubled");
    let half =
        "consensus_tasks t LEFT JOIN consensus_memory_nodes n ON n.user_id = t.user_id AND n.id = t.node_id
        LEFT JOIN consensus_dossiers d ON d.user_id = n.user_id AND d.id = n.id
        WHERE t.state <> 'closed' OR n.id IS NULL OR d.id IS NULL OR n.inputs_sha256 <> d.inputs_sha256";
    assert_eq!(fixture.count(half).await, 0, "no node is half");
    assert_eq!(fixture.count("consensus_memory_nodes").await, count);
    let events = |kind: &str| format!("blackboard_events WHERE event_type = '{kind}'");
    for (kind, expected) in [
        ("task.delegated", count),
        ("response.recorded", 3 * count),
        ("task.completed", count),
        ("node.established", count),
    ] {
        assert_eq!(fixture.count(&events(kind)).await, expected, "{kind}");
    }
    let all = fixture.count("blackboard_events WHERE event_type <> 'user.stored'").await;
    eventually("every effect is published", async || {
        let mut told: Vec<uuid::Uuid> = fixture
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
