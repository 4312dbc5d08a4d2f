//! Archives of an erased person: whoever else is erased at the same time, whatever no row of the database names, and wherever it is killed,
//! no file has the person's rows afterwards, and others have theirs once.

use std::path::{Path, PathBuf};

use ::archive::{Keys, Target};
use diesel_async::SimpleAsyncConnection as _;
use testkit::{Fixture, eventually};

use crate::support::archives::{TABLES, archive, files, succeeds, with_target};
use crate::support::erasure::{erase, file, json, privacy, privacy_with, receipt, with_receipts};
use crate::support::program::{Ended, memfleet, output};
use crate::support::retention::{cleaner, sweep_all, without_schedule};

const PERSON: i32 = 77_003;
const SECOND: i32 = 5_003;
const OTHER: i32 = 9;
/// The advisory lock of the step: "memerase".
const LOCK: i64 = 0x6d65_6d65_7261_7365;

/// What every archived row of a user has, and of nobody else.
fn canary(user: i32) -> String {
    format!("canary-of-{user}-")
}

/// Three users with an ended session and a context in it, which are in archives together.
struct Filled {
    fixture: Fixture,
    receipts: tempfile::TempDir,
    archives: tempfile::TempDir,
}

async fn filled() -> Filled {
    let mut fixture = Fixture::new().await;
    let receipts = with_receipts(&mut fixture);
    let archives = with_target(&mut fixture);
    without_schedule(&fixture).await;
    let users = format!("ARRAY[{PERSON}, {SECOND}, {OTHER}]");
    fixture
        .execute(&format!(
            "INSERT INTO users (id, username, email) SELECT n, 'u', 'e' FROM unnest({users}) AS n;
             INSERT INTO chat_mode_sessions (id, user_id, session_id, chat_mode, is_active, ended_at)
                 SELECT gen_random_uuid(), n, 'canary-of-' || n || '-session', 'simple', false, now() - interval '400 days' FROM unnest({users}) AS n;
             INSERT INTO simple_chat_context (id, user_id, session_id, context_key, context_value)
                 SELECT gen_random_uuid(), n, 'canary-of-' || n || '-session', 'old', to_jsonb('canary-of-' || n || '-old') FROM unnest({users}) AS n"
        ))
        .await;
    archive(&fixture, &TABLES).await;
    let worker = fixture.run(cleaner(&fixture));
    sweep_all(&fixture).await;
    worker.stop().await.expect("a clean end");
    for table in ["chat_mode_sessions", "simple_chat_context"] {
        let shared = format!("archives WHERE table_name = '{table}' AND user_ids @> {users}");
        assert_eq!(fixture.count(&shared).await, 1, "{table}");
    }
    Filled { fixture, receipts, archives }
}

/// A complete archive at the target, whether or not the database names it.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Held {
    location: String,
    users: Vec<i32>,
    rows: Vec<String>,
}

/// All archives at the target. There are no files but theirs.
async fn held(fixture: &Fixture) -> Vec<Held> {
    let target = Target::open(&fixture.settings.archive).expect("the target");
    let keys = Keys::public(&fixture.settings.archive).expect("the keys");
    let listing = target.list().await.expect("files");
    let complete = listing.complete();
    for file in &listing.files {
        let is_complete = complete.iter().any(|(location, _)| file.path.starts_with(location.as_str()));
        assert!(is_complete, "{} is of no complete archive", file.path);
    }
    let mut held = Vec::new();
    for (location, _) in complete {
        let contents = ::archive::read(&target, &keys, &location, None).await.expect("an archive");
        let rows = contents.tables.iter().flat_map(|rows| {
            let line = move |row| format!("{} {}", rows.table, serde_json::Value::Object(rows.to_json(row)));
            (0..rows.len()).map(line)
        });
        held.push(Held { location, users: contents.manifest.users, rows: rows.collect() });
    }
    held
}

/// The rows of a user in all archives, as often as they are there.
fn rows_of(held: &[Held], user: i32) -> Vec<String> {
    let canary = canary(user);
    let mut rows: Vec<String> =
        held.iter().flat_map(|one| one.rows.clone()).filter(|row| row.contains(&canary)).collect();
    rows.sort();
    rows
}

