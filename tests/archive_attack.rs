//! Archives under attack: by the role of the worker that names them, and by whoever writes to the folder of archives.

use std::os::unix::fs::symlink;
use std::path::Path;
use std::time::{Duration, SystemTime};

use diesel_async::SimpleAsyncConnection as _;
use testkit::Fixture;
use testkit::attack::{assert_refused, attempt, attempt_for, grant, login};

use crate::support::archives::{TABLES, age, archive, files, ids, run, succeeds, with_target};
use crate::support::retention::{cleaner, sweep_all, with_old_sessions, without_schedule};

const ROLE: &str = "w_retention_cleaner";
/// Names an archive of user 1 that is nowhere.
const RECORD: &str = "SELECT sec.record_archive('0193c0de-0000-7000-8000-00000000000f', 'blackboard_events',
    'blackboard_events/2026-01/0193c0de-0000-7000-8000-00000000000f', decode(repeat('00', 32), 'hex'), '{}', gen_random_uuid(), 1, 1,
    now(), now(), '{1}', '{}')";

#[tokio::test(flavor = "multi_thread")]
async fn the_role_names_archives_of_the_users_of_its_context_only() {
    let fixture = Fixture::new().await;
    with_old_sessions(&fixture, 1..=2, 400).await;
    let mut worker = login(&fixture, ROLE).await;
    let own = [grant(1, ROLE)];
    for sql in [
        "INSERT INTO archives (id, table_name, location, manifest_hash, policies, run_id, row_count, byte_count, first_at, last_at, user_ids,
             not_removed, created_at)
         SELECT gen_random_uuid(), 'blackboard_events', 'nowhere', decode(repeat('00', 32), 'hex'), '{}', gen_random_uuid(), 1, 1, now(),
             now(), '{1}', '{}', '9999-01-01'",
        "UPDATE archives SET user_ids = '{1}'",
        "DELETE FROM archives",
        "SELECT FROM archives",
    ] {
        assert_refused(attempt_for(&mut worker, &own, sql).await, "permission denied", sql);
    }
    for (from, to, by) in [
        ("'{1}'", "'{1, 2}'", "of the users of the security context only"),
        ("'{1}'", "'{2}'", "of the users of the security context only"),
        ("'{1}'", "'{}'", "of the users of the security context only"),
        ("'{1}'", "NULL", "of the users of the security context only"),
        ("'{1}'", "'{1, NULL}'", "of the users of the security context only"),
        (" 'blackboard_events',", " 'data_retention_policies',", "rows of this table are not archived"),
        (" 'blackboard_events',", " NULL,", "rows of this table are not archived"),
        (" 'blackboard_events',", " 'simple_chat_context',", "the location of an archive is"),
        ("/2026-01/", "/2026-13/", "the location of an archive is"),
        ("/2026-01/", "/../2026-01/", "the location of an archive is"),
        ("00000f', decode", "00000f/', decode", "the location of an archive is"),
        ("00000f', decode", "00000e', decode", "the location of an archive is"),
        ("'{1}'", "'{1, 1}'", "the lists of an archive have"),
        ("'{1}'", "'{{1}}'", "the lists of an archive have"),
        ("'{}', gen_random_uuid()", "'{NULL}', gen_random_uuid()", "the lists of an archive have"),
        ("'{}', gen_random_uuid()", "NULL, gen_random_uuid()", "the lists of an archive have"),
        ("'{1}', '{}'", "'{1}', '{NULL}'", "the lists of an archive have"),
        ("'{1}', '{}'", "'{1}', ARRAY[ARRAY[gen_random_uuid()]]", "the lists of an archive have"),
        ("'{1}', '{}'", "'{1}', array_fill(gen_random_uuid(), ARRAY[10001])", "the lists of an archive have"),
    ] {
        let sql = RECORD.replacen(from, to, 1);
        assert_ne!(sql, RECORD);
        assert_refused(attempt_for(&mut worker, &own, &sql).await, by, &sql);
    }
    assert_refused(
        attempt(&mut worker, RECORD).await,
        "of the users of the security context only",
        "no context",
    );
    // The time is that of the transaction.
    let open = format!("SELECT sec.open_context(ARRAY['{}'])", own[0]);
    for statement in ["BEGIN", &open, RECORD, "COMMIT"] {
        worker.batch_execute(statement).await.unwrap_or_else(|error| panic!("{statement}: {error}"));
    }
    let named = "archives WHERE user_ids = '{1}' AND created_at BETWEEN now() - interval '1 hour' AND now()";
    assert_eq!(fixture.count(named).await, 1);
    assert_refused(attempt_for(&mut worker, &own, RECORD).await, "archives_pkey", "a second time");
}

