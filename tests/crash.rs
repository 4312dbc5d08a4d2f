//! Workers killed with SIGKILL at every stage boundary and at random, under load: every valid message has exactly
//! one effect, every bad one exactly one dead letter, nothing is pending.

use std::collections::BTreeMap;
use std::time::Duration;

use context_writer::ContextWriter;
use contract::{Event, header};
use serde_json::json;
use testkit::{Fixture, RequestMessage, eventually, request, set_duplicate_window, set_redelivery};
use tokio::process::Child;
use tokio::time::timeout;
use uuid::Uuid;

use crate::support::program::start_worker;

const MESSAGES: usize = 20_000;
const USERS: i32 = 40;
/// The first of the users that workers are fed with until they die.
const FIRST_FED: i32 = 1_000;
const REPLICAS: usize = 2;
/// Every stage boundary of `runtime`, and how often each is died at.
const POINTS: [&str; 8] = [
    "Pulled",
    "Authorized",
    "Taken",
    "Written",
    "Committed",
    "EventsPublished",
    "Acknowledging",
    "DeadLettered",
];
const DEATHS_AT_EACH: usize = 5;
const RANDOM_DEATHS: usize = 15;

/// What has been published: ids that must have an effect, and ids that must be dead letters.
struct Load {
    requests: Vec<RequestMessage>,
    valid: usize,
    bad: usize,
}

fn load() -> Load {
    let mut requests = Vec::with_capacity(MESSAGES);
    for id in 1..=USERS {
        requests.push(request("user.put", id, json!({ "username": "u", "email": "u@example.org" })));
        requests.push(request("session.open", id, json!({ "session_id": "s", "chat_mode": "simple" })));
    }
    let mut bad = 0;
    while requests.len() < MESSAGES {
        let n = requests.len();
        let user = i32::try_from(n).expect("a small number") % USERS + 1;
        requests.push(if n.is_multiple_of(97) {
            bad += 1;
            request("context.put", user, json!({ "session_id": "s", "mistake": n }))
        } else if n.is_multiple_of(1009) {
            bad += 1;
            // More digits than a numeric can have: valid JSON that PostgreSQL refuses.
            let body = json!({ "session_id": "s", "context_key": "huge", "version": 1, "context_value": "VALUE" });
            let mut request = request("context.put", user, body.clone());
            request.body = body.to_string().replace("\"VALUE\"", &"9".repeat(140_000)).into_bytes();
            request
        } else {
            let body = json!({ "session_id": "s", "context_key": format!("k{n}"), "context_value": { "n": n }, "version": 1 });
            request("context.put", user, body)
        });
    }
    Load { valid: requests.len() - bad, bad, requests }
}

fn start(fixture: &Fixture, crash_at: Option<String>) -> Child {
    let options = [("MEMFLEET_WORKER__BATCH_SIZE", "50"), ("MEMFLEET_WORKER__RETRY_FIRST_DELAY_MS", "50")];
    start_worker(fixture, "context-writer", crash_at.as_deref(), &options)
}