/// No file has anything of the user.
async fn assert_gone(fixture: &Fixture, user: i32) {
    let held = held(fixture).await;
    assert_eq!(rows_of(&held, user), Vec::<String>::new());
    assert!(held.iter().all(|one| !one.users.contains(&user)), "{held:?}");
    assert_eq!(fixture.count(&format!("archives WHERE {user} = ANY (user_ids)")).await, 0);
}

/// Has the next run begin at once, as if a process that was killed had never had a request.
async fn due(fixture: &Fixture) {
    fixture.execute("UPDATE privacy_requests SET retry_at = NULL, claimed_until = NULL").await;
}

async fn run(fixture: &Fixture) -> Ended {
    due(fixture).await;
    let ended = privacy(fixture, &["run"]).await;
    assert!(!ended.err.contains("panicked"), "{}", ended.err);
    ended
}

/// Two processes at once, until these erasures are complete.
async fn finish(fixture: &Fixture, ids: &[&str]) {
    eventually("the erasures are complete", async || {
        due(fixture).await;
        let (one, two) = tokio::join!(privacy(fixture, &["run"]), privacy(fixture, &["run"]));
        for ended in [one, two] {
            assert!(!ended.err.contains("panicked"), "{}", ended.err);
        }
        for id in ids {
            if !json(fixture, &["show", id]).await["erased"]["receipt"].is_object() {
                return None;
            }
        }
        Some(())
    })
    .await;
}

async fn verifies(fixture: &Fixture, receipts: &Path, id: &str) {
    let receipt = receipts.join(format!("{id}.json"));
    let ended = privacy(fixture, &["verify", receipt.to_str().expect("a path")]).await;
    assert!(ended.is_success(), "{}", ended.all());
}

#[tokio::test(flavor = "multi_thread")]
async fn of_two_persons_who_are_erased_at_once_neither_is_left_and_a_third_is_there_once() {
    let Filled { fixture, receipts, archives: _archives } = filled().await;
    let before = held(&fixture).await;
    let of_other = rows_of(&before, OTHER);
    assert_eq!(of_other.len(), 2, "a session and a context: {before:?}");
    for person in [PERSON, SECOND] {
        assert_eq!(rows_of(&before, person).len(), 2, "the test can fail: {before:?}");
    }
    let ids = [file(&fixture, PERSON).await, file(&fixture, SECOND).await];
    finish(&fixture, &[&ids[0], &ids[1]]).await;
    for (person, id) in [PERSON, SECOND].into_iter().zip(&ids) {
        assert_gone(&fixture, person).await;
        verifies(&fixture, receipts.path(), id).await;
    }
    assert_eq!(rows_of(&held(&fixture).await, OTHER), of_other);
    assert_eq!(succeeds(&fixture, &["list", "--orphans"]).await, "no files without an archive\n");
    succeeds(&fixture, &["verify"]).await;
}

/// The database names none of the archives, as if the run that wrote them had been killed before its transaction. The erasure is killed, too.
#[tokio::test(flavor = "multi_thread")]
async fn archives_that_no_row_names_are_written_anew_wherever_it_is_killed() {
    let Filled { fixture, receipts, archives: _archives } = filled().await;
    let before = held(&fixture).await;
    assert_eq!(before.iter().filter(|one| one.users.contains(&PERSON)).count(), 2, "{before:?}");
    fixture.execute("DELETE FROM archives").await;
    let id = file(&fixture, PERSON).await;
    // The first one is written, and not the second; then the second; then all is done.
    for point in ["erase.archives.between:1", "erase.archives.between:2", "erase.archives.done:1"] {
        eventually("it is killed", async || {
            due(&fixture).await;
            let ended = privacy_with(&fixture, &["run"], &[("MEMFLEET_CRASH_AT", point)]).await;
            assert!(!ended.err.contains("panicked"), "{}", ended.err);
            ended.code.is_none().then_some(())
        })
        .await;
    }
    finish(&fixture, &[&id]).await;
    assert_gone(&fixture, PERSON).await;
    let after = held(&fixture).await;
    for other in [SECOND, OTHER] {
        assert_eq!(rows_of(&after, other), rows_of(&before, other), "of {other}");
    }
    assert_eq!(fixture.count("archives").await, 0, "nobody says that their rows are not in the database");
    let receipt = receipt(&receipts.path().join(format!("{id}.json")));
    let lines = receipt["body"]["stores"].as_array().expect("stores").iter();
    let counted: Vec<_> =
        lines.filter(|line| line["store"] == "archives").map(|line| line["before"].clone()).collect();
    assert_eq!(counted, [2, 2], "each once: {receipt}");
    verifies(&fixture, receipts.path(), &id).await;
}

