//! memory-sync: what fails fails alone, and says no more than it may.

use serde_json::json;

use crate::support::sync::{Sync, process, put_as, with_sessions, write};

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
