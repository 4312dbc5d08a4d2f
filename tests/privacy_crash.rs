//! An erasure that is killed anywhere, done by two processes at once, or without one of its stores, comes to the same end.

use std::path::Path;

use context_writer::ContextWriter;
use privacy::Step;
use serde_json::Value;
use testkit::{eventually, requests_for_all_tables};
use uuid::Uuid;

use crate::support::archives::{TABLES, archive, succeeds, with_target};
use crate::support::erasure::{
    audit_verifies, erase, file, finish, json, killed_at, messages_of, privacy, privacy_with, receipt,
    rows_of, rows_with, with_receipts,
};
use crate::support::memories::{Memories, index, memory};
use crate::support::retention::{cleaner, sweep_all, without_schedule};

const PERSON: i32 = 77_003;

/// A person in all stores, and another user.
async fn filled() -> (Memories, tempfile::TempDir, tempfile::TempDir) {
    let mut memories = Memories::new().await;
    let receipts = with_receipts(&mut memories.fixture);
    let archives = with_target(&mut memories.fixture);
    without_schedule(&memories.fixture).await;
    let fixture = &memories.fixture;
    fixture.process(ContextWriter, [1, PERSON].into_iter().flat_map(requests_for_all_tables)).await;
    let memories = memories.with_users(&[1, PERSON]).await;
    memories
        .process([1, PERSON].map(|user| index(user, vec![memory(Uuid::now_v7(), "quiet museum", 1)])))
        .await;
    let fixture = &memories.fixture;
    fixture
        .execute(&format!(
            "INSERT INTO chat_mode_sessions (id, user_id, session_id, chat_mode, is_active, ended_at)
                 SELECT gen_random_uuid(), n, 'ended', 'simple', false, now() - interval '400 days' FROM unnest(ARRAY[1, {PERSON}]) AS n"
        ))
        .await;
    archive(fixture, &TABLES).await;
    let worker = fixture.run(cleaner(fixture));
    sweep_all(fixture).await;
    worker.stop().await.expect("a clean end");
    assert!(fixture.count(&format!("archives WHERE user_ids @> ARRAY[1, {PERSON}]")).await >= 1);
    (memories, receipts, archives)
}

/// What a receipt counts, by store and name, without stores in which nothing was.
fn counts(receipt: &Value) -> Vec<String> {
    let stores = receipt["body"]["stores"].as_array().expect("stores").iter();
    let lines = stores.filter(|line| line["before"] != 0).map(|line| {
        assert_eq!(line["after"], 0, "{line}");
        format!("{} {} {}", line["store"], line["name"], line["before"])
    });
    let mut lines: Vec<String> = lines.collect();
    lines.sort();
    lines
}

/// Nothing of the person is left, there is one receipt and one tombstone, and the other user has everything.
async fn assert_complete(memories: &Memories, receipts: &Path, id: &str, of_other: &Value) -> Value {
    let fixture = &memories.fixture;
    assert!(rows_of(fixture, PERSON).await.is_empty(), "{:?}", rows_of(fixture, PERSON).await);
    assert_eq!(messages_of(fixture, PERSON).await, Vec::<String>::new());
    assert_eq!(fixture.count(&format!("archives WHERE {PERSON} = ANY (user_ids)")).await, 0);
    succeeds(fixture, &["verify"]).await;
    assert_eq!(memories.points().await, 1);
    assert_eq!(serde_json::json!(rows_of(fixture, 1).await), *of_other);
    assert_eq!(fixture.count("sec.erased_users").await, 1);
    assert_eq!(fixture.count("sec.fenced_users").await, 0);
    assert_eq!(fixture.count("privacy_requests").await, 0);
    let found = rows_with(fixture, "quiet museum").await;
    assert_eq!(found.len(), 2, "an event and a memory of the other user: {found:?}");
    assert!(found.iter().all(|rows| rows.ends_with(": 1")), "{found:?}");
    let events = format!("audit.erasures WHERE erasure = '{id}'");
    assert!(fixture.count(&events).await >= 1);
    assert_eq!(fixture.count("audit.erasures").await, fixture.count(&events).await);
    audit_verifies(fixture).await;
    let file = receipts.join(format!("{id}.json"));
    let ended = privacy(fixture, &["verify", file.to_str().expect("a path")]).await;
    assert!(ended.is_success(), "{}", ended.all());
    receipt(&file)
}