/// Somebody else has the lock, and then takes the rows of the archives away while they are written anew.
#[tokio::test(flavor = "multi_thread")]
async fn what_was_written_for_a_row_that_is_gone_is_not_named_and_does_not_stay() {
    let Filled { fixture, receipts, archives: _archives } = filled().await;
    let before = held(&fixture).await;
    let mut another = fixture.connection().await;
    another.batch_execute(&format!("SELECT pg_advisory_lock({LOCK})")).await.expect("the lock");
    let id = file(&fixture, PERSON).await;
    let last_error = async || {
        let shown = json(&fixture, &["show", &id]).await;
        shown["request"]["last_error"].as_str().unwrap_or_default().to_owned()
    };
    eventually("it waits for the other one", async || {
        run(&fixture).await;
        last_error().await.contains("another erasure is writing archives anew").then_some(())
    })
    .await;
    assert_eq!(held(&fixture).await, before);

    let delete = format!("SELECT pg_advisory_unlock({LOCK}); BEGIN; DELETE FROM archives");
    another.batch_execute(&delete).await.expect("a transaction");
    let waits = "pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'
        AND query LIKE 'DELETE FROM public.archives WHERE id%'";
    let commit = async {
        eventually("it waits for the row", async || (fixture.count(waits).await == 1).then_some(())).await;
        another.batch_execute("COMMIT").await.expect("no rows");
    };
    let (ended, ()) = tokio::join!(run(&fixture), commit);
    assert_eq!(ended.code, Some(1), "{}", ended.all());
    let error = last_error().await;
    assert!(error.contains("was changed or deleted while the archive was written anew"), "{error}");
    assert_eq!(held(&fixture).await, before, "the old files are there, and no new ones");
    assert_eq!(fixture.count("archives").await, 0);

    finish(&fixture, &[&id]).await;
    assert_gone(&fixture, PERSON).await;
    let after = held(&fixture).await;
    for other in [SECOND, OTHER] {
        assert_eq!(rows_of(&after, other), rows_of(&before, other), "of {other}");
    }
    verifies(&fixture, receipts.path(), &id).await;
}

/// The role of retention-cleaner names one that was never written, or somebody has deleted its files.
#[tokio::test(flavor = "multi_thread")]
async fn an_archive_that_is_missing_keeps_no_other_and_is_forgotten_by_an_operator_alone() {
    let Filled { fixture, receipts, archives: _archives } = filled().await;
    let missing = "0193c0de-0000-7000-8000-00000000000c";
    fixture
        .execute(&format!(
            "INSERT INTO archives (id, table_name, location, manifest_hash, policies, run_id, row_count, byte_count, first_at, last_at, user_ids,
                 not_removed, created_at)
             SELECT '{missing}', table_name, table_name || '/2020-01/{missing}', sha256('x'), policies, run_id, 1, 1, first_at, last_at,
                 ARRAY[{PERSON}], '{{}}', created_at - interval '1 day' FROM archives LIMIT 1"
        ))
        .await;
    let id = file(&fixture, PERSON).await;
    let error = eventually("it stops at the archive", async || {
        run(&fixture).await;
        let request = json(&fixture, &["show", &id]).await["request"].take();
        let error = request["last_error"].as_str().unwrap_or_default().to_owned();
        (request["step"] == "archives" && error.contains(missing)).then_some(error)
    })
    .await;
    assert!(error.contains(&format!("memfleet archive forget {missing}")), "{error}");
    assert_eq!(rows_of(&held(&fixture).await, PERSON), Vec::<String>::new(), "the others are written anew");
    let present = fixture.lines(&format!("id FROM archives WHERE id <> '{missing}' ORDER BY id")).await;
    for (arguments, said) in [
        (vec!["forget", &present[0]], "is at the target as it was written"),
        (vec!["forget", "0193c0de-0000-7000-8000-00000000000d"], "the database has no archive"),
        (vec!["forget"], "required"),
    ] {
        let refused = crate::support::archives::run(&fixture, &arguments).await;
        assert!(!refused.is_success() && refused.all().contains(said), "{arguments:?}: {}", refused.all());
    }
    // Of another folder, all are missing.
    let elsewhere = tempfile::tempdir().expect("a folder");
    let mut other = memfleet(&fixture, &["archive", "forget", "--missing"]);
    other.env("MEMFLEET_ARCHIVE__URL", format!("file://{}", elsewhere.path().display()));
    let refused: Ended = output(other).await.into();
    assert!(!refused.is_success() && refused.err.contains("every archive"), "{}", refused.all());
    succeeds(&fixture, &["forget", "--missing", "--dry-run"]).await;
    assert_eq!(fixture.count(&format!("archives WHERE id = '{missing}'")).await, 1);
    let forgot = succeeds(&fixture, &["forget", "--missing"]).await;
    assert!(forgot.contains(missing), "{forgot}");
    assert_eq!(fixture.lines("id FROM archives ORDER BY id").await, present);
    finish(&fixture, &[&id]).await;
    verifies(&fixture, receipts.path(), &id).await;
}

