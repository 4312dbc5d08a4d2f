//! memory-sync killed with SIGKILL at every stage boundary: no key is lost, none is half, and no sync is carried twice.

use std::time::Duration;

use memory_sync::MemorySync;
use serde_json::json;
use testkit::{Fixture, RequestMessage, eventually, set_duplicate_window, set_redelivery};
use tokio::process::Child;
use tokio::time::timeout;

use crate::support::program::start_worker;
use crate::support::sync::{Sync, memory, open, put, write};

const POINTS: [&str; 7] =
    ["Pulled", "Authorized", "Taken", "Written", "Committed", "EventsPublished", "Acknowledging"];
const SOURCES: usize = 6;
const KEYS: usize = 10;

fn start(fixture: &Fixture, crash_at: Option<&str>) -> Child {
    let options = [("MEMFLEET_WORKER__BATCH_SIZE", "4"), ("MEMFLEET_WORKER__RETRY_FIRST_DELAY_MS", "50")];
    start_worker(fixture, "memory-sync", crash_at, &options)
}

/// Every source into the one target, and back again: the target counts what all sources count.
fn load() -> Vec<RequestMessage> {
    let both = |n: usize| {
        let source = format!("s{n}");
        [Sync::new().transfer(&source, "all"), Sync::new().transfer("all", &source)]
    };
    (0..SOURCES).flat_map(both).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn no_key_is_lost_none_half_and_no_sync_carried_twice() {
    let fixture = Fixture::with_topology(|topology| {
        set_duplicate_window(topology, "SYNC", Duration::from_millis(100));
        set_redelivery(topology, "memory-sync", Duration::from_secs(2), 1_000);
    })
    .await;
    let sessions: Vec<String> = (0..SOURCES).map(|n| format!("s{n}")).chain(["all".to_owned()]).collect();
    let fixture = open(fixture, 1, &sessions.iter().map(String::as_str).collect::<Vec<_>>()).await;
    let mut published = 0;
    for (round, point) in POINTS.iter().enumerate() {
        let version = i64::try_from(round + 1).expect("a version");
        let counters = (0..SOURCES).flat_map(|n| {
            (0..KEYS).map(move |key| (format!("s{n}"), format!("set.{key}"), format!("{n}.{round}")))
        });
        // Each source adds an item of its own to each set, and keeps what it knows.
        let mut requests = Vec::new();
        for (session, key, item) in counters {
            let known = items(&fixture, &session, &key).await;
            let all: Vec<String> = known.into_iter().chain([item]).collect();
            requests.push(put(&session, &key, json!(all), version));
        }
        write(&fixture, requests).await;
        let messages = load();
        published += messages.len();
        let (dying, beside) =
            (start(&fixture, Some(&format!("{point}:{}", round % 3 + 1))), start(&fixture, None));
        fixture.publish(messages.clone()).await;
        fixture.publish(messages.into_iter().step_by(5)).await;
        published += die(&fixture, dying).await;
        kill(beside).await;
        // The session's own events wait for those that the dead have not published.
        let survivor = start(&fixture, None);
        fixture.drained::<MemorySync>().await;
        kill(survivor).await;
    }
    let survivors = [start(&fixture, None), start(&fixture, None)];
    // What every session lacks still crosses.
    for _ in 0..2 {
        let messages = load();
        published += messages.len();
        fixture.publish(messages).await;
        fixture.drained::<MemorySync>().await;
    }
    check(&fixture, &sessions, published).await;
    drop(survivors);
}

async fn items(fixture: &Fixture, session: &str, key: &str) -> Vec<String> {
    let select = format!(
        "context_value::text FROM simple_chat_context WHERE session_id = '{session}' AND context_key = '{key}'"
    );
    let value = fixture.lines(&select).await;
    value.first().map(|text| serde_json::from_str(text).expect("a set")).unwrap_or_default()
}

/// Waits for a worker to die where it should. If the other one takes all messages, it gets more. Returns how many.
async fn die(fixture: &Fixture, mut worker: Child) -> usize {
    use std::os::unix::process::ExitStatusExt as _;
    for fed in 0..600 {
        if let Ok(status) = timeout(Duration::from_millis(100), worker.wait()).await {
            assert_eq!(status.expect("a status").signal(), Some(9), "it was killed");
            return fed;
        }
        fixture.publish([Sync::new().transfer("s0", "all")]).await;
    }
    panic!("a worker did not die where it should");
}

async fn kill(mut worker: Child) {
    worker.start_kill().expect("SIGKILL");
    worker.wait().await.expect("a status");
}

async fn check(fixture: &Fixture, sessions: &[String], published: usize) {
    assert_eq!(fixture.dead_letters().await, Vec::<String>::new());
    let count = i64::try_from(published).expect("a count");
    assert_eq!(fixture.count("cross_service_memory_sync WHERE sync_status = 'completed'").await, count);
    assert_eq!(fixture.count("cross_service_memory_sync").await, count, "each once");
    let mut expected: Vec<String> =
        (0..SOURCES).flat_map(|n| (0..POINTS.len()).map(move |round| format!("{n}.{round}"))).collect();
    expected.sort_unstable();
    for session in sessions {
        assert_eq!(memory(fixture, session).await.len(), KEYS, "{session}");
        for key in 0..KEYS {
            let mut items = items(fixture, session, &format!("set.{key}")).await;
            items.sort_unstable();
            assert_eq!(items, expected, "{session} set.{key}");
        }
    }
    for kind in ["sync.started", "sync.completed"] {
        let times = if kind == "sync.started" { 1 } else { 2 };
        let events = format!("blackboard_events WHERE event_type = '{kind}'");
        assert_eq!(fixture.count(&events).await, times * count, "{kind}");
    }
    // What is on record of each key leads from one cell to the next.
    let broken = "sync_changes c JOIN LATERAL (SELECT p.after_digest, p.writes FROM sync_changes p
            WHERE p.target_session_id = c.target_session_id AND p.context_key = c.context_key AND p.position < c.position
            ORDER BY p.position DESC LIMIT 1) AS p ON true
        WHERE c.writes = p.writes AND c.before_digest IS DISTINCT FROM p.after_digest AND c.target_session_id = 'all'";
    assert_eq!(fixture.count(broken).await, 0, "no cell is half");
    let all = fixture.count("blackboard_events WHERE event_type::text LIKE 'sync.%'").await;
    eventually("every effect is published", async || {
        let mut told: Vec<uuid::Uuid> = fixture
            .messages("EVENTS")
            .await
            .iter()
            .map(|message| serde_json::from_slice::<contract::Event>(&message.payload).expect("an event"))
            .filter(|event| event.event_type.as_str().starts_with("sync."))
            .map(|event| event.event_id)
            .collect();
        told.sort_unstable();
        told.dedup();
        (i64::try_from(told.len()).expect("a count") == all).then_some(())
    })
    .await;
}
