//! `memfleet privacy`: what it prints, how it exits, and what it finds wrong with a receipt.

use std::os::unix::fs::PermissionsExt as _;
use std::process::Stdio;

use context_writer::ContextWriter;
use diesel_async::SimpleAsyncConnection as _;
use testkit::{Fixture, eventually, requests_for_all_tables, user};

use crate::support::erasure::{erase, file, json, privacy, receipt, rows_of, with_receipts};
use crate::support::program::{memfleet, signal};

/// Two users with a row in every table of context-writer, and a place for receipts.
async fn two_users() -> (Fixture, tempfile::TempDir) {
    let mut fixture = Fixture::new().await;
    let receipts = with_receipts(&mut fixture);
    fixture.process(ContextWriter, [1, 2].into_iter().flat_map(requests_for_all_tables)).await;
    (fixture, receipts)
}

/// Runs a command that must fail, and gives what it said.
async fn refused(fixture: &Fixture, arguments: &[&str]) -> String {
    let ended = privacy(fixture, arguments).await;
    assert_eq!(ended.code, Some(1), "{arguments:?}: {}", ended.all());
    assert!(!ended.err.contains("panicked"), "{}", ended.err);
    ended.err
}

#[tokio::test(flavor = "multi_thread")]
async fn an_erasure_is_filed_shown_cancelled_and_carried_out() {
    let (fixture, receipts) = two_users().await;
    let reason = ["--reason", "a letter"];
    let of = |user: &'static str, more: &[&'static str]| [&["erase", user], reason.as_slice(), more].concat();
    assert!(refused(&fixture, &of("1", &[])).await.contains("add --yes to confirm"));
    assert!(refused(&fixture, &of("77", &["--yes"])).await.contains("no user 77"));
    let nobody = privacy(&fixture, &of("0", &["--yes"])).await;
    assert!(!nobody.is_success(), "user 0 is the platform: {}", nobody.all());
    let without = privacy(&fixture, &["erase", "1", "--yes"]).await;
    assert_eq!(without.code, Some(2), "a reason is required: {}", without.all());

    let filed = json(&fixture, &of("1", &["--yes"])).await;
    assert_eq!(filed["status"], "pending");
    let id = filed["request"].as_str().expect("an id").to_owned();
    assert!(refused(&fixture, &of("1", &["--yes"])).await.contains(&id), "it names the one under way");
    let listed = json(&fixture, &["list", "--open"]).await;
    assert_eq!(listed["requests"][0]["id"], id.as_str());
    assert_eq!(json(&fixture, &["list", "--overdue"]).await["requests"], serde_json::json!([]));
    assert_eq!(json(&fixture, &["list", "--user", "2"]).await["requests"], serde_json::json!([]));
    let shown = json(&fixture, &["show", &id]).await;
    assert_eq!((&shown["request"]["user_id"], &shown["request"]["reason"]), (&1.into(), &"a letter".into()));
    let text = privacy(&fixture, &["show", &id]).await.out;
    assert!(text.contains("a letter") && text.contains("not begun"), "{text}");

    let before = rows_of(&fixture, 1).await;
    let cancelled = privacy(&fixture, &["cancel", &id, "--reason", "withdrawn"]).await;
    assert!(cancelled.is_success(), "{}", cancelled.all());
    refused(&fixture, &["cancel", &id, "--reason", "again"]).await;
    // As if it had been killed before it lifted the fence of the key store.
    let mut key_store = store::connect(&fixture.settings.keys.url).await.expect("the key store");
    let fence = format!("INSERT INTO sec.fenced_users (user_id, request_id) VALUES (1, '{id}')");
    key_store.batch_execute(&fence).await.expect("a fence");
    let repeated = privacy(&fixture, &["cancel", &id, "--reason", "again"]).await;
    assert!(repeated.is_success(), "{}", repeated.all());
    assert_eq!(
        testkit::lines_on(&mut key_store, "user_id FROM sec.fenced_users").await,
        Vec::<String>::new()
    );
    assert_eq!(json(&fixture, &["list", "--open"]).await["requests"], serde_json::json!([]));
    assert_eq!(json(&fixture, &["show", &id]).await["request"]["status"], "rejected");
    let ran = privacy(&fixture, &["run"]).await;
    assert!(ran.is_success(), "{}", ran.all());
    assert_eq!(rows_of(&fixture, 1).await, before, "nothing was erased");

    let signed = erase(&fixture, receipts.path(), 1).await;
    assert!(rows_of(&fixture, 1).await.is_empty(), "{:?}", rows_of(&fixture, 1).await);
    assert!(refused(&fixture, &of("1", &["--yes"])).await.contains("erased"), "once is enough");
    let erasure = signed.file_stem().and_then(|name| name.to_str()).expect("a name").to_owned();
    let shown = json(&fixture, &["show", &erasure]).await;
    assert_eq!(shown["erased"]["receipt"], receipt(&signed));
    refused(&fixture, &["cancel", &erasure, "--reason", "too late"]).await;
    assert!(
        refused(&fixture, &["show", "0193c0de-0000-7000-8000-000000000001"]).await.contains("no request")
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_legal_hold_stops_it_before_the_fence_and_its_release_lets_it_go_on() {
    let (fixture, _receipts) = two_users().await;
    for (id, holder) in
        [("0193c0de-0000-7000-8000-00000000000a", 1), ("0193c0de-0000-7000-8000-00000000000b", 0)]
    {
        fixture
            .execute(&format!(
                "INSERT INTO retention_holds (id, user_id, reason)
                 VALUES ('{id}', {holder}, 'court order')"
            ))
            .await;
    }
    let said = refused(&fixture, &["erase", "1", "--reason", "a letter", "--yes", "--wait"]).await;
    assert!(said.contains("court order"), "{said}");
    let ran = privacy(&fixture, &["run"]).await;
    assert!(ran.is_success(), "to be held is no failure: {}", ran.all());
    let listed = json(&fixture, &["list", "--open"]).await;
    let id = listed["requests"][0]["id"].as_str().expect("an id").to_owned();
    assert_eq!(listed["requests"][0]["status"], "held");
    assert_eq!(fixture.count("sec.fenced_users").await, 0, "the person goes on meanwhile");
    fixture.process(ContextWriter, [user(1)]).await;
    assert_eq!(fixture.dead_letters().await, Vec::<String>::new());
    fixture.execute("UPDATE retention_holds SET released_at = now() WHERE user_id = 1").await;
    privacy(&fixture, &["run"]).await;
    assert_eq!(json(&fixture, &["show", &id]).await["request"]["status"], "held", "by that of user 0");
    fixture.execute("UPDATE retention_holds SET released_at = now()").await;
    eventually("it is complete", async || {
        privacy(&fixture, &["run"]).await;
        json(&fixture, &["show", &id]).await["erased"]["receipt"].is_object().then_some(())
    })
    .await;
    assert!(rows_of(&fixture, 1).await.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn the_process_does_what_is_filed_and_stops_when_it_is_told_to() {
    let (fixture, _receipts) = two_users().await;
    let mut process = memfleet(&fixture, &["privacy", "run", "--follow"]);
    process.env("MEMFLEET_PRIVACY__EVERY_S", "1").stdout(Stdio::null());
    let mut process = process.stderr(testkit::logs::stderr_for("privacy")).spawn().expect("the process");
    let ids = [file(&fixture, 1).await, file(&fixture, 2).await];
    for id in &ids {
        eventually("it is complete", async || {
            json(&fixture, &["show", id]).await["erased"]["receipt"].is_object().then_some(())
        })
        .await;
    }
    signal("TERM", process.id().expect("its id"));
    assert!(process.wait().await.expect("its end").success());
    assert_eq!(fixture.count("users WHERE id > 0").await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_receipt_verifies_and_one_that_was_altered_anywhere_does_not() {
    let (fixture, receipts) = two_users().await;
    let signed = erase(&fixture, receipts.path(), 1).await;
    let path = signed.to_str().expect("a path");
    for arguments in
        [vec!["verify", path], vec!["verify", path, "--offline"], vec!["verify", path, "--user", "1"]]
    {
        let ended = privacy(&fixture, &arguments).await;
        assert!(ended.is_success(), "{arguments:?}: {}", ended.all());
    }
    let verified = json(&fixture, &["verify", path]).await;
    assert_eq!(verified["findings"], serde_json::json!([]), "{verified}");
    let said = refused(&fixture, &["verify", path, "--user", "2"]).await;
    assert!(said.contains("2"), "it is the receipt of another user: {said}");

    let text = std::fs::read(&signed).expect("the receipt");
    let altered = receipts.path().join("altered");
    let step = (text.len() / 60).max(1);
    for at in (0..text.len()).step_by(step).filter(|at| text[*at].is_ascii_alphanumeric()) {
        let mut other = text.clone();
        other[at] = if other[at] == b'1' { b'2' } else { b'1' };
        std::fs::write(&altered, &other).expect("a file");
        let ended = privacy(&fixture, &["verify", altered.to_str().expect("a path"), "--offline"]).await;
        assert_eq!(ended.code, Some(1), "byte {at} of {}: {}", String::from_utf8_lossy(&text), ended.all());
        assert!(!ended.err.contains("panicked"), "byte {at}: {}", ended.err);
    }
    std::fs::write(&altered, &text[..text.len() / 2]).expect("a file");
    refused(&fixture, &["verify", altered.to_str().expect("a path"), "--offline"]).await;
    let missing = refused(&fixture, &["verify", "/nowhere/receipt.json", "--offline"]).await;
    assert!(missing.contains("/nowhere/receipt.json"), "{missing}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_recount_finds_what_came_back() {
    let (fixture, receipts) = two_users().await;
    let signed = erase(&fixture, receipts.path(), 1).await;
    let path = signed.to_str().expect("a path");
    for (back, away, named) in [
        (
            "INSERT INTO users (id, username, email) VALUES (1, 'u', 'e')",
            "DELETE FROM users WHERE id = 1",
            "users",
        ),
        (
            "INSERT INTO chat_mode_sessions (id, user_id, session_id, chat_mode) VALUES (gen_random_uuid(), 1, 's', 'simple')",
            "DELETE FROM chat_mode_sessions WHERE user_id = 1",
            "chat_mode_sessions",
        ),
    ] {
        // As whoever may switch triggers and foreign keys off.
        let forged = |sql: &str| format!("SET session_replication_role = replica; {sql}");
        fixture.execute(&forged(back)).await;
        let said = privacy(&fixture, &["verify", path]).await;
        assert_eq!(said.code, Some(1), "{back}: {}", said.all());
        assert!(said.all().contains(named), "{back}: {}", said.all());
        fixture.execute(&forged(away)).await;
        let ended = privacy(&fixture, &["verify", path]).await;
        assert!(ended.is_success(), "{away}: {}", ended.all());
    }
    // A message that comes late is found until the process has looked after it.
    fixture.publish([user(1)]).await;
    let said = privacy(&fixture, &["verify", path]).await;
    assert_eq!(said.code, Some(1), "{}", said.all());
    // Without the tombstone, the database knows nothing of it.
    fixture.execute("DELETE FROM sec.erased_users").await;
    let said = refused(&fixture, &["verify", path]).await;
    assert!(said.contains("tombstone"), "{said}");
}

/// As whoever may write all tables would have it, so that the person can come back and no receipt tells of it.
#[tokio::test(flavor = "multi_thread")]
async fn a_database_that_does_not_know_the_person_again_is_named() {
    let (fixture, receipts) = two_users().await;
    let signed = erase(&fixture, receipts.path(), 1).await;
    let path = signed.to_str().expect("a path");
    let mut key_store = store::connect(&fixture.settings.keys.url).await.expect("the key store");
    const EXCHANGE: &str =
        "UPDATE sec.keys SET inner_pad = set_byte(inner_pad, 0, get_byte(inner_pad, 0) # 1),
        outer_pad = set_byte(outer_pad, 0, get_byte(outer_pad, 0) # 1) WHERE purpose = 'tombstone'";
    const BUCKET: &str = "UPDATE sec.erased_users SET bucket = bucket # 1";
    const OTHER_KEY: &str = "SET session_replication_role = replica; UPDATE sec.erased_users SET key_id = CASE key_id
        WHEN 'tombstone-0' THEN (SELECT key_id FROM sec.keys WHERE purpose = 'tombstone' LIMIT 1) ELSE 'tombstone-0' END";
    for (in_key_store, there_and_back, user, named) in [
        (false, EXCHANGE, None, "was exchanged"),
        (false, OTHER_KEY, None, "under the key tombstone-0"),
        (false, BUCKET, Some("1"), "the database does not know user 1"),
        (true, EXCHANGE, None, "was exchanged"),
        (true, OTHER_KEY, None, "the key store does not have its tombstone"),
        (true, BUCKET, Some("1"), "the key store does not know user 1"),
    ] {
        let arguments =
            ["verify", path].into_iter().chain(user.into_iter().flat_map(|user| ["--user", user]));
        let arguments: Vec<&str> = arguments.collect();
        for is_changed in [true, false] {
            if in_key_store {
                key_store.batch_execute(there_and_back).await.expect("a change");
            } else {
                fixture.execute(there_and_back).await;
            }
            let said = privacy(&fixture, &arguments).await;
            assert_eq!(said.is_success(), !is_changed, "{there_and_back}: {}", said.all());
            assert_eq!(said.all().contains(named), is_changed, "{there_and_back}: {}", said.all());
            if is_changed && there_and_back == EXCHANGE && !in_key_store {
                let said = refused(&fixture, &["reapply", "--yes"]).await;
                assert!(said.contains("was exchanged"), "{said}");
            }
        }
    }
    // The key store is restored from a backup from before.
    key_store.batch_execute("DELETE FROM sec.erased_users").await.expect("no tombstone");
    let said = refused(&fixture, &["verify", path]).await;
    assert!(said.contains("it would take data keys of the person"), "{said}");
    json(&fixture, &["reapply", "--yes"]).await;
    let said = privacy(&fixture, &["verify", path, "--user", "1"]).await;
    assert!(said.is_success(), "{}", said.all());
}

#[tokio::test(flavor = "multi_thread")]
async fn the_key_of_tombstones_is_exported_once_for_its_owner_alone() {
    let (fixture, receipts) = two_users().await;
    let file = receipts.path().join("tombstone.key");
    let path = file.to_str().expect("a path");
    let exported = privacy(&fixture, &["key", "export", "--out", path]).await;
    assert!(exported.is_success(), "{}", exported.all());
    assert_eq!(std::fs::metadata(&file).expect("a file").permissions().mode() & 0o777, 0o600);
    let key = std::fs::read_to_string(&file).expect("a key");
    assert!(refused(&fixture, &["key", "export", "--out", path]).await.contains("exists"));
    assert_eq!(std::fs::read_to_string(&file).expect("a key"), key);
}

#[tokio::test(flavor = "multi_thread")]
async fn who_lacks_a_key_or_does_not_see_everything_erases_nobody() {
    let (mut fixture, _receipts) = two_users().await;
    let url = fixture.settings.postgres.url_of("w_context_writer");
    let bound = crate::support::erasure::privacy_with(
        &fixture,
        &["erase", "1", "--reason", "a letter", "--yes"],
        &[("MEMFLEET_POSTGRES__URL", &url)],
    )
    .await;
    assert_eq!(bound.code, Some(1), "{}", bound.all());
    fixture.settings.privacy.receipt_key_file = None;
    let said = refused(&fixture, &["erase", "1", "--reason", "a letter", "--yes", "--wait"]).await;
    assert!(said.contains("privacy.receipt_key_file"), "{said}");
    assert_eq!(fixture.count("sec.fenced_users").await, 0);
    assert_eq!(fixture.count("users WHERE id > 0").await, 2);
}
