//! memory-sync killed with SIGKILL at every stage boundary and at random: no key is lost, none is half, and no sync is carried,
//! taken back or shared twice.

use std::time::Duration;

use memory_sync::{Job, MemorySync};
use serde_json::json;
use testkit::{DEADLINE, Fixture, RequestMessage, eventually, set_duplicate_window, set_redelivery};
use tokio::process::Child;
use tokio::time::timeout;

use crate::support::program::start_worker;
use crate::support::sync::{Sync, add_node, memory, open, process, put, tick, without_wakes, write};
use crate::support::ticks::publish_tick;

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
    assert_published(fixture).await;
}

async fn assert_published(fixture: &Fixture) {
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

/// The syncs that each death meets: a live one that a tick carries, one that is taken back, and a share.
struct Load {
    /// From s0 to t0, and so on: ten keys that both sessions have.
    live: Vec<Sync>,
    /// From a to b: a key each, carried before.
    carried: Vec<Sync>,
    /// From a to k0, and so on: a node each.
    shares: Vec<Sync>,
}

/// The deaths at random, and the syncs that each of them meets.
const RANDOM_DEATHS: usize = 3;
const AT_RANDOM: usize = 6;

async fn prepare(fixture: Fixture) -> (Fixture, Load) {
    let each = 0..POINTS.len();
    let of_each = each.clone().flat_map(|n| ["s", "t", "k"].map(|name| format!("{name}{n}")));
    let sessions: Vec<String> = ["a".to_owned(), "b".to_owned()].into_iter().chain(of_each).collect();
    let fixture = open(fixture, 1, &sessions.iter().map(String::as_str).collect::<Vec<_>>()).await;
    without_wakes(&fixture).await;
    let syncs = || each.clone().map(|_| Sync::new()).collect::<Vec<_>>();
    let load = Load { live: syncs(), carried: syncs(), shares: syncs() };
    let start = |(n, sync): (usize, &Sync)| sync.start("state_sync", &format!("s{n}"), &format!("t{n}"));
    process(&fixture, load.live.iter().enumerate().map(start).collect::<Vec<_>>()).await;
    // None is due before its turn.
    fixture.execute("UPDATE cross_service_memory_sync SET source_clock = 9223372036854775807").await;
    let of_live = |n: usize| {
        let keys = (0..KEYS).map(|key| format!("count.{key}"));
        keys.flat_map(move |key| ["s", "t"].map(|name| put(&format!("{name}{n}"), &key, json!(1), 1)))
    };
    let of_carried = each.clone().map(|n| put("a", &format!("p{n}"), json!(n), 1));
    let at_random = (0..RANDOM_DEATHS * AT_RANDOM).map(|n| put("a", &format!("r{n}"), json!(n), 1));
    write(&fixture, each.clone().flat_map(of_live).chain(of_carried).chain(at_random).collect::<Vec<_>>())
        .await;
    let carry = |(n, sync): (usize, &Sync)| one_key(*sync, &format!("p{n}"));
    process(&fixture, load.carried.iter().enumerate().map(carry).collect::<Vec<_>>()).await;
    for n in each {
        let id = format!("0193c0de-0000-7000-8000-0000000000a{n}");
        add_node(&fixture, &id, &format!("river.{n}"), "validated", "NULL").await;
    }
    (fixture, load)
}

/// A transfer of one key from a to b.
fn one_key(sync: Sync, key: &str) -> RequestMessage {
    sync.start_as(1, "context_transfer", "a", "b", json!({ "filter": { "keys": [key] } }))
}

async fn killed(mut worker: Child) {
    use std::os::unix::process::ExitStatusExt as _;
    let status = timeout(DEADLINE, worker.wait()).await.expect("it dies in time");
    assert_eq!(status.expect("a status").signal(), Some(9), "it was killed");
}

#[tokio::test(flavor = "multi_thread")]
async fn no_tick_no_undo_and_no_share_is_lost_half_or_done_twice() {
    let fixture = Fixture::with_topology(|topology| {
        set_duplicate_window(topology, "SYNC", Duration::from_millis(100));
        // What a dead worker held comes back soon, and often enough for all the deaths.
        for consumer in ["memory-sync", "memory-sync-jobs"] {
            set_redelivery(topology, consumer, Duration::from_secs(1), 1_000);
        }
    })
    .await;
    let (fixture, load) = prepare(fixture).await;
    for (n, point) in POINTS.iter().enumerate() {
        let at = format!("{point}:1");
        let node = json!({ "filter": { "keys": [format!("river.{n}")] } });
        let share = load.shares[n].start_as(1, "knowledge_share", "a", &format!("k{n}"), node);
        let requests = [load.carried[n].undo(), share];
        fixture.publish(requests.clone()).await;
        killed(start(&fixture, Some(&at))).await;
        fixture.publish(requests).await;
        let turn =
            format!("UPDATE cross_service_memory_sync SET source_clock = 0 WHERE source_session_id = 's{n}'");
        fixture.execute(&turn).await;
        publish_tick(&fixture, "sync-carry").await;
        killed(start(&fixture, Some(&at))).await;
    }
    die_at_random(&fixture).await;
    let survivor = start(&fixture, None);
    fixture.drained::<MemorySync>().await;
    tick(&fixture, Job::Carry).await;
    kill(survivor).await;
    check_live(&fixture, &load.live).await;
    check_undone_and_shared(&fixture).await;
    assert_published(&fixture).await;
}

/// Has workers carry syncs and take them back at once, and kills each after some of them.
async fn die_at_random(fixture: &Fixture) {
    let mut random = fastrand::Rng::with_seed(20);
    for death in 0..RANDOM_DEATHS {
        let keys = (death * AT_RANDOM..(death + 1) * AT_RANDOM).map(|n| format!("r{n}"));
        let requests = keys.flat_map(|key| {
            let sync = Sync::new();
            [one_key(sync, &key), sync.undo()]
        });
        let requests: Vec<RequestMessage> = requests.collect();
        let undone = async || fixture.count("blackboard_events WHERE event_type = 'sync.undone'").await;
        let enough = undone().await + random.i64(1..=4);
        let worker = start(fixture, None);
        fixture.publish(requests).await;
        eventually("some are taken back", async || (undone().await >= enough).then_some(())).await;
        kill(worker).await;
    }
}

/// Each live sync has carried its keys in one round.
async fn check_live(fixture: &Fixture, live: &[Sync]) {
    let expected: Vec<String> = (0..KEYS).map(|key| format!("count.{key}=2")).collect();
    for (n, sync) in live.iter().enumerate() {
        assert_eq!(memory(fixture, &format!("t{n}")).await, expected, "t{n}");
        assert_eq!(sync.state(fixture).await, "in_progress");
        let effects = format!("effect FROM sync_changes WHERE sync_id = '{}'", sync.id);
        assert_eq!(fixture.lines(&effects).await, ["merged"; KEYS], "t{n}");
        assert_eq!(sync.counted(fixture, "merged").await, KEYS.to_string(), "t{n}");
    }
    let rounds = "rounds FROM cross_service_memory_sync WHERE sync_type = 'state_sync'";
    assert_eq!(fixture.lines(rounds).await, vec!["1"; live.len()]);
}

async fn check_undone_and_shared(fixture: &Fixture) {
    assert_eq!(fixture.dead_letters().await, Vec::<String>::new());
    let number = |count: usize| i64::try_from(count).expect("a number");
    let (each, transfers) = (number(POINTS.len()), number(POINTS.len() + RANDOM_DEATHS * AT_RANDOM));
    assert_eq!(memory(fixture, "b").await, Vec::<String>::new(), "all of it is taken back");
    let undone = "cross_service_memory_sync WHERE sync_type = 'context_transfer' AND undone_at IS NOT NULL";
    assert_eq!(fixture.count(undone).await, transfers);
    let left = "sync_changes WHERE target_session_id = 'b' AND undone_at IS NULL";
    assert_eq!(fixture.count(left).await, 0);
    let expected: Vec<String> = (0..POINTS.len()).map(|n| format!("k{n} river.{n}")).collect();
    let shared = "concat_ws(' ', k.session_id, n.node_key) FROM session_knowledge k
        JOIN consensus_memory_nodes n ON n.id = k.node_id ORDER BY 1";
    assert_eq!(fixture.lines(shared).await, expected);
    assert_eq!(
        fixture.count("cross_service_memory_sync WHERE sync_status = 'completed'").await,
        transfers + each
    );
    for (kind, expected) in [
        ("started", transfers + 2 * each),
        ("carried", transfers + 2 * each),
        ("completed", 2 * (transfers + each)),
        ("undone", transfers),
    ] {
        let events = format!("blackboard_events WHERE event_type = 'sync.{kind}'");
        assert_eq!(fixture.count(&events).await, expected, "{kind}");
    }
}
