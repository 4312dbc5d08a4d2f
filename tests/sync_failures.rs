//! memory-sync: what fails fails alone, and says no more than it may; what waits for the key store is pending.

use std::time::Duration;

use memory_sync::{Job, MemorySync};
use serde_json::{Value, json};
use testkit::{Fixture, RunningWorker, eventually, request, set_redelivery};

use crate::support::sync::{
    Sync, memory, open, payloads, process, put, put_as, remove, syncer, tick, with_sessions, without_wakes,
    write,
};

#[tokio::test(flavor = "multi_thread")]
async fn the_reason_of_a_failure_holds_no_part_of_an_encrypted_value() {
    let fixture = with_sessions(&["a", "b"]).await;
    let hidden = |session, key, value| {
        put_as(session, key, value, 1, json!({ "access_level": "shared", "sensitive": true }))
    };
    let salary = json!({ "salary": 9_000_000_000_000_000_000_u64 });
    write(
        &fixture,
        [
            hidden("a", "set.x", json!({ "diagnosis-hiv": ["yes"] })),
            hidden("b", "set.x", json!({ "diagnosis-hiv": "no" })),
            hidden("a", "count.x", salary.clone()),
            hidden("b", "count.x", salary),
        ],
    )
    .await;
    let sync = Sync::new();
    process(&fixture, [sync.transfer("a", "b")]).await;
    assert_eq!(sync.state(&fixture).await, "completed carried");
    let reasons = fixture.lines("reason FROM sync_changes WHERE effect = 'failed'").await;
    assert!(!reasons.is_empty(), "a counter above 64 bits fails");
    for table in ["sync_changes", "cross_service_memory_sync", "blackboard_events", "consensus_memory_nodes"]
    {
        for part in ["diagnosis-hiv", "salary", "18000000000000000000"] {
            let found = format!("{table} AS t WHERE t::text LIKE '%{part}%'");
            assert_eq!(fixture.count(&found).await, 0, "{part} in {table}");
        }
    }
}

