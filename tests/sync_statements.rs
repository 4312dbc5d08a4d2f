//! How many statements a batch of syncs takes.

use memory_sync::MemorySync;
use serde_json::json;
use testkit::Fixture;

use crate::support::statements::Transactions;
use crate::support::sync::{Sync, memory, open, put, syncer, write};

/// The statements of the transaction that carries these pairs of sessions, all in one batch.
async fn statements(fixture: &Fixture, pairs: &[[String; 2]]) -> Vec<String> {
    let mut settings = fixture.settings.clone();
    // The batch is complete with the last of them.
    settings.worker.batch_size = pairs.len();
    settings.worker.batch_wait_ms = 1_000;
    let transactions = Transactions::watch(&mut settings).await;
    fixture.publish(pairs.iter().map(|[source, target]| Sync::new().transfer(source, target))).await;
    let worker = fixture.run_with(syncer(fixture), settings);
    fixture.drained::<MemorySync>().await;
    worker.stop().await.expect("a clean end");
    let mut found = transactions.take("INSERT INTO cross_service_memory_sync");
    assert_eq!(found.len(), 1, "one batch: {found:#?}");
    let mut statements = found.remove(0);
    // The client looks up types once for each connection.
    statements.retain(|statement| !statement.contains("pg_catalog.pg_") && !statement.contains("pg_type"));
    statements
}

#[tokio::test(flavor = "multi_thread")]
async fn ten_syncs_of_a_batch_take_as_many_statements_as_one() {
    let pairs: Vec<[String; 2]> = (0..11).map(|n| [format!("s{n}"), format!("t{n}")]).collect();
    let sessions: Vec<&str> = pairs.iter().flatten().map(String::as_str).collect();
    let fixture = open(Fixture::new().await, 1, &sessions).await;
    let contexts = pairs.iter().flat_map(|[source, target]| {
        [
            put(source, "new", json!(1), 1),
            put(source, "k", json!({ "a": 1, "c": 1 }), 1),
            put(target, "k", json!({ "b": 1, "c": 2 }), 1),
        ]
    });
    write(&fixture, contexts.collect::<Vec<_>>()).await;
    let one = statements(&fixture, &pairs[..1]).await;
    let ten = statements(&fixture, &pairs[1..]).await;
    for [_, target] in &pairs {
        assert_eq!(memory(&fixture, target).await, [r#"k={"a": 1, "b": 1, "c": 2}"#, "new=1"], "{target}");
    }
    assert_eq!(ten, one);
    for part in
        ["INSERT INTO sync_changes", "INSERT INTO simple_chat_context", "UPDATE cross_service_memory_sync"]
    {
        assert_eq!(one.iter().filter(|statement| statement.contains(part)).count(), 1, "{part}: {one:#?}");
    }
}
