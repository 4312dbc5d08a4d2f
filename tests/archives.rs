//! Archives: rows go into files and out of the database, and come back as they were; and nothing goes that is not safely in a file.

use std::time::Duration;

use context_writer::ContextWriter;
use diesel_async::SimpleAsyncConnection as _;
use serde_json::{Value, json};
use testkit::{CANARY, Fixture, request, session, set_redelivery, user};
use tokio::time::timeout;

use crate::support::archives::{TABLES, age, archive, files, ids, restore, rows, run, succeeds, with_target};
use crate::support::encryption::revealed;
use crate::support::program::start_worker;
use crate::support::retention::{cleaner, job, put, sweep_all, tick, with_old_sessions, without_schedule};
use crate::support::{skipped, ticks};

/// What old sessions have in each table that is archived, but contexts that expire before.
pub async fn old_rows(fixture: &Fixture) -> Vec<Vec<String>> {
    vec![
        rows(fixture, "chat_mode_sessions", "t.session_id = 'ended'").await,
        rows(fixture, "simple_chat_context", "t.session_id = 'ended' AND t.context_key = 'kept'").await,
        rows(fixture, "agent_context_states", "t.session_id = 'ended'").await,
        rows(fixture, "router_decision_log", "true").await,
        rows(fixture, "chat_session_summary", "true").await,
        rows(fixture, "blackboard_events", "t.created_at < now() - interval '700 days'").await,
    ]
}

