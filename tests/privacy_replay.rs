//! What would bring an erased person back: messages that come late or again, archives, a recovery, and a database that is restored.

use std::time::Duration;

use context_writer::ContextWriter;
use diesel_async::SimpleAsyncConnection as _;
use serde_json::json;
use testkit::{
    Fixture, RequestMessage, context, eventually, request, requests_for_all_tables, session, user,
};
use uuid::Uuid;

use crate::support::archives::{TABLES, archive, ids, run, with_target};
use crate::support::erasure::{
    audit_verifies, erase, file, json, messages_of, privacy, privacy_with, receipt, rows_of, rows_of_others,
    rows_with, with_receipts,
};
use crate::support::memories::{Memories, index, memory};
use crate::support::program::{Ended, memfleet, output_within};
use crate::support::retention::{cleaner, sweep_all, with_old_sessions, without_schedule};

const PERSON: i32 = 77_003;
const CANARY: &str = "canary-of-the-erased";
const WITHIN: Duration = Duration::from_secs(120);

async fn program(fixture: &Fixture, arguments: &[&str]) -> Ended {
    output_within(WITHIN, memfleet(fixture, arguments)).await.into()
}

fn secret(key: &str) -> RequestMessage {
    request(
        "context.put",
        PERSON,
        json!({ "session_id": "s", "context_key": key, "context_value": CANARY, "version": 1 }),
    )
}

/// Two users, one of whom is erased in the tests.
async fn two_users() -> (Fixture, tempfile::TempDir) {
    let mut fixture = Fixture::new().await;
    let receipts = with_receipts(&mut fixture);
    let requests = [1, PERSON].into_iter().flat_map(requests_for_all_tables);
    let sessions = [session(1, "s"), session(PERSON, "s"), secret("k")];
    fixture.process(ContextWriter, requests.chain(sessions).collect::<Vec<_>>()).await;
    assert_eq!(fixture.dead_letters().await, Vec::<String>::new());
    (fixture, receipts)
}

async fn assert_gone(fixture: &Fixture) {
    assert!(rows_of(fixture, PERSON).await.is_empty(), "{:?}", rows_of(fixture, PERSON).await);
    assert_eq!(rows_with(fixture, CANARY).await, Vec::<String>::new());
}