/// As the role could name one before the lists were checked.
#[tokio::test(flavor = "multi_thread")]
async fn an_archive_with_null_in_its_lists_is_listed_with_the_others() {
    let mut fixture = Fixture::new().await;
    let _folder = with_target(&mut fixture);
    let named = |lists: &str| {
        format!(
            "INSERT INTO archives (id, table_name, location, manifest_hash, run_id, row_count, byte_count, first_at, last_at, created_at,
                 user_ids, policies, not_removed)
             SELECT id, 'blackboard_events', 'blackboard_events/2026-01/' || id, decode(repeat('00', 32), 'hex'), gen_random_uuid(), 1, 1,
                 now(), now(), now(), {lists} FROM gen_random_uuid() AS id;"
        )
    };
    let lists =
        ["'{1}', '{}', '{}'", "'{1, NULL}', '{NULL}', '{NULL}'", "'{{1}}', '{}', ARRAY[ARRAY[NULL::uuid]]"];
    fixture.execute(&lists.map(named).concat()).await;
    assert_eq!(ids(&fixture, "blackboard_events").await.len(), 3);
    let verified = run(&fixture, &["verify"]).await;
    assert!(verified.out.starts_with("3 archives with 0 rows read, 3 of them"), "{}", verified.all());
}

#[tokio::test(flavor = "multi_thread")]
async fn an_archive_under_the_name_of_another_table_is_neither_restored_nor_searched() {
    let mut fixture = Fixture::new().await;
    let _folder = with_target(&mut fixture);
    without_schedule(&fixture).await;
    with_old_sessions(&fixture, 1..=1, 400).await;
    archive(&fixture, &TABLES).await;
    let worker = fixture.run(cleaner(&fixture));
    sweep_all(&fixture).await;
    worker.stop().await.expect("a clean end");
    let id = ids(&fixture, "agent_context_states").await.remove(0);
    fixture
        .execute(
            "ALTER TABLE archives DROP CONSTRAINT archives_location;
             UPDATE archives SET table_name = 'chat_mode_sessions' WHERE table_name = 'agent_context_states'",
        )
        .await;
    let of_table = ["query", "--table", "chat_mode_sessions"];
    for arguments in [&["restore", id.as_str()][..], &["verify", id.as_str()], &of_table] {
        let ended = run(&fixture, arguments).await;
        assert!(!ended.is_success(), "{arguments:?}: {}", ended.all());
        let reason = "of agent_context_states, and the database says";
        assert!(ended.err.contains(reason), "{arguments:?}: {}", ended.all());
    }
    assert_eq!(fixture.count("agent_context_states WHERE session_id = 'ended'").await, 0);
    // The same of users.
    fixture
        .execute(&format!(
            "UPDATE archives SET table_name = 'agent_context_states', user_ids = '{{1, 2}}' WHERE id = '{id}'"
        ))
        .await;
    let ended = run(&fixture, &["restore", &id]).await;
    assert!(ended.err.contains("its manifest has other users than the database"), "{}", ended.all());
    assert_eq!(fixture.count("agent_context_states WHERE session_id = 'ended'").await, 0);
}

