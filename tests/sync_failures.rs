//! memory-sync: what fails fails alone, and says no more than it may.

use memory_sync::{Job, MemorySync};
use serde_json::{Value, json};
use testkit::request;

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