#[tokio::test(flavor = "multi_thread")]
async fn it_is_killed_at_every_step_and_the_receipt_is_the_same() {
    let mut expected = Vec::new();
    for part in [&Step::ALL[..5], &Step::ALL[5..]] {
        let (memories, receipts, _archives) = filled().await;
        let of_other = serde_json::json!(rows_of(&memories.fixture, 1).await);
        let id = file(&memories.fixture, PERSON).await;
        for step in part {
            let sides: &[&str] = match step {
                Step::Archives | Step::Receipt => &["before", "between", "done", "after"],
                Step::Fence
                | Step::Drain
                | Step::Count
                | Step::Rows
                | Step::Streams
                | Step::Vectors
                | Step::Keys
                | Step::Seal => &["before", "done", "after"],
            };
            for side in sides {
                let point = format!("erase.{step}.{side}:1");
                killed_at(&memories.fixture, &point).await;
            }
        }
        finish(&memories.fixture, &id).await;
        let signed = assert_complete(&memories, receipts.path(), &id, &of_other).await;
        expected.push(counts(&signed));
    }
    let (memories, receipts, _archives) = filled().await;
    let signed = receipt(&erase(&memories.fixture, receipts.path(), PERSON).await);
    for counted in expected {
        assert_eq!(counted, counts(&signed), "as without a kill");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn processes_at_once_make_one_erasure() {
    let (memories, receipts, _archives) = filled().await;
    let of_other = serde_json::json!(rows_of(&memories.fixture, 1).await);
    let id = file(&memories.fixture, PERSON).await;
    for _ in 0..3 {
        let run = || privacy(&memories.fixture, &["run"]);
        let (a, b, c) = tokio::join!(run(), run(), run());
        for ended in [a, b, c] {
            assert!(!ended.err.contains("panicked"), "{}", ended.err);
        }
    }
    finish(&memories.fixture, &id).await;
    assert_complete(&memories, receipts.path(), &id, &of_other).await;
}

/// A store is unreachable at its step. The erasure stops there, says so, deletes nothing of the next ones, and goes on when it is back.
#[tokio::test(flavor = "multi_thread")]
async fn a_store_that_is_away_stops_its_step_until_it_is_back() {
    let (memories, receipts, archives) = filled().await;
    let fixture = &memories.fixture;
    let of_other = serde_json::json!(rows_of(fixture, 1).await);
    let id = file(fixture, PERSON).await;
    let nowhere = archives.path().join("nowhere").display().to_string();
    let nowhere = format!("file://{nowhere}");
    for (variable, value, step) in [
        ("MEMFLEET_KEYS__URL", "postgres://nobody@127.0.0.1:1/keys", "fence"),
        ("MEMFLEET_NATS__URL", "nats://127.0.0.1:1", "streams"),
        ("MEMFLEET_VECTORS__URL", "http://127.0.0.1:1", "vectors"),
        ("MEMFLEET_ARCHIVE__URL", nowhere.as_str(), "archives"),
        ("MEMFLEET_PRIVACY__RECEIPT_URL", nowhere.as_str(), "receipt"),
    ] {
        eventually("it stops at the step", async || {
            let ran = privacy_with(fixture, &["run"], &[(variable, value)]).await;
            assert!(!ran.err.contains("panicked"), "{}", ran.err);
            let shown = json(fixture, &["show", &id]).await;
            let request = &shown["request"];
            // The row is tried again at once, instead of after some seconds.
            fixture.execute("UPDATE privacy_requests SET retry_at = NULL, claimed_until = NULL").await;
            let at = request["step"].as_str().unwrap_or("fence");
            (at == step && request["last_error"].is_string()).then_some(())
        })
        .await;
        if step == "fence" {
            assert_eq!(fixture.count(&format!("users WHERE id = {PERSON}")).await, 1);
        }
    }
    let error = json(fixture, &["show", &id]).await["request"]["last_error"].to_string();
    assert!(!error.contains(&PERSON.to_string()), "no value of a row: {error}");
    finish(&memories.fixture, &id).await;
    assert_complete(&memories, receipts.path(), &id, &of_other).await;
}
