//! The parts of an export, and who gets none: what is damaged, missing or of another key is named, and nothing is left half done.

use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use serde_json::Value;
use testkit::{Fixture, eventually};

use crate::support::erasure::{erase, file, json, privacy, with_receipts};
use crate::support::exports::{Holder, export, holder, index, lines, opened, parts, path, refused};
use crate::support::program::memfleet;
use crate::support::two_users;

/// A user with four MiB of contexts.
async fn large() -> Fixture {
    let fixture = two_users().await;
    fixture
        .execute(
            "INSERT INTO simple_chat_context (id, user_id, session_id, context_key, context_value)
             SELECT gen_random_uuid(), 1, 's', 'large-' || n, to_jsonb(repeat('x', 100000)) FROM generate_series(1, 40) AS n",
        )
        .await;
    fixture
}

/// The names of the files of a folder, the hidden ones too.
fn names(folder: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(folder).expect("a folder");
    let mut names: Vec<String> =
        entries.map(|entry| entry.expect("an entry").file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    names
}

/// Tries to open parts for a key, which must fail and write nothing. Gives what is said.
async fn not_opened(fixture: &Fixture, files: &[PathBuf], with: &[&str], into: &Path) -> String {
    let files: Vec<&str> = files.iter().map(|file| path(file)).collect();
    let said = refused(fixture, &[&["open", "--out", path(into)], with, files.as_slice()].concat()).await;
    assert!(!into.exists(), "{said}");
    let beside = names(into.parent().expect("a folder"));
    assert!(beside.iter().all(|name| !name.starts_with(".into")), "{beside:?}");
    said
}

#[tokio::test(flavor = "multi_thread")]
async fn a_large_export_has_parts_that_are_opened_together_and_only_so() {
    let fixture = large().await;
    let folder = tempfile::tempdir().expect("a folder");
    let (out, into) = (folder.path().join("out"), folder.path().join("into"));
    let holder = holder(&fixture, "person.key");
    let exported = export(&fixture, 1, &out, &holder, &["--part-size", "1"]).await;
    let mut files = parts(&out, &exported);
    assert!(files.len() >= 4, "{exported}");
    assert_eq!(names(&out).len(), files.len(), "nothing else is there");
    for file in &files {
        assert!(std::fs::metadata(file).expect("a part").len() <= 1024 * 1024, "{}", file.display());
    }
    let with = ["--identity", holder.identity.as_str()];

    let last = files.len() - 1;
    let said = not_opened(&fixture, &files[..last], &with, &into).await;
    assert!(said.contains("the last part is missing"), "{said}");
    let said = not_opened(&fixture, &files[1..], &with, &into).await;
    assert!(said.contains("these are missing: 1"), "{said}");
    let twice = [files.clone(), vec![files[0].clone()]].concat();
    assert!(not_opened(&fixture, &twice, &with, &into).await.contains("are both part 1"));
    let other = parts(&out, &export(&fixture, 2, &out, &holder, &[]).await);
    let mixed = [files.clone(), other].concat();
    assert!(not_opened(&fixture, &mixed, &with, &into).await.contains("a part of another export"));

    // In any order.
    files.reverse();
    opened(&fixture, &files, &holder, &into).await;
    let contexts = lines(&into, "postgresql/public.simple_chat_context.jsonl");
    let large =
        contexts.iter().filter(|row| row["context_value"].as_str().is_some_and(|text| text.len() == 100_000));
    assert_eq!(large.count(), 40);
    let again = [&["open", "--out", path(&into)], with.as_slice(), &[path(&files[0])]].concat();
    assert!(refused(&fixture, &again).await.contains("is not empty"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_part_is_named_wherever_it_is_damaged() {
    let fixture = large().await;
    let folder = tempfile::tempdir().expect("a folder");
    let (out, into) = (folder.path().join("out"), folder.path().join("into"));
    let holder = holder(&fixture, "person.key");
    let exported = export(&fixture, 1, &out, &holder, &["--part-size", "1"]).await;
    let files = parts(&out, &exported);
    let with = ["--identity", holder.identity.as_str()];
    let whole = std::fs::read(&files[1]).expect("a part");
    for at in [0, 30, 150, 300, whole.len() / 2, whole.len() - 1] {
        let mut damaged = whole.clone();
        damaged[at] ^= 1;
        std::fs::write(&files[1], &damaged).expect("a file");
        let said = not_opened(&fixture, &files, &with, &into).await;
        assert!(said.contains(path(&files[1])), "byte {at}: {said}");
    }
    for length in [0, 100, whole.len() / 2, whole.len() - 1] {
        std::fs::write(&files[1], &whole[..length]).expect("a file");
        let said = not_opened(&fixture, &files, &with, &into).await;
        assert!(said.contains(path(&files[1])), "{length} bytes: {said}");
    }
    std::fs::write(&files[1], &whole).expect("a file");
    opened(&fixture, &files, &holder, &into).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn only_whom_it_is_for_opens_it() {
    let fixture = two_users().await;
    let folder = tempfile::tempdir().expect("a folder");
    let (out, into) = (folder.path().join("out"), folder.path().join("into"));
    let (own, other) = (holder(&fixture, "person.key"), holder(&fixture, "other.key"));
    let passphrase = fixture.key_file("passphrase", "correct horse battery staple\n");
    let wrong = fixture.key_file("wrong", "incorrect horse battery staple\n");
    let short = fixture.key_file("short", "horse\n");
    let for_key = parts(&out, &export(&fixture, 1, &out, &own, &[]).await);
    let said = not_opened(&fixture, &for_key, &["--identity", &other.identity], &into).await;
    assert!(said.contains("for another key") && said.contains(path(&for_key[0])), "{said}");
    let said = not_opened(&fixture, &for_key, &["--passphrase-file", &passphrase], &into).await;
    assert!(said.contains("--identity"), "{said}");
    let said = not_opened(&fixture, &for_key, &["--identity", &passphrase], &into).await;
    assert!(said.contains("no private key") && !said.contains("horse"), "{said}");

    let access = ["access", "1", "--out", path(&out), "--passphrase-file"];
    assert!(
        refused(&fixture, &[access.as_slice(), &[&short]].concat()).await.contains("12 to 1024 characters")
    );
    let printed = privacy(&fixture, &[access.as_slice(), &[&passphrase, "--json"]].concat()).await;
    assert!(printed.is_success(), "{}", printed.all());
    let exported: Value = serde_json::from_str(printed.out.trim()).expect("JSON");
    let for_phrase = parts(&out, &exported);
    let said = not_opened(&fixture, &for_phrase, &["--passphrase-file", &wrong], &into).await;
    assert!(said.contains("the passphrase is not the one"), "{said}");
    let open = ["open", "--out", path(&into), "--passphrase-file", &passphrase, path(&for_phrase[0])];
    let ended = privacy(&fixture, &open).await;
    assert!(ended.is_success(), "{}", ended.all());
    assert_eq!(index(&into)["user"], 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_no_public_key_is_refused_before_anything_is_read() {
    let fixture = Fixture::new().await;
    let own = holder(&fixture, "person.key");
    let private = std::fs::read_to_string(&own.identity).expect("a key");
    let private = private.lines().last().expect("a key");
    for (key, says) in [("age1", "not a public key"), (private, "this is a private key")] {
        let said = refused(&fixture, &["access", "1", "--out", "/nowhere/out", "--recipient", key]).await;
        assert!(said.contains(says) && !said.contains(private), "{said}");
    }
    let neither = privacy(&fixture, &["access", "1", "--out", "/nowhere/out"]).await;
    assert_eq!(neither.code, Some(2), "{}", neither.all());
    assert_eq!(fixture.count("privacy_requests").await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_is_exported_who_is_unknown_erased_or_being_erased() {
    let mut fixture = two_users().await;
    let receipts = with_receipts(&mut fixture);
    let folder = tempfile::tempdir().expect("a folder");
    let out = folder.path().join("out");
    let own = holder(&fixture, "person.key");
    let access = |user: &'static str| ["access", user, "--out", path(&out), "--recipient", &own.public];
    assert!(refused(&fixture, &access("77")).await.contains("there is no user 77"));
    assert!(refused(&fixture, &access("0")).await.contains("user 0 is the platform"));
    assert_eq!(fixture.count("privacy_requests").await, 0);
    assert!(!out.exists(), "nothing was begun");

    // One that is filed has not begun: the person may still ask for an export.
    let id = file(&fixture, 2).await;
    export(&fixture, 2, &out, &own, &[]).await;
    fixture.execute(&format!("INSERT INTO sec.fenced_users (user_id, request_id) VALUES (2, '{id}')")).await;
    let said = refused(&fixture, &access("2")).await;
    assert!(said.contains(&id) && said.contains("has begun"), "{said}");

    erase(&fixture, receipts.path(), 1).await;
    let said = refused(&fixture, &access("1")).await;
    assert!(said.contains("user 1 was erased"), "{said}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_export_is_a_new_one() {
    let fixture = two_users().await;
    let folder = tempfile::tempdir().expect("a folder");
    let out = folder.path().join("out");
    let own = holder(&fixture, "person.key");
    let first = parts(&out, &export(&fixture, 1, &out, &own, &[]).await);
    let before = std::fs::read(&first[0]).expect("a part");
    let second = parts(&out, &export(&fixture, 1, &out, &own, &[]).await);
    assert_ne!(first, second);
    assert_eq!(std::fs::read(&first[0]).expect("a part"), before);
    let into = folder.path().join("into");
    opened(&fixture, &second, &own, &into).await;
    let requests = lines(&into, "postgresql/public.privacy_requests.jsonl");
    assert_eq!(requests.len(), 2, "the first one and itself: {requests:?}");
    // A folder that is none.
    let said =
        refused(&fixture, &["access", "1", "--out", path(&first[0]), "--recipient", &own.public]).await;
    assert!(said.contains("it is no folder"), "{said}");
    let failed = "id FROM privacy_requests WHERE request_status = 'failed'";
    let failed = fixture.lines(failed).await;
    assert_eq!(failed.len(), 1);
    let shown = json(&fixture, &["show", &failed[0]]).await;
    assert!(
        shown["request"]["last_error"].as_str().is_some_and(|text| text.contains("no folder")),
        "{shown}"
    );
    let listed = json(&fixture, &["list"]).await["requests"].take();
    let types: Vec<_> =
        listed.as_array().expect("requests").iter().map(|one| one["request_type"].clone()).collect();
    assert_eq!(types, ["access"; 3]);
}

/// Runs an export until it kills itself at a point. The server may need a moment to give back the lock of one that was killed before.
async fn killed_at(fixture: &Fixture, out: &Path, own: &Holder, point: &str) {
    let arguments = ["privacy", "access", "1", "--out", path(out), "--recipient", &own.public];
    eventually("it is killed", async || {
        let mut command = memfleet(fixture, &arguments);
        command.env("MEMFLEET_CRASH_AT", format!("access.{point}:1")).stdout(Stdio::null());
        let mut process = command.stderr(testkit::logs::stderr_for("privacy")).spawn().expect("the process");
        let ended = process.wait().await.expect("its end");
        assert!(!ended.success(), "{point}: it came to its end");
        (ended.signal() == Some(9)).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_export_that_is_killed_leaves_no_part_with_a_name_and_the_next_one_cleans_up() {
    let fixture = two_users().await;
    let folder = tempfile::tempdir().expect("a folder");
    let out = folder.path().join("out");
    let own = holder(&fixture, "person.key");
    let open = "privacy_requests WHERE request_type = 'access' AND request_status = 'in_progress'";
    for point in ["tables", "written"] {
        killed_at(&fixture, &out, &own, point).await;
        assert!(names(&out).iter().all(|name| name.ends_with(".incomplete")), "{point}: {:?}", names(&out));
        assert_eq!(fixture.count(open).await, 1, "{point}");
    }
    assert_eq!(names(&out).len(), 1, "the part that was written: {:?}", names(&out));
    let printed = eventually("its lock is free", async || {
        let arguments = ["access", "1", "--out", path(&out), "--recipient", &own.public, "--json"];
        let ended = privacy(&fixture, &arguments).await;
        assert!(ended.is_success() || ended.err.contains("another export"), "{}", ended.all());
        ended.is_success().then_some(ended.out)
    })
    .await;
    let exported: Value = serde_json::from_str(printed.trim()).expect("JSON");
    assert_eq!(names(&out).len(), parts(&out, &exported).len(), "{:?}", names(&out));
    opened(&fixture, &parts(&out, &exported), &own, &folder.path().join("into")).await;
    assert_eq!(fixture.count(open).await, 0);
    let rejected = "privacy_requests WHERE request_status = 'rejected' AND last_error LIKE 'interrupted%'";
    assert_eq!(fixture.count(rejected).await, 2);
}