/// A superuser writes any row into `archives`, and has no key of archives.
#[tokio::test(flavor = "multi_thread")]
async fn whoever_writes_the_names_of_archives_has_no_file_deleted() {
    let mut fixture = Fixture::new().await;
    let folder = with_target(&mut fixture);
    without_schedule(&fixture).await;
    with_old_sessions(&fixture, 1..=3, 400).await;
    archive(&fixture, &["simple_chat_context"]).await;
    let worker = fixture.run(cleaner(&fixture));
    sweep_all(&fixture).await;
    worker.stop().await.expect("a clean end");
    age(folder.path());
    let before = files(folder.path());
    assert!(!before.is_empty());

    // A target reads a file by several paths.
    let refused =
        fixture.connection().await.batch_execute("UPDATE archives SET location = '/' || location").await;
    assert!(refused.is_err_and(|error| error.to_string().contains("archives_location")));
    let moved = "ALTER TABLE archives DROP CONSTRAINT archives_location; UPDATE archives SET location = '/' || location";
    fixture.execute(moved).await;
    let verified = run(&fixture, &["verify"]).await;
    assert_eq!(verified.code, Some(1), "{}", verified.all());
    assert!(verified.err.contains("its manifest is of the archive "), "{}", verified.all());
    assert_eq!(succeeds(&fixture, &["list", "--orphans"]).await, "no files without an archive\n");
    let cleaned = succeeds(&fixture, &["clean"]).await;
    assert!(cleaned.starts_with("no files without an archive are older"), "{cleaned}");
    assert_eq!(files(folder.path()), before);
    fixture.execute("UPDATE archives SET location = ltrim(location, '/')").await;
    succeeds(&fixture, &["verify"]).await;

    // Rows that were not removed are rows of the archive, and counted.
    let listed = succeeds(&fixture, &["query", "--json", "--limit", "1"]).await;
    let row: serde_json::Value = serde_json::from_str(&listed).expect("JSON");
    let (of, id) = (row["archive"].as_str().expect("an archive"), row["row"]["id"].as_str().expect("an id"));
    let hide = |id: &str| {
        format!(
            "UPDATE archives SET not_removed = ARRAY['{id}']::uuid[], row_count = row_count + cardinality(not_removed) - 1 WHERE id = '{of}'"
        )
    };
    assert_eq!(fixture.count(&format!("archives WHERE id = '{of}' AND row_count > 1")).await, 1);
    fixture.execute(&hide("0193c0de-0000-7000-8000-00000000000f")).await;
    let verified = run(&fixture, &["verify", of]).await;
    assert!(
        verified.err.contains("rows were not removed which the archive does not have"),
        "{}",
        verified.all()
    );
    fixture.execute(&hide(id)).await;
    let verified = succeeds(&fixture, &["verify", of]).await;
    assert!(verified.contains("\n1 archived rows were not removed from the database"), "{verified}");

    // What nothing names may be the only copy.
    fixture.execute("DELETE FROM archives").await;
    let cleaned = run(&fixture, &["clean"]).await;
    assert!(cleaned.is_success() && cleaned.out.is_empty(), "{}", cleaned.all());
    assert!(
        cleaned.err.contains("complete archives that the database does not name are kept"),
        "{}",
        cleaned.all()
    );
    assert_eq!(files(folder.path()), before);
}

/// A file that was written a month ago.
fn old_file(path: &Path) {
    std::fs::create_dir_all(path.parent().expect("a folder")).expect("a folder");
    let file = std::fs::File::create(path).expect("a file");
    file.set_modified(SystemTime::now() - Duration::from_secs(30 * 24 * 3_600)).expect("a time");
}

#[tokio::test(flavor = "multi_thread")]
async fn clean_deletes_nothing_outside_of_the_folder() {
    let mut fixture = Fixture::new().await;
    let (folder, elsewhere) = (with_target(&mut fixture), tempfile::tempdir().expect("a folder"));
    let orphan =
        "simple_chat_context/2026-01/0193c0de-0000-7000-8000-00000000000e/simple_chat_context.parquet";
    let others = ["simple_chat_context/notes.txt", "notes.parquet"];
    for path in [orphan, others[0], others[1]] {
        old_file(&folder.path().join(path));
    }
    let outside = elsewhere
        .path()
        .join("blackboard_events/2026-01/0193c0de-0000-7000-8000-00000000000f/blackboard_events.parquet");
    old_file(&outside);
    symlink(elsewhere.path().join("blackboard_events"), folder.path().join("blackboard_events"))
        .expect("a link");
    symlink(".", folder.path().join("loop")).expect("a link");

    let listed = run(&fixture, &["list", "--orphans"]).await;
    assert!(listed.is_success(), "{}", listed.all());
    assert!(listed.out.contains(orphan) && !listed.out.contains("blackboard_events"), "{}", listed.all());
    assert!(listed.err.contains("warning: 2 links at the archive target are ignored"), "{}", listed.all());
    assert_eq!(succeeds(&fixture, &["clean"]).await, format!("deleted {orphan}\n"));
    assert!(outside.is_file() && !folder.path().join(orphan).exists());
    assert!(others.iter().all(|path| folder.path().join(path).is_file()));
}