fn assert_killed(status: std::process::ExitStatus) {
    use std::os::unix::process::ExitStatusExt as _;
    assert_eq!(status.signal(), Some(9), "it was killed: {status}");
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_lost_and_nothing_happens_twice() {
    let fixture = Fixture::with_topology(|topology| {
        set_duplicate_window(topology, "CONTEXT", Duration::from_millis(100));
        // What a dead worker held comes back soon, and often enough for all the deaths.
        set_redelivery(topology, "context-writer", Duration::from_secs(2), 1_000);
    })
    .await;
    let load = load();
    let publishing = publish_slowly(&fixture, &load.requests);
    let dying = die_again_and_again(&fixture);
    let ((), deaths) = tokio::join!(publishing, dying);
    assert!(deaths >= 50, "{deaths} deaths");

    let survivors: Vec<Child> = (0..REPLICAS).map(|_| start(&fixture, None)).collect();
    fixture.drained::<ContextWriter>().await;
    check(&fixture, &load).await;
    drop(survivors);
}

/// Publishes everything while workers die, and every seventh message twice or thrice, so long apart that the
/// broker has forgotten the first.
async fn publish_slowly(fixture: &Fixture, requests: &[RequestMessage]) {
    for chunk in requests.chunks(500) {
        fixture.publish(chunk.to_vec()).await;
        fixture.publish(chunk.iter().step_by(7).cloned()).await;
    }
    fixture.publish(requests.iter().step_by(11).cloned()).await;
}

async fn die_again_and_again(fixture: &Fixture) -> usize {
    let mut deaths = 0;
    // No user is fed twice: of two records of one user, the one that is written late may be the older one, which
    // changes nothing and has no event to count.
    let mut fed = FIRST_FED..;
    for round in 0..DEATHS_AT_EACH {
        for pair in POINTS.chunks(REPLICAS) {
            let workers: Vec<Child> =
                pair.iter().map(|point| start(fixture, Some(format!("{point}:{}", round * 2 + 1)))).collect();
            for worker in workers {
                feed(fixture, worker, &mut fed).await;
                deaths += 1;
            }
        }
    }
    for _ in 0..RANDOM_DEATHS {
        let mut workers: Vec<Child> = (0..REPLICAS).map(|_| start(fixture, None)).collect();
        let before = fixture.count("inbox").await;
        let more = fastrand::i64(1..400);
        // If nothing is left to do, it dies idle.
        let consumer = fixture.consumer("CONTEXT", "context-writer").await;
        eventually("some work is done", async || {
            let idle = consumer.get_info().await.ok()?.num_pending == 0;
            (idle || fixture.count("inbox").await >= before + more).then_some(())
        })
        .await;
        let mut victim = workers.remove(0);
        victim.start_kill().expect("SIGKILL");
        assert_killed(victim.wait().await.expect("a status"));
        deaths += 1;
    }
    deaths
}

/// Waits for a worker to die where it should, and gives it something to die of: fresh messages, some of them bad.
async fn feed(fixture: &Fixture, mut worker: Child, users: &mut impl Iterator<Item = i32>) {
    for id in users.take(600) {
        if let Ok(status) = timeout(Duration::from_millis(100), worker.wait()).await {
            return assert_killed(status.expect("a status"));
        }
        let user = request("user.put", id, json!({ "username": "fed", "email": "f@example.org" }));
        let bad = request("user.put", id, json!({ "username": "fed badly" }));
        fixture.publish([user, bad]).await;
    }
    panic!("a worker did not die where it should");
}

async fn check(fixture: &Fixture, load: &Load) {
    let fed = fixture.count("blackboard_events WHERE event_payload->>'username' = 'fed'").await;
    let valid = i64::try_from(load.valid).expect("a count") + fed;
    assert_eq!(fixture.count("inbox").await, valid, "every valid message was taken once");
    assert_eq!(fixture.count("blackboard_events").await, valid, "and had one effect");
    let contexts = i64::try_from(load.valid).expect("a count") - 2 * i64::from(USERS);
    assert_eq!(fixture.count("simple_chat_context").await, contexts);
    assert_eq!(fixture.count("simple_chat_context WHERE version <> 1").await, 0);

    let mut letters: BTreeMap<String, usize> = BTreeMap::new();
    for letter in fixture.messages("DEAD").await {
        let id = letter.headers.get(header::DEAD_REQUEST_ID).expect("its request id").to_string();
        *letters.entry(id).or_default() += 1;
    }
    assert!(letters.values().all(|&count| count == 1), "one dead letter for each bad message");
    let fed_badly = letters.len() - load.bad;
    assert_eq!(i64::try_from(fed_badly).expect("a count"), fed, "each bad message that was fed");

    let mut told: Vec<Uuid> = fixture
        .messages("EVENTS")
        .await
        .iter()
        .map(|message| serde_json::from_slice::<Event>(&message.payload).expect("an event").event_id)
        .collect();
    told.sort();
    told.dedup();
    assert_eq!(i64::try_from(told.len()).expect("a count"), valid, "every effect was published");
}