/// A database that is older than its anchors is not sealed, so that the second receipt waits.
async fn assert_nothing_but_the_request(fixture: &Fixture) {
    let mut rows = rows_of(fixture, PERSON).await;
    rows.remove("privacy_requests");
    assert!(rows.is_empty(), "{rows:?}");
    assert_eq!(rows_with(fixture, CANARY).await, Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_that_comes_late_or_again_changes_nothing_and_becomes_no_dead_letter() {
    let (fixture, receipts) = two_users().await;
    let again = secret("again");
    fixture.process(ContextWriter, [again.clone()]).await;
    erase(&fixture, receipts.path(), PERSON).await;
    assert_eq!(messages_of(&fixture, PERSON).await, Vec::<String>::new());
    let mut outcomes = fixture.subscribe("_INBOX.test.late").await;
    let late = [user(PERSON), session(PERSON, "s"), secret("late"), RequestMessage { ..again }];
    let late = late.map(|request| request.with(contract::header::REPLY_TO, "_INBOX.test.late"));
    fixture.process(ContextWriter, late.into_iter().chain([context(1, "s", "k", 1)])).await;
    let outcome = testkit::next(&mut outcomes).await;
    let outcome = String::from_utf8_lossy(&outcome.payload).into_owned();
    assert!(outcome.contains("unchanged") && outcome.contains("the user was erased"), "{outcome}");
    assert_eq!(fixture.dead_letters().await, Vec::<String>::new());
    assert_gone(&fixture).await;
    assert_eq!(
        fixture
            .count("simple_chat_context WHERE user_id = 1 AND context_key = 'k' AND session_id = 's'")
            .await,
        1
    );
    // The messages are in the stream, and the process looks after them.
    assert_ne!(messages_of(&fixture, PERSON).await, Vec::<String>::new());
    let ran = privacy(&fixture, &["run"]).await;
    assert!(ran.is_success(), "{}", ran.all());
    assert_eq!(messages_of(&fixture, PERSON).await, Vec::<String>::new());
    audit_verifies(&fixture).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn neither_dead_letters_nor_a_recovery_bring_the_person_back() {
    let (fixture, receipts) = two_users().await;
    let mistake =
        |user: i32| request("context.put", user, json!({ "session_id": "s", "mistake": CANARY, "n": user }));
    fixture.process(ContextWriter, [mistake(PERSON), mistake(1)]).await;
    assert_eq!(fixture.stored("DEAD").await, 2);
    erase(&fixture, receipts.path(), PERSON).await;
    assert_eq!(fixture.stored("DEAD").await, 1, "that of the other user");
    // One that had been taken out of the stream before, and is published again.
    fixture.process(ContextWriter, [secret("k"), mistake(PERSON)]).await;
    let replayed = program(&fixture, &["dead", "replay", "--all"]).await;
    assert!(!replayed.err.contains("panicked"), "{}", replayed.err);
    let worker = fixture.run(ContextWriter);
    let recovered =
        program(&fixture, &["recover", "--after-restore", "--yes", "--wait", "60", "--json"]).await;
    assert!(!recovered.err.contains("panicked"), "{}", recovered.err);
    fixture.drained::<ContextWriter>().await;
    worker.stop().await.expect("a clean end");
    assert_gone(&fixture).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn no_archive_restores_the_person() {
    let mut fixture = Fixture::new().await;
    let receipts = with_receipts(&mut fixture);
    let _archives = with_target(&mut fixture);
    without_schedule(&fixture).await;
    with_old_sessions(&fixture, PERSON..=PERSON + 1, 400).await;
    archive(&fixture, &TABLES).await;
    let worker = fixture.run(cleaner(&fixture));
    sweep_all(&fixture).await;
    worker.stop().await.expect("a clean end");
    erase(&fixture, receipts.path(), PERSON).await;
    for id in ids(&fixture, "chat_mode_sessions").await {
        let ended = run(&fixture, &["restore", &id]).await;
        assert!(ended.is_success(), "the rows of the other one: {}", ended.all());
    }
    assert!(rows_of(&fixture, PERSON).await.is_empty());
    let of_other = format!("chat_mode_sessions WHERE session_id = 'ended' AND user_id = {}", PERSON + 1);
    assert_eq!(fixture.count(&of_other).await, 1);
}

/// A vector that was computed before the fence, and is stored after it.
#[tokio::test(flavor = "multi_thread")]
async fn a_memory_that_is_indexed_late_leaves_no_point() {
    let mut memories = Memories::new().await.with_users(&[1, PERSON]).await;
    let receipts = with_receipts(&mut memories.fixture);
    memories.process([1, PERSON].map(|user| index(user, vec![memory(Uuid::now_v7(), CANARY, 1)]))).await;
    assert_eq!(memories.points().await, 2);
    erase(&memories.fixture, receipts.path(), PERSON).await;
    assert_eq!(memories.points().await, 1);
    memories.process([1, PERSON].map(|user| index(user, vec![memory(Uuid::now_v7(), "late", 2)]))).await;
    assert_eq!(memories.points().await, 2, "those of the other one");
    assert_eq!(memories.fixture.dead_letters().await, Vec::<String>::new());
    assert!(rows_of(&memories.fixture, PERSON).await.is_empty());
}

/// A copy of a database of the fixture on the same server, as a backup is.
async fn copy(url: &str, name: &str) -> String {
    let (base, original) = url.rsplit_once('/').expect("a database");
    let server = format!("{base}/postgres");
    let end = format!(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{original}' AND pid <> pg_backend_pid()"
    );
    let create = format!("CREATE DATABASE {name} TEMPLATE {original}");
    eventually("nobody uses the database", async || {
        let mut server = store::connect(&server).await.expect("the server");
        server.batch_execute(&end).await.expect("an end of others");
        server.batch_execute(&create).await.ok()
    })
    .await;
    let url = format!("{base}/{name}");
    let mut restored = store::connect(&url).await.expect("the copy");
    let guard =
        if name.starts_with("keys") { "SELECT guard_database()" } else { "SELECT sec.guard_database()" };
    restored.batch_execute(guard).await.expect("its privileges");
    url
}

/// Copies of both databases: the main one, and the key store.
async fn back_up(fixture: &Fixture) -> [String; 2] {
    let name = Uuid::now_v7().simple().to_string();
    [
        copy(&fixture.settings.postgres.url, &format!("test_{name}")).await,
        copy(&fixture.settings.keys.url, &format!("keys_{name}")).await,
    ]
}

/// Goes on with these databases.
fn restore(fixture: &mut Fixture, [main, keys]: [String; 2]) {
    fixture.settings.postgres.worker_url = Some(testkit::worker_url(&main));
    fixture.settings.postgres.url = main;
    fixture.settings.keys.worker_url = Some(testkit::worker_url(&keys));
    fixture.settings.keys.url = keys;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restored_database_is_brought_up_to_date_with_the_receipts() {
    let (mut fixture, receipts) = two_users().await;
    let backup = back_up(&fixture).await;
    let first = erase(&fixture, receipts.path(), PERSON).await;

    restore(&mut fixture, backup);
    let of_other = rows_of_others(&fixture, PERSON).await;
    assert!(!rows_of(&fixture, PERSON).await.is_empty(), "the backup has the person");
    let status = program(&fixture, &["status"]).await;
    assert!(status.all().contains("memfleet privacy reapply"), "{}", status.all());
    let early = program(&fixture, &["recover", "--after-restore"]).await;
    assert_eq!(early.code, Some(1), "{}", early.all());
    assert!(early.err.contains("memfleet privacy reapply"), "{}", early.err);

    let shown = json(&fixture, &["reapply", "--dry-run"]).await;
    assert_eq!(shown["receipts"], 1, "{shown}");
    assert!(!rows_of(&fixture, PERSON).await.is_empty(), "nothing was changed");
    let unconfirmed = privacy(&fixture, &["reapply"]).await;
    assert_eq!(unconfirmed.code, Some(1), "{}", unconfirmed.all());
    let done = privacy(&fixture, &["reapply", "--yes", "--json"]).await;
    assert!(done.is_success(), "{}", done.all());
    assert_nothing_but_the_request(&fixture).await;
    assert_eq!(rows_of_others(&fixture, PERSON).await, of_other);
    let again = privacy(&fixture, &["reapply", "--yes"]).await;
    assert!(again.is_success(), "a second time changes nothing: {}", again.all());
    assert!(receipt(&first)["signature"].is_string(), "the first receipt is as it was");
    for file in std::fs::read_dir(receipts.path()).expect("the receipts") {
        let file = file.expect("a file").path();
        let ended = privacy(&fixture, &["verify", file.to_str().expect("a path"), "--offline"]).await;
        assert!(ended.is_success(), "{}: {}", file.display(), ended.all());
    }
    let status = program(&fixture, &["status"]).await;
    assert!(!status.all().contains("memfleet privacy reapply"), "{}", status.all());
    let recovered = program(&fixture, &["recover", "--after-restore"]).await;
    assert!(recovered.is_success(), "{}", recovered.all());
    fixture.process(ContextWriter, [user(PERSON)]).await;
    assert_nothing_but_the_request(&fixture).await;
    assert_eq!(fixture.dead_letters().await, Vec::<String>::new());
}

/// Everything was deleted when the backup was taken. The row that waits for a seal may get none in a database that is older than its anchors.
#[tokio::test(flavor = "multi_thread")]
async fn an_erasure_that_lacked_only_its_receipt_in_the_backup_gets_the_one_that_was_signed() {
    for step in ["seal", "receipt"] {
        let (mut fixture, receipts) = two_users().await;
        let id = file(&fixture, PERSON).await;
        let point = format!("erase.{step}.before:1");
        eventually("it is killed before the step", async || {
            let ended = privacy_with(&fixture, &["run"], &[("MEMFLEET_CRASH_AT", &point)]).await;
            fixture.execute("UPDATE privacy_requests SET claimed_until = NULL, retry_at = NULL").await;
            ended.code.is_none().then_some(())
        })
        .await;
        let backup = back_up(&fixture).await;
        let signed = receipts.path().join(format!("{id}.json"));
        eventually("the receipt is signed", async || {
            fixture.execute("UPDATE privacy_requests SET retry_at = NULL").await;
            privacy(&fixture, &["run"]).await;
            signed.exists().then_some(())
        })
        .await;
        let text = std::fs::read_to_string(&signed).expect("the receipt");

        restore(&mut fixture, backup);
        assert_eq!(fixture.lines("step FROM privacy_requests").await, [step]);
        for _ in 0..2 {
            let done = json(&fixture, &["reapply", "--yes"]).await;
            assert_eq!((&done["found"], &done["requests"]), (&json!({}), &json!([])), "{step}: {done}");
            assert_eq!(fixture.count("privacy_requests").await, 0, "{step}");
            assert_eq!(fixture.count("sec.fenced_users").await, 0, "{step}");
            let stored = fixture.lines("receipt FROM sec.erased_users").await;
            assert_eq!(stored, [text.as_str()], "{step}");
        }
        assert_eq!(std::fs::read_to_string(&signed).expect("the receipt"), text, "{step}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_that_nobody_can_count_any_more_is_not_called_empty() {
    let mut memories = Memories::new().await.with_users(&[PERSON]).await;
    let receipts = with_receipts(&mut memories.fixture);
    memories.process([index(PERSON, vec![memory(Uuid::now_v7(), CANARY, 1)])]).await;
    let fixture = &memories.fixture;
    let signed = erase(fixture, receipts.path(), PERSON).await;
    let path = signed.to_str().expect("a path");
    let verified = privacy(fixture, &["verify", path]).await;
    assert!(verified.is_success() && !verified.out.contains("not counted"), "{}", verified.all());
    // The pseudonym is kept for 31 days.
    fixture.execute("UPDATE sec.erased_users SET tenant = NULL").await;
    let verified = privacy(fixture, &["verify", path]).await;
    assert_eq!(verified.code, Some(1), "{}", verified.all());
    assert!(verified.all().contains("the pseudonym of the person is missing"), "{}", verified.all());
    // A receipt, from which the tombstone may have come, does not have it.
    fixture.execute("UPDATE sec.erased_users SET bucket = NULL").await;
    let verified = privacy(fixture, &["verify", path]).await;
    let said = "nothing of the person is there; what is unknown above was not counted";
    assert!(verified.is_success() && verified.out.contains(said), "{}", verified.all());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_receipt_that_nobody_signed_erases_nobody() {
    let (fixture, receipts) = two_users().await;
    let signed = erase(&fixture, receipts.path(), 1).await;
    let text = std::fs::read_to_string(&signed).expect("a receipt");
    let tombstone = receipt(&signed)["body"]["tombstone"].as_str().expect("a tombstone").to_owned();
    let forged = text.replace(&tombstone, &"ab".repeat(32));
    std::fs::write(receipts.path().join(format!("{}.json", Uuid::now_v7())), forged).expect("a file");
    let ended = privacy(&fixture, &["reapply", "--yes"]).await;
    assert_eq!(ended.code, Some(1), "{}", ended.all());
    assert!(!rows_of(&fixture, PERSON).await.is_empty());
}