/// Users with old sessions, a summary and old events.
pub async fn filled(users: std::ops::RangeInclusive<i32>) -> (Fixture, tempfile::TempDir) {
    let mut fixture = Fixture::new().await;
    let folder = with_target(&mut fixture);
    without_schedule(&fixture).await;
    with_old_sessions(&fixture, users, 400).await;
    fixture
        .execute(
            "INSERT INTO chat_session_summary (id, user_id, session_id, summary) VALUES (gen_random_uuid(), 1, 'ended', 'größe');
             INSERT INTO session_clocks (user_id, session_id) VALUES (1, 'ended');
             INSERT INTO blackboard_events (id, event_type, performative, source_agent_id, user_id, session_id, event_payload,
                 logical_timestamp, created_at)
                 SELECT uuid7_at(now() - interval '731 days' + make_interval(secs => n)), 'context.stored', 'inform', 'x', 1, 'ended',
                     '{\"a\": 2.50}', 1, now() - interval '731 days' FROM generate_series(1, 5) AS n",
        )
        .await;
    (fixture, folder)
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_are_archived_and_come_back_as_they_were() {
    let (fixture, folder) = filled(1..=3).await;
    let before = old_rows(&fixture).await;
    assert!(before.iter().all(|rows| !rows.is_empty()), "{before:?}");
    archive(&fixture, &TABLES).await;
    let worker = fixture.run(cleaner(&fixture));
    sweep_all(&fixture).await;
    worker.stop().await.expect("a clean end");
    assert_eq!(fixture.dead_letters().await, Vec::<String>::new());
    assert!(old_rows(&fixture).await.iter().all(Vec::is_empty), "{:?}", old_rows(&fixture).await);
    assert_eq!(fixture.count("job_runs WHERE failure IS NOT NULL").await, 0);
    let archived =
        "job_runs r, jsonb_array_elements(r.details -> 'lines') AS l WHERE l ->> 'effect' = 'archived'";
    assert!(fixture.count(archived).await >= 5);
    // An event tells which archive has the rows of its session.
    let named = fixture
        .lines(
            "event_payload -> 'archived' ->> 'chat_mode_sessions' FROM blackboard_events
             WHERE event_type = 'retention.swept' AND event_payload -> 'archived' ? 'chat_mode_sessions' GROUP BY 1",
        )
        .await;
    assert_eq!(named, ids(&fixture, "chat_mode_sessions").await);
    let verified = succeeds(&fixture, &["verify"]).await;
    assert!(verified.contains(" archives with ") && verified.contains(" 0 of them"), "{verified}");
    assert_eq!(succeeds(&fixture, &["list", "--orphans"]).await, "no files without an archive\n");

    // Contexts need their sessions.
    let contexts = ids(&fixture, "simple_chat_context").await;
    let early = succeeds(&fixture, &["restore", &contexts[0]]).await;
    assert!(early.contains("need a session that is not there"), "{early}");
    let restored = restore(&fixture, &TABLES).await;
    // The rows that expired are tombstones now, and come back as such.
    let expired =
        fixture.count("simple_chat_context WHERE session_id = 'ended' AND context_key = 'expired'").await;
    let summaries = before[4].len();
    assert_eq!(
        restored + summaries,
        before.iter().map(Vec::len).sum::<usize>() + usize::try_from(expired).unwrap()
    );
    assert_eq!(old_rows(&fixture).await, before);
    assert_eq!(restore(&fixture, &TABLES).await, 0, "a second time");
    assert_eq!(old_rows(&fixture).await, before);
    // Events that were published once are not published again.
    let clock =
        "session_clocks c WHERE c.user_id = 1 AND c.session_id = 'ended' AND c.published_sequence >= (
        SELECT max(e.event_sequence) FROM blackboard_events e
        WHERE e.user_id = 1 AND e.session_id = 'ended' AND e.created_at < now() - interval '700 days')";
    assert_eq!(fixture.count(clock).await, 1);
    let trail = "audit.audit_log WHERE operation = 'INSERT' AND table_name = 'archive_restores'";
    assert!(fixture.count(trail).await >= 5);
    assert!(folder.path().join("simple_chat_context").is_dir());
    let (fine, validation) = crate::validation::validate(&fixture).await;
    assert!(fine, "{validation}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_encrypted_stays_encrypted() {
    let mut fixture = Fixture::new().await;
    let folder = with_target(&mut fixture);
    without_schedule(&fixture).await;
    let secret = |name: &str| format!("{CANARY}-{name}");
    fixture
        .process(
            ContextWriter,
            [
                user(1),
                session(1, "s"),
                request(
                    "context.put",
                    1,
                    json!({ "session_id": "s", "context_key": "k", "context_value": secret("value"), "version": 1, "sensitive": true }),
                ),
                request(
                    "summary.put",
                    1,
                    json!({ "session_id": "s", "summary": secret("summary"), "sensitive": true }),
                ),
            ],
        )
        .await;
    const SECRET: [&str; 2] = ["simple_chat_context", "chat_session_summary"];
    let told = sorted(revealed(&fixture, 1, &SECRET).await);
    assert!(told.len() >= 2 && told.iter().all(|(_, value)| value.is_ok()), "{told:?}");
    fixture
        .execute("UPDATE chat_mode_sessions SET is_active = false, ended_at = now() - interval '400 days'")
        .await;
    archive(&fixture, &TABLES).await;
    let worker = fixture.run(cleaner(&fixture));
    sweep_all(&fixture).await;
    worker.stop().await.expect("a clean end");
    assert_eq!(fixture.count("encrypted_fields WHERE table_name <> 'users'").await, 0);
    let files = files(folder.path());
    assert!(files.iter().any(|file| file.ends_with("encrypted_fields.parquet")), "{files:?}");
    for row in succeeds(&fixture, &["query", "--json"]).await.lines() {
        assert!(!row.contains(CANARY), "{row}");
    }
    restore(&fixture, &TABLES).await;
    assert_eq!(sorted(revealed(&fixture, 1, &SECRET).await), told);
    // Without the key, they say nothing any more.
    let mut store = store::connect(&fixture.settings.keys.url).await.expect("the key store");
    store.batch_execute("DELETE FROM data_keys WHERE user_id = 1").await.expect("no key");
    assert!(revealed(&fixture, 1, &SECRET).await.iter().all(|(_, value)| value.is_err()));
}

fn sorted<T: Ord>(mut values: Vec<T>) -> Vec<T> {
    values.sort();
    values
}

#[tokio::test(flavor = "multi_thread")]
async fn a_kill_between_the_files_and_the_deletion_loses_nothing() {
    let mut fixture = Fixture::with_topology(|topology| {
        set_redelivery(topology, "retention-cleaner-jobs", Duration::from_secs(2), 1_000);
    })
    .await;
    let folder = with_target(&mut fixture);
    without_schedule(&fixture).await;
    with_old_sessions(&fixture, 1..=3, 400).await;
    archive(&fixture, &TABLES).await;
    let before = rows(&fixture, "simple_chat_context", "true").await;
    // The transaction has begun, and ends with the process.
    for point in ["Taken:1", "Written:1"] {
        let mut child = start_worker(&fixture, "retention-cleaner", Some(point), &[]);
        ticks::publish_tick(&fixture, job()).await;
        timeout(Duration::from_secs(60), child.wait()).await.expect("a kill").expect("its end");
        assert_eq!(fixture.count("archives").await, 0);
        assert_eq!(rows(&fixture, "simple_chat_context", "true").await, before);
    }
    let orphans = files(folder.path());
    assert!(orphans.len() >= 4, "{orphans:?}");
    let listed = succeeds(&fixture, &["list", "--orphans"]).await;
    assert!(listed.contains("manifest.json"), "{listed}");
    assert!(
        succeeds(&fixture, &["clean"]).await.contains("no files without an archive are older"),
        "they are young"
    );
    let worker = fixture.run(cleaner(&fixture));
    sweep_all(&fixture).await;
    worker.stop().await.expect("a clean end");
    assert_eq!(fixture.count("simple_chat_context WHERE session_id = 'ended'").await, 0);
    succeeds(&fixture, &["verify"]).await;
    // Files of a run of yesterday are deleted, those of archives are not. A complete archive that nothing names may have the only copy of its
    // rows.
    age(folder.path());
    let cautious = run(&fixture, &["clean"]).await;
    assert!(cautious.is_success(), "{}", cautious.all());
    assert!(
        cautious.err.contains("complete archives that the database does not name are kept, such as "),
        "{}",
        cautious.all()
    );
    assert!(orphans.iter().any(|file| file.ends_with("manifest.json") && file.exists()));
    succeeds(&fixture, &["clean", "--complete"]).await;
    assert!(orphans.iter().all(|file| !file.exists()));
    succeeds(&fixture, &["verify"]).await;
}

/// Of two runs that read the same rows, one removes them, and the archives of the other one have no use.
#[tokio::test(flavor = "multi_thread")]
async fn archives_of_a_run_that_names_none_of_them_are_deleted() {
    let (fixture, folder) = filled(1..=2).await;
    archive(&fixture, &TABLES).await;
    let mut other = fixture.connection().await;
    other.batch_execute("BEGIN; SELECT FROM retention_state FOR UPDATE").await.expect("the other run");
    let worker = fixture.run(cleaner(&fixture));
    tick(&fixture).await;
    testkit::eventually("its files are deleted", async || files(folder.path()).is_empty().then_some(()))
        .await;
    assert_eq!(fixture.count("archives").await, 0);
    other.batch_execute("COMMIT").await.expect("its end");
    sweep_all(&fixture).await;
    worker.stop().await.expect("a clean end");
    assert!(!files(folder.path()).is_empty());
    succeeds(&fixture, &["verify"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn while_the_target_fails_nothing_is_deleted_that_is_to_be_archived() {
    let (fixture, folder) = filled(1..=3).await;
    archive(&fixture, &["simple_chat_context", "blackboard_events"]).await;
    let worker = fixture.run(cleaner(&fixture));
    // A file is where the folder was.
    let path = folder.path().to_owned();
    folder.close().expect("no folder");
    std::fs::write(&path, "").expect("a file");
    let before = old_rows(&fixture).await;
    for _ in 0..3 {
        tick(&fixture).await;
    }
    let after = old_rows(&fixture).await;
    assert_eq!((&after[1], &after[5]), (&before[1], &before[5]));
    assert!(after[2].is_empty() && after[3].is_empty(), "other policies go on");
    assert_eq!(fixture.count("archives").await, 0);
    let failures = fixture.lines("failure FROM job_runs WHERE failure IS NOT NULL").await;
    assert!(
        failures
            .iter()
            .any(|failure| failure
                .starts_with("rows of simple_chat_context stay: archive.url names the folder")),
        "{failures:?}"
    );
    std::fs::remove_file(&path).expect("no file");
    std::fs::create_dir(&path).expect("a folder");
    sweep_all(&fixture).await;
    worker.stop().await.expect("a clean end");
    assert!(old_rows(&fixture).await.iter().all(Vec::is_empty));
    succeeds(&fixture, &["verify"]).await;
    std::fs::remove_dir_all(&path).expect("no folder");
}

#[tokio::test(flavor = "multi_thread")]
async fn of_whoever_was_erased_nothing_is_restored() {
    let (fixture, _folder) = filled(1..=2).await;
    archive(&fixture, &TABLES).await;
    let worker = fixture.run(cleaner(&fixture));
    sweep_all(&fixture).await;
    worker.stop().await.expect("a clean end");
    fixture.execute("DELETE FROM audit.subjects WHERE user_id = 2").await;
    let sessions = ids(&fixture, "chat_mode_sessions").await;
    for id in &sessions {
        let ended = run(&fixture, &["restore", id]).await;
        assert_eq!(ended.code, Some(1), "{}", ended.all());
        assert!(
            ended.err.contains("1 rows are of users who were erased, and are not restored: 2"),
            "{}",
            ended.all()
        );
    }
    let there = fixture.lines("user_id FROM chat_mode_sessions WHERE session_id = 'ended'").await;
    assert_eq!(there, ["1"]);
    assert_eq!(fixture.count("archive_restores WHERE user_id = 2").await, 0);
    // Of the others, all.
    let asked = succeeds(&fixture, &["restore", &sessions[0], "--user", "1"]).await;
    assert!(asked.starts_with("0 rows of chat_mode_sessions restored"), "{asked}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_row_that_changes_or_is_held_meanwhile_stays() {
    let (fixture, _folder) = filled(1..=2).await;
    archive(&fixture, &["simple_chat_context"]).await;
    let of = "t.user_id = 1 AND t.session_id = 'ended' AND t.context_key = 'kept'";
    let mut writer = fixture.connection().await;
    let change = "BEGIN; UPDATE simple_chat_context t SET priority = 2 WHERE ";
    writer.batch_execute(&format!("{change}{of}")).await.expect("a lock");
    let worker = fixture.run(cleaner(&fixture));
    for _ in 0..3 {
        tick(&fixture).await;
    }
    assert_eq!(rows(&fixture, "simple_chat_context", of).await.len(), 1);
    assert_eq!(fixture.count("simple_chat_context t WHERE t.user_id = 2 AND t.session_id = 'ended' AND t.context_key = 'kept'").await, 0);
    assert!(fixture.count("archives WHERE cardinality(not_removed) = 1").await >= 1);
    writer.batch_execute("COMMIT").await.expect("its end");
    let changed = rows(&fixture, "simple_chat_context", of).await;
    archive(&fixture, &TABLES).await;
    sweep_all(&fixture).await;
    worker.stop().await.expect("a clean end");
    assert_eq!(rows(&fixture, "simple_chat_context", of).await, Vec::<String>::new());
    succeeds(&fixture, &["verify"]).await;
    // The older archive has the row, too, as it was before; it does not count.
    restore(&fixture, &["chat_mode_sessions"]).await;
    for id in ids(&fixture, "simple_chat_context").await {
        succeeds(&fixture, &["restore", &id]).await;
    }
    assert_eq!(rows(&fixture, "simple_chat_context", of).await, changed);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_older_row_replaces_no_newer_one() {
    let (fixture, _folder) = filled(1..=1).await;
    archive(&fixture, &["simple_chat_context"]).await;
    fixture
        .execute(
            "UPDATE data_retention_policies SET keep_days = 1000 WHERE table_name = 'chat_mode_sessions'",
        )
        .await;
    let of = "t.session_id = 'ended' AND t.context_key = 'kept'";
    let worker = fixture.run(cleaner(&fixture));
    sweep_all(&fixture).await;
    let first = ids(&fixture, "simple_chat_context").await;
    assert!(!first.is_empty());
    // The key is put again, and archived again.
    fixture
        .execute(
            "INSERT INTO simple_chat_context (id, user_id, session_id, context_key, context_value, version)
             VALUES (gen_random_uuid(), 1, 'ended', 'kept', '\"newer\"', 2)",
        )
        .await;
    let newer = rows(&fixture, "simple_chat_context", of).await;
    for id in &first {
        succeeds(&fixture, &["restore", id]).await;
    }
    assert_eq!(rows(&fixture, "simple_chat_context", of).await, newer, "what is there stays");
    sweep_all(&fixture).await;
    worker.stop().await.expect("a clean end");
    for id in &first {
        let out = succeeds(&fixture, &["restore", id]).await;
        assert!(out.starts_with("0 rows of simple_chat_context restored"), "{out}");
    }
    let dry = succeeds(
        &fixture,
        &["restore", ids(&fixture, "simple_chat_context").await.last().unwrap(), "--dry-run"],
    )
    .await;
    assert!(dry.contains("rows of simple_chat_context would be restored"), "{dry}");
    assert_eq!(rows(&fixture, "simple_chat_context", of).await, Vec::<String>::new());
    restore(&fixture, &["simple_chat_context"]).await;
    assert_eq!(rows(&fixture, "simple_chat_context", of).await, newer);
}

#[tokio::test(flavor = "multi_thread")]
async fn archived_rows_are_found_by_user_session_and_time() {
    let (fixture, folder) = filled(1..=3).await;
    archive(&fixture, &TABLES).await;
    let worker = fixture.run(cleaner(&fixture));
    sweep_all(&fixture).await;
    worker.stop().await.expect("a clean end");
    let query = async |arguments: &[&str]| -> Vec<Value> {
        let out = succeeds(&fixture, &[&["query", "--json"], arguments].concat()).await;
        out.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect()
    };
    let kept = query(&["--table", "simple_chat_context", "--user", "2", "--session", "ended"]).await;
    let keys: Vec<&Value> = kept.iter().map(|line| &line["row"]["context_key"]).collect();
    assert!(keys.contains(&&json!("kept")), "{kept:?}");
    assert!(kept.iter().all(|line| line["row"]["user_id"] == 2 && line["row"]["session_id"] == "ended"));
    assert_eq!(query(&["--session", "open", "--table", "simple_chat_context"]).await, Vec::<Value>::new());
    let events = query(&["--table", "blackboard_events", "--to", "2020-01-01T00:00:00Z"]).await;
    assert_eq!(events, Vec::<Value>::new());
    assert_eq!(query(&["--table", "blackboard_events"]).await.len(), 5);
    assert_eq!(query(&["--limit", "2"]).await.len(), 2);
    let table = succeeds(&fixture, &["query", "--table", "chat_mode_sessions"]).await;
    assert!(table.contains("ended") && table.contains("simple"), "{table}");
    let wrong = run(&fixture, &["query", "--table", "simple_chat_contexts"]).await;
    assert!(wrong.err.contains("did you mean simple_chat_context?"), "{}", wrong.all());

    // A byte of a file, and a manifest of nobody.
    let all = files(folder.path());
    let file = all.iter().find(|file| file.ends_with("chat_mode_sessions.parquet")).expect("a file");
    let mut content = std::fs::read(file).expect("its content");
    let middle = content.len() / 2;
    content[middle] ^= 1;
    std::fs::write(file, content).expect("a change");
    let verified = run(&fixture, &["verify"]).await;
    assert_eq!(verified.code, Some(1), "{}", verified.all());
    assert!(verified.err.contains("its hash is not that of the manifest"), "{}", verified.all());
    let id = &ids(&fixture, "chat_mode_sessions").await[0];
    let restored = run(&fixture, &["restore", id]).await;
    assert!(
        !restored.is_success() && restored.err.contains("its hash is not that of the manifest"),
        "{}",
        restored.all()
    );
    assert_eq!(fixture.count("chat_mode_sessions WHERE session_id = 'ended'").await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_target_a_policy_that_archives_is_refused() {
    let fixture = Fixture::new().await;
    fixture.process(ContextWriter, [user(1)]).await;
    let archiving = || put(1, "simple_chat_context", 10, json!({ "action": "archive" }));
    fixture.process(cleaner(&fixture), [archiving()]).await;
    let dead = fixture.dead_letters().await;
    assert_eq!(dead.len(), 1, "{dead:?}");
    assert!(
        dead[0].contains("this platform has no archives; ask its operator to set archive.url"),
        "{dead:?}"
    );
    assert_eq!(fixture.count("data_retention_policies WHERE user_id = 1").await, 0);
    let mut fixture = fixture;
    let _folder = with_target(&mut fixture);
    fixture.process(cleaner(&fixture), [archiving()]).await;
    let stored = fixture.lines("action FROM data_retention_policies WHERE user_id = 1").await;
    assert_eq!(stored, ["archive"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn duckdb_reads_archives_as_they_are() {
    let installed = stack::Places::of_this_process().home().join("duckdb");
    if !installed.join(".stamp").is_file() {
        let missing = format!("{} is not there; `scripts/setup --tests` gets it", installed.display());
        assert!(std::env::var_os("CI").is_none(), "{missing}");
        return skipped(&missing);
    }
    const READ: &str = "
import duckdb, json, sys
rows = duckdb.sql(f\"SELECT user_id, session_id, context_key, context_value, version, is_persistent, created_at, id \"
    f\"FROM read_parquet('{sys.argv[1]}/simple_chat_context/*/*/simple_chat_context.parquet') WHERE context_key = 'kept' ORDER BY user_id\")
print(json.dumps([[str(kind) for kind in rows.types], [[str(value) for value in row] for row in rows.fetchall()]]))
";
    let (fixture, folder) = filled(1..=2).await;
    let of = "session_id = 'ended' AND context_key = 'kept' ORDER BY user_id";
    let expected = fixture.lines(&format!("id::text FROM simple_chat_context WHERE {of}")).await;
    archive(&fixture, &TABLES).await;
    let worker = fixture.run(cleaner(&fixture));
    sweep_all(&fixture).await;
    worker.stop().await.expect("a clean end");
    let output = tokio::process::Command::new("python3")
        .args(["-c", READ])
        .arg(folder.path())
        .env("PYTHONPATH", &installed)
        .env("TZ", "UTC")
        .output()
        .await
        .expect("python3");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let read: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    let types = json!([
        "INTEGER",
        "VARCHAR",
        "VARCHAR",
        "JSON",
        "BIGINT",
        "BOOLEAN",
        "TIMESTAMP WITH TIME ZONE",
        "UUID"
    ]);
    assert_eq!(read[0], types);
    let lines = read[1].as_array().expect("rows");
    let found: Vec<&str> = lines.iter().map(|row| row[7].as_str().expect("an id")).collect();
    assert_eq!(found, expected);
    assert_eq!(
        lines[0].as_array().expect("a row")[..6],
        ["1", "ended", "kept", "1", "1", "False"].map(Value::from)
    );
}
