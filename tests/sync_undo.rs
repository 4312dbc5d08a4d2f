//! `sync.undo`: the target goes back where nothing newer depends on it, and what stays says why.

use memory_sync::{Job, MemorySync};
use serde_json::{Value, json};
use testkit::{Fixture, request};

use crate::support::encryption::revealed_field;
use crate::support::sync::{
    Sync, assert_replays, memory, payloads, process, put, put_as, remove, syncer, tick, with_sessions,
    without_wakes, write,
};

async fn undone(fixture: &Fixture, sync: Sync) -> Value {
    process(fixture, [sync.undo()]).await;
    payloads(fixture, "sync.undone").await.pop().expect("an event")
}

#[tokio::test(flavor = "multi_thread")]
async fn created_keys_go_and_changed_ones_are_as_before() {
    let fixture = with_sessions(&["a", "b"]).await;
    write(
        &fixture,
        [put("b", "k", json!({ "b": 1 }), 5), put("b", "gone", json!(1), 1), remove("b", "gone", 2)],
    )
    .await;
    write(&fixture, [put("a", "k", json!({ "a": 1 }), 1), put("a", "new", json!(1), 1)]).await;
    let rows = "concat_ws('|', context_key, context_value, version, access_level, writes, removed_at IS NULL)
        FROM simple_chat_context WHERE session_id = 'b' ORDER BY context_key";
    let before = fixture.lines(rows).await;
    let sync = Sync::new();
    process(&fixture, [sync.transfer("a", "b")]).await;
    assert_eq!(memory(&fixture, "b").await, [r#"k={"a": 1, "b": 1}"#, "new=1"]);
    let event = undone(&fixture, sync).await;
    assert_eq!(fixture.lines(rows).await, before);
    assert_eq!(event["restored"].as_array().map(Vec::len), Some(2), "{event}");
    assert_eq!(event["staying"], json!(0));
    assert_eq!(fixture.count("cross_service_memory_sync WHERE undone_at IS NOT NULL").await, 1);
    // Undone once, there is nothing left.
    process(&fixture, [sync.undo()]).await;
    assert_eq!(payloads(&fixture, "sync.undone").await.len(), 1);
    // Another sync brings the same again.
    process(&fixture, [Sync::new().transfer("a", "b")]).await;
    assert_eq!(memory(&fixture, "b").await, [r#"k={"a": 1, "b": 1}"#, "new=1"]);
    assert_eq!(fixture.dead_letters().await, Vec::<String>::new());
    assert_replays(&fixture).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_something_newer_depends_on_stays_and_says_what() {
    let fixture = with_sessions(&["a", "b", "c", "d"]).await;
    let keys = ["written", "synced", "carried", "free"];
    write(&fixture, keys.map(|key| put("a", key, json!(1), 1))).await;
    let sync = Sync::new();
    process(&fixture, [sync.transfer("a", "b")]).await;
    write(&fixture, [put("b", "written", json!(2), 2), put("d", "synced", json!({ "d": 1 }), 1)]).await;
    let only = |key: &str| json!({ "filter": { "keys": [key] } });
    let (into, on) = (Sync::new(), Sync::new());
    process(
        &fixture,
        [
            into.start_as(1, "context_transfer", "d", "b", only("synced")),
            on.start_as(1, "context_transfer", "b", "c", only("carried")),
        ],
    )
    .await;
    let event = undone(&fixture, sync).await;
    assert_eq!(event["restored"][0]["context_key"], json!("free"));
    assert_eq!(event["staying"], json!(3));
    let reasons: Vec<String> = event["dependents"]
        .as_array()
        .expect("dependents")
        .iter()
        .map(|one| one["reason"].as_str().expect("a reason").to_owned())
        .collect();
    let expected = [
        format!("key \"carried\": sync {} carried it on to session \"c\"; undo that first", on.id),
        format!("key \"synced\": sync {} wrote it later; undo that first", into.id),
        "key \"written\": the session has written it since".to_owned(),
    ];
    assert_eq!(reasons, expected);
    // In the reverse order, all but the session's own goes.
    process(&fixture, [on.undo(), into.undo(), sync.undo()]).await;
    assert_eq!(memory(&fixture, "b").await, ["written=2"]);
    assert_eq!(memory(&fixture, "c").await, Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn all_rounds_of_a_live_sync_are_taken_back_and_it_ends() {
    let fixture = with_sessions(&["a", "b"]).await;
    write(&fixture, [put("b", "k", json!("own"), 1), put("a", "mixed", json!(1), 1)]).await;
    without_wakes(&fixture).await;
    let sync = Sync::new();
    let worker = fixture.run(syncer(&fixture));
    fixture.publish([sync.start("state_sync", "a", "b")]).await;
    fixture.drained::<MemorySync>().await;
    for version in 1..4 {
        write(
            &fixture,
            [put("a", "k", json!(version), version), put("a", "mixed", json!(version + 1), version + 1)],
        )
        .await;
        tick(&fixture, Job::Carry).await;
        if version == 2 {
            write(&fixture, [put("b", "mixed", json!("b's"), 9)]).await;
        }
    }
    assert_eq!(memory(&fixture, "b").await, [r#"k=3"#, r#"mixed=4"#]);
    fixture.publish([sync.undo()]).await;
    fixture.drained::<MemorySync>().await;
    // What the session wrote between the rounds is not undone with them.
    assert_eq!(memory(&fixture, "b").await, [r#"k="own""#, r#"mixed="b's""#]);
    assert_eq!(sync.state(&fixture).await, "completed undone");
    worker.stop().await.expect("a clean end");
    assert_replays(&fixture).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_value_that_is_stored_encrypted_stays_so_in_its_new_cell_and_in_the_record() {
    let fixture = with_sessions(&["a", "b"]).await;
    let hidden = |value: &str, version| {
        let more = json!({ "access_level": "shared", "sensitive": true });
        put_as("a", "pin", json!({ "pin": value, "bank": "A" }), version, more)
    };
    write(&fixture, [hidden("first-secret", 1)]).await;
    let (first, second) = (Sync::new(), Sync::new());
    process(&fixture, [first.transfer("a", "b")]).await;
    assert_eq!(memory(&fixture, "b").await, [r#"pin="$encrypted""#]);
    assert_eq!(revealed(&fixture, "b", "pin").await, json!({ "pin": "first-secret", "bank": "A" }));
    write(&fixture, [hidden("second-secret", 2)]).await;
    let other = put_as(
        "b",
        "pin",
        json!({ "pin": "third-secret", "bank": "A", "note": 1 }),
        1,
        json!({ "access_level": "shared", "sensitive": true }),
    );
    write(&fixture, [other]).await;
    process(&fixture, [second.transfer("a", "b")]).await;
    assert_eq!(
        revealed(&fixture, "b", "pin").await,
        json!({ "pin": "third-secret", "bank": "A", "note": 1 })
    );
    assert_eq!(second.counted(&fixture, "conflicts").await, "1");
    // No plain text anywhere in the database.
    for table in [
        "simple_chat_context",
        "sync_changes",
        "cross_service_memory_sync",
        "blackboard_events",
        "consensus_memory_nodes",
    ] {
        let found = format!("{table} AS t WHERE t::text LIKE '%-secret%'");
        assert_eq!(fixture.count(&found).await, 0, "{table}");
    }
    assert_eq!(
        fixture
            .count("encrypted_fields WHERE table_name = 'sync_changes' AND column_name = 'conflicts'")
            .await,
        1
    );
    process(&fixture, [second.undo()]).await;
    assert_eq!(
        revealed(&fixture, "b", "pin").await,
        json!({ "pin": "third-secret", "bank": "A", "note": 1 })
    );
    // A removal crosses, and no ciphertext stays in the target.
    write(
        &fixture,
        [
            remove("a", "pin", 3),
            request("context.remove", 1, json!({ "session_id": "b", "context_key": "pin", "version": 2 })),
        ],
    )
    .await;
    process(&fixture, [Sync::new().transfer("a", "b")]).await;
    let left = "encrypted_fields e JOIN simple_chat_context c ON c.id = e.row_id";
    assert_eq!(fixture.count(left).await, 0);
    assert_eq!(fixture.dead_letters().await, Vec::<String>::new());
    assert_replays(&fixture).await;
}

/// The decrypted value of a context.
async fn revealed(fixture: &Fixture, session: &str, key: &str) -> Value {
    let row = format!("id FROM simple_chat_context WHERE session_id = '{session}' AND context_key = '{key}'");
    let row = fixture.lines(&row).await[0].parse().expect("an id");
    let text = revealed_field(fixture, 1, "simple_chat_context", "context_value", row).await;
    serde_json::from_str(&text).expect("JSON")
}