/// A value of so many nested objects.
fn nested(depth: usize, leaf: i64) -> Value {
    (0..depth).fold(json!(leaf), |inner, _| json!({ "a": inner }))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_value_that_nests_too_deep_to_be_kept_fails_its_key_and_stops_no_live_sync() {
    let fixture = open(with_sessions(&["a", "b"]).await, 2, &["c", "d"]).await;
    without_wakes(&fixture).await;
    write(&fixture, [put("a", "deep", nested(60, 1), 1), put("a", "flat", json!(1), 1)]).await;
    let (deep, other) = (Sync::new(), Sync::new());
    let worker = fixture.run(syncer(&fixture));
    let of_other = other.start_as(2, "state_sync", "c", "d", json!({}));
    fixture.publish([deep.start("state_sync", "a", "b"), of_other]).await;
    fixture.drained::<MemorySync>().await;
    let body = json!({ "session_id": "c", "context_key": "k", "context_value": 1, "version": 1,
        "access_level": "shared" });
    write(
        &fixture,
        [put("a", "deep", nested(60, 2), 2), put("a", "flat", json!(2), 2), request("context.put", 2, body)],
    )
    .await;
    tick(&fixture, Job::Carry).await;
    assert_eq!(memory(&fixture, "b").await, ["flat=2"]);
    assert_eq!(memory(&fixture, "d").await, ["k=1"]);
    assert_eq!(deep.counted(&fixture, "failed").await, "1");
    let reasons = fixture.lines("reason FROM sync_changes WHERE effect = 'failed' GROUP BY reason").await;
    assert!(reasons.len() == 1 && reasons[0].contains("the nesting of its state"), "{reasons:?}");
    worker.stop().await.expect("a clean end");
    assert_eq!(fixture.dead_letters().await, Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_state_or_a_sync_that_cannot_be_read_fails_by_itself() {
    let fixture = with_sessions(&["a", "b", "c"]).await;
    without_wakes(&fixture).await;
    write(&fixture, [put("a", "broken", json!(1), 1), put("a", "k", json!(1), 1)]).await;
    let (into, unreadable) = (Sync::new(), Sync::new());
    let worker = fixture.run(syncer(&fixture));
    fixture.publish([into.start("state_sync", "a", "b"), unreadable.start("state_sync", "a", "c")]).await;
    fixture.drained::<MemorySync>().await;
    let break_state = "UPDATE simple_chat_context SET sync_state = '[[', sync_values = '[['
        WHERE session_id = 'a' AND context_key = 'broken'";
    fixture.execute(break_state).await;
    let break_filter = format!(
        "UPDATE cross_service_memory_sync SET filter = '{{\"keys\": 1}}' WHERE id = '{}'",
        unreadable.id
    );
    fixture.execute(&break_filter).await;
    write(&fixture, [put("a", "broken", json!(2), 2), put("a", "k", json!(2), 2)]).await;
    tick(&fixture, Job::Carry).await;
    assert_eq!(memory(&fixture, "b").await, ["broken=1", "k=2"]);
    assert_eq!(into.state(&fixture).await, "in_progress");
    assert_eq!(into.counted(&fixture, "failed").await, "1");
    assert_eq!(unreadable.state(&fixture).await, "failed");
    assert_eq!(fixture.count("sec.due_sync_carry(10)").await, 0, "the sync has gone on");
    // Nor is a removal forgotten then, and others are.
    write(&fixture, [remove("a", "broken", 3)]).await;
    fixture.execute("UPDATE simple_chat_context SET sync_state = '[[' WHERE removed_at IS NOT NULL").await;
    tick(&fixture, Job::Forget).await;
    worker.stop().await.expect("a clean end");
    assert_eq!(fixture.dead_letters().await, Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_was_proposed_under_the_id_of_a_dispute_does_not_hide_it() {
    let fixture = with_sessions(&["a", "b", "c"]).await;
    write(
        &fixture,
        [put("a", "fact.capital", json!("Lisbon"), 1), put("b", "fact.capital", json!("Porto"), 1)],
    )
    .await;
    process(&fixture, [Sync::new().transfer("a", "b")]).await;
    // As if a service had foreseen the id.
    let proposed = "UPDATE consensus_memory_nodes SET node_type = 'fact', content = '{}', validation_status = 'unvalidated'";
    fixture.execute(proposed).await;
    let again = Sync::new();
    process(&fixture, [Sync::new().transfer("a", "c")]).await;
    process(&fixture, [again.transfer("b", "c")]).await;
    assert_eq!(again.counted(&fixture, "disputes").await, "1");
    let nodes = "concat_ws(' ', node_type, node_key, validation_status) FROM consensus_memory_nodes ORDER BY node_type";
    assert_eq!(
        fixture.lines(nodes).await,
        ["fact fact.capital unvalidated", "sync-dispute fact.capital disputed"]
    );
    let raised = fixture.lines("id FROM consensus_memory_nodes WHERE node_type = 'sync-dispute'").await;
    let on_record =
        format!("node_id FROM sync_changes WHERE sync_id = '{}' AND node_id IS NOT NULL", again.id);
    assert_eq!(fixture.lines(&on_record).await, raised);
    let told = payloads(&fixture, "sync.disputed").await.pop().expect("an event");
    assert_eq!(told["node_id"], json!(raised[0]));
    assert_eq!(fixture.dead_letters().await, Vec::<String>::new());
}

/// Whether the key store may be connected to. Those that are connected are cut off.
async fn set_key_store(fixture: &Fixture, is_there: bool) {
    let name = fixture.settings.keys.url.rsplit('/').next().expect("a name");
    fixture
        .execute(&format!(
            "ALTER DATABASE {name} ALLOW_CONNECTIONS {is_there};
             SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{name}'"
        ))
        .await;
}

/// A worker that has started and opened no data key, and whose key store is away from then on.
async fn without_key_store(fixture: &Fixture) -> RunningWorker {
    let worker = fixture.run(syncer(fixture));
    eventually("it runs", async || {
        (worker.readiness.report().phase == runtime::Phase::Running).then_some(())
    })
    .await;
    set_key_store(fixture, false).await;
    worker
}

async fn is_pending(fixture: &Fixture, sync: Sync) {
    eventually("it waits for its data key", async || (sync.state(fixture).await == "pending").then_some(()))
        .await;
    let events = format!("blackboard_events WHERE event_payload ->> 'sync_id' = '{}'", sync.id);
    assert_eq!(fixture.count(&events).await, 0, "it has not been accepted yet");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sync_is_pending_while_it_waits_for_its_data_key() {
    let fixture = Fixture::with_topology(|topology| {
        set_redelivery(topology, "memory-sync", Duration::from_secs(2), 1_000);
    })
    .await;
    let fixture = open(fixture, 1, &["a", "b"]).await;
    let hidden = |version: i64| {
        put_as("a", "pin", json!(version), version, json!({ "access_level": "shared", "sensitive": true }))
    };
    let changes = |sync: Sync| format!("sync_changes WHERE sync_id = '{}'", sync.id);

    write(&fixture, [hidden(1)]).await;
    let carried = Sync::new();
    let worker = without_key_store(&fixture).await;
    fixture.publish([carried.transfer("a", "b")]).await;
    is_pending(&fixture, carried).await;
    assert_eq!(memory(&fixture, "b").await, Vec::<String>::new());
    set_key_store(&fixture, true).await;
    fixture.drained::<MemorySync>().await;
    worker.stop().await.expect("a clean end");
    assert_eq!(carried.state(&fixture).await, "completed carried");
    assert_eq!(memory(&fixture, "b").await, [r#"pin="$encrypted""#]);
    assert_eq!(fixture.count(&changes(carried)).await, 1);
    assert_eq!(payloads(&fixture, "sync.started").await.len(), 1);

    // One that is stopped meanwhile ends, and carries nothing when its message comes again.
    write(&fixture, [hidden(2)]).await;
    let stopped = Sync::new();
    let worker = without_key_store(&fixture).await;
    fixture.publish([stopped.transfer("a", "b")]).await;
    is_pending(&fixture, stopped).await;
    worker.stop().await.expect("a clean end");
    set_key_store(&fixture, true).await;
    fixture.publish([stopped.stop()]).await;
    let mut settings = fixture.settings.clone();
    // Both messages are one batch.
    settings.worker.batch_size = 2;
    settings.worker.batch_wait_ms = 1_000;
    let worker = fixture.run_with(syncer(&fixture), settings);
    fixture.drained::<MemorySync>().await;
    worker.stop().await.expect("a clean end");
    assert_eq!(stopped.state(&fixture).await, "completed stopped");
    assert_eq!(fixture.count(&changes(stopped)).await, 0);
    assert_eq!(payloads(&fixture, "sync.started").await.len(), 1);
    assert_eq!(fixture.dead_letters().await, Vec::<String>::new());
}