/// As of a role that writes there. This one cannot be read by anybody: its path is longer than any path may be.
#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_read_and_is_not_named_stops_neither_an_erasure_nor_a_verification() {
    let Filled { mut fixture, receipts, archives } = filled().await;
    let mut deep = archives.path().to_owned();
    let longest = 4_050;
    while deep.as_os_str().len() < longest {
        deep.push("d".repeat((longest - deep.as_os_str().len()).saturating_sub(1).clamp(1, 200)));
    }
    std::fs::create_dir_all(deep.join("chat_mode_sessions/2020-01")).expect("a folder");
    let folder = "0193c0de-0000-7000-8000-00000000000e";
    let made = std::process::Command::new("mkdir")
        .arg(folder)
        .current_dir(deep.join("chat_mode_sessions/2020-01"))
        .status();
    assert!(made.expect("a process").success());
    fixture.execute("DELETE FROM archives").await;
    fixture.settings.archive.url = Some(format!("file://{}", deep.display()));
    let id = file(&fixture, PERSON).await;
    finish(&fixture, &[&id]).await;
    let signed = receipts.path().join(format!("{id}.json"));
    let remains = receipt(&signed)["body"]["remains"].to_string();
    assert!(remains.contains("1 places at the archive target"), "{remains}");
    let verified = privacy(&fixture, &["verify", signed.to_str().expect("a path")]).await;
    assert!(verified.is_success(), "{}", verified.all());
    assert!(verified.err.contains("nobody can tell whose rows are there"), "{}", verified.all());
    assert!(verified.out.contains("was not counted"), "{}", verified.all());
}

/// Old files come back, such as from a backup of the folder. No row of the database names them.
#[tokio::test(flavor = "multi_thread")]
async fn archives_that_come_back_are_found_by_a_verification() {
    let Filled { fixture, receipts, archives } = filled().await;
    let backup: Vec<(PathBuf, Vec<u8>)> = files(archives.path())
        .into_iter()
        .map(|file| (file.clone(), std::fs::read(&file).expect("its content")))
        .collect();
    let receipt = erase(&fixture, receipts.path(), PERSON).await;
    let receipt = receipt.to_str().expect("a path");
    let person = PERSON.to_string();
    let verify = ["verify", receipt, "--user", &person];
    let ended = privacy(&fixture, &verify).await;
    assert!(ended.is_success(), "{}", ended.all());
    for (file, content) in backup {
        std::fs::create_dir_all(file.parent().expect("a folder")).expect("its folder");
        std::fs::write(file, content).expect("a file");
    }
    let ended = privacy(&fixture, &verify).await;
    assert_eq!(ended.code, Some(1), "{}", ended.all());
    assert!(ended.err.contains(" has 2 of the person again"), "{}", ended.all());
}
