//! Values that are short where they are stored and long as text, and tables that a worker's role keeps for itself: neither holds up anybody
//! else's work.

use diesel_async::SimpleAsyncConnection as _;
use serde_json::{Value, json};
use testkit::attack::{assert_refused, attempt, attempt_for, grant, login};
use testkit::{Fixture, eventually};
use uuid::Uuid;

use crate::support::archives::{archive, succeeds, with_target};
use crate::support::retention;
use crate::support::sync::{Sync, payloads, process, put, with_sessions, without_wakes, write};

const ROLE: &str = "w_context_writer";

/// A value that takes some hundred bytes, and 131,074 for each of these numbers as text.
fn long(numbers: usize) -> String {
    format!(
        "(SELECT jsonb_agg(one.v) FROM (SELECT to_jsonb('1e131071'::numeric) AS v OFFSET 0) AS one, generate_series(1, {numbers}))"
    )
}

/// Stores such a value, as it may have been stored before there was a check. `of` says which row gets it.
async fn store_long(fixture: &Fixture, numbers: usize, of: &str) {
    fixture
        .execute(&format!(
            "ALTER TABLE simple_chat_context DROP CONSTRAINT IF EXISTS value_is_bounded, DISABLE TRIGGER USER;
             UPDATE simple_chat_context SET context_value = {} WHERE {of};
             ALTER TABLE simple_chat_context ENABLE TRIGGER USER",
            long(numbers)
        ))
        .await;
}

/// A statement that writes this value.
type Written<'a> = &'a dyn Fn(&str) -> String;

#[tokio::test(flavor = "multi_thread")]
async fn no_role_writes_a_value_that_is_too_long_as_text() {
    let fixture = with_sessions(&["a"]).await;
    let context = |value: &str| {
        format!(
            "INSERT INTO simple_chat_context (id, user_id, session_id, context_key, context_value)
             VALUES (gen_random_uuid(), 1, 'a', 'k', {value})"
        )
    };
    let of_agent = |value: &str| {
        format!(
            "INSERT INTO agent_context_states (id, user_id, session_id, agent_id, memory_tier, context_key, context_value)
             VALUES (gen_random_uuid(), 1, 'a', 'a', 'shared', 'k', {value})"
        )
    };
    let node = |value: &str| {
        format!(
            "INSERT INTO consensus_memory_nodes (id, user_id, node_type, node_key, title, content)
             VALUES ('{}', 1, 'fact', 'k', 't', {value})",
            Uuid::now_v7()
        )
    };
    let text = |bytes: usize| format!("to_jsonb(repeat('x', {}))", bytes - 2);
    let most = contract::limit::EVENT_PAYLOAD_BYTES;
    let tables: [(&str, &str, Written<'_>); 3] = [
        (ROLE, "\"value_is_bounded\"", &context),
        (ROLE, "\"value_is_bounded\"", &of_agent),
        ("w_memory_sync", "\"content_is_bounded\"", &node),
    ];
    for (role, check, insert) in tables {
        let mut worker = login(&fixture, role).await;
        let grants = [grant(1, role)];
        for value in [long(16), text(most + 1)] {
            let done = attempt_for(&mut worker, &grants, &insert(&value)).await;
            assert_refused(done, check, role);
        }
        let largest = insert(&text(most));
        assert_eq!(attempt_for(&mut worker, &grants, &largest).await, Ok(1), "{role}: the largest one");
    }
}

/// What a worker's role writes and another worker reads. Only what nobody reads as text has no limit.
#[tokio::test(flavor = "multi_thread")]
async fn every_text_that_another_worker_reads_has_a_limit() {
    let fixture = Fixture::new().await;
    let unbounded = fixture
        .lines(
            "c.relname || '.' || a.attname FROM pg_class c JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
             WHERE c.relnamespace = 'public'::regnamespace AND c.relkind IN ('r', 'p') AND NOT c.relispartition
                AND (a.atttypid IN ('text'::regtype, 'jsonb'::regtype, 'bytea'::regtype, 'text[]'::regtype)
                    OR a.atttypid = 'varchar'::regtype AND a.atttypmod = -1)
                AND EXISTS (SELECT FROM pg_roles r WHERE r.rolname LIKE 'w\\_%'
                    AND (has_column_privilege(r.oid, c.oid, a.attnum, 'INSERT') OR has_column_privilege(r.oid, c.oid, a.attnum, 'UPDATE')))
                AND EXISTS (SELECT FROM unnest(ARRAY['memory_reader', 'memory_sync', 'retention_cleaner', 'consensus_builder']) AS r
                    WHERE has_column_privilege('w_' || r, c.oid, a.attnum, 'SELECT'))
                AND NOT EXISTS (SELECT FROM pg_constraint k WHERE k.conrelid = c.oid AND k.contype = 'c' AND a.attnum = ANY (k.conkey)
                    AND replace(replace(pg_get_constraintdef(k.oid), '(' || a.attname || ')::text', a.attname), '::text', '')
                        LIKE '%octet_length(' || a.attname || ')%')
             ORDER BY 1",
        )
        .await;
    assert_eq!(unbounded, ["cross_service_memory_sync.conflict_resolution"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn no_role_writes_what_is_too_long_for_those_who_read_it() {
    let fixture = with_sessions(&["a"]).await;
    let mut worker = login(&fixture, ROLE).await;
    let grants = [grant(1, ROLE)];
    let history = |metadata: &str| {
        format!(
            "INSERT INTO chat_history (id, user_id, conversation_id, metadata, request_id)
             VALUES (gen_random_uuid(), 1, 'c', {metadata}, gen_random_uuid())"
        )
    };
    let state = |bytes: usize| {
        format!(
            "INSERT INTO simple_chat_context (id, user_id, session_id, context_key, context_value, sync_state)
             VALUES (gen_random_uuid(), 1, 'a', 'k', '1', repeat('x', {bytes}))"
        )
    };
    let object = |numbers: usize| format!("jsonb_build_object('a', {})", long(numbers));
    for sql in [history(&object(16)), state((4 << 20) + 1)] {
        assert_refused(attempt_for(&mut worker, &grants, &sql).await, "\"columns_are_bounded\"", &sql);
    }
    for sql in [history(&object(15)), state(4 << 20)] {
        assert_eq!(attempt_for(&mut worker, &grants, &sql).await, Ok(1), "{sql}");
    }
}

/// States and ciphertexts that take some kilobytes, and ten megabytes as they are read.
#[tokio::test(flavor = "multi_thread")]
async fn a_key_of_which_too_much_is_kept_fails_by_itself_and_none_of_it_is_read() {
    let fixture = with_sessions(&["a", "b"]).await;
    without_wakes(&fixture).await;
    write(&fixture, ["fine", "secret", "state"].map(|key| put("a", key, json!(1), 1))).await;
    let sync = Sync::new();
    process(&fixture, [sync.transfer("a", "b")]).await;
    write(&fixture, ["fine", "secret", "state"].map(|key| put("a", key, json!(2), 2))).await;
    fixture
        .execute(
            "ALTER TABLE simple_chat_context DROP CONSTRAINT columns_are_bounded, DISABLE TRIGGER USER;
             ALTER TABLE encrypted_fields DISABLE TRIGGER USER;
             UPDATE simple_chat_context SET sync_state = repeat('x', 10000000) WHERE session_id = 'a' AND context_key = 'state';
             UPDATE simple_chat_context SET is_sensitive = true WHERE session_id = 'a' AND context_key = 'secret';
             INSERT INTO encrypted_fields (id, user_id, table_name, column_name, row_id, ciphertext)
                 SELECT gen_random_uuid(), c.user_id, 'simple_chat_context', 'c' || n, c.id, decode(repeat('01', 2097152), 'hex')
                 FROM simple_chat_context c, generate_series(1, 5) AS n WHERE c.is_sensitive;
             ALTER TABLE encrypted_fields ENABLE TRIGGER USER;
             ALTER TABLE simple_chat_context ENABLE TRIGGER USER",
        )
        .await;
    let next = Sync::new();
    process(&fixture, [next.transfer("a", "b")]).await;
    assert_eq!(fixture.dead_letters().await, Vec::<String>::new());
    assert_eq!(next.state(&fixture).await, "completed carried");
    assert_eq!(next.counted(&fixture, "failed").await, "2");
    let in_target =
        "simple_chat_context WHERE session_id = 'b' AND context_key = 'fine' AND context_value = '2'";
    assert_eq!(fixture.count(in_target).await, 1);
    let ended = payloads(&fixture, "sync.completed").await;
    let limited =
        ended.iter().filter(|event| event["failures"].as_array().is_some_and(|all| !all.is_empty()));
    assert!(
        limited.clone().count() > 0
            && limited
                .clone()
                .all(|event| event.to_string().contains("what is kept of it takes more than 8388608 bytes"))
    );
}

/// Operators list the syncs of all users together, the latest first.
#[tokio::test(flavor = "multi_thread")]
async fn no_role_writes_a_sync_that_keeps_others_from_being_listed() {
    let fixture = with_sessions(&["a", "b"]).await;
    let mut worker = login(&fixture, "w_memory_sync").await;
    let insert = |counts: &str, filter: &str, created_at: &str| {
        format!(
            "INSERT INTO cross_service_memory_sync (id, user_id, source_session_id, target_session_id, sync_type, sync_status,
                 data_transferred, filter, created_at)
             VALUES (gen_random_uuid(), 1, 'a', 'b', 'state_sync', 'in_progress', {counts}, {filter}, {created_at})"
        )
    };
    let object = |numbers: usize| format!("jsonb_build_object('a', {})", long(numbers));
    let grants = [grant(1, "w_memory_sync")];
    for (sql, check) in [
        (insert(&object(1), "'{}'", "now()"), "\"values_are_bounded\""),
        (insert("'{}'", &object(16), "now()"), "\"values_are_bounded\""),
        (insert("'{}'", "'{}'", "'9999-01-01'"), "\"began_in_the_past\""),
    ] {
        assert_refused(attempt_for(&mut worker, &grants, &sql).await, check, check);
    }
    let fine = insert("'{}'", &object(15), "now() + interval '47 hours'");
    assert_eq!(attempt_for(&mut worker, &grants, &fine).await, Ok(1));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_whose_value_is_too_long_as_text_fails_by_itself_and_the_others_are_synced() {
    let fixture = with_sessions(&["a", "b"]).await;
    let keys = ["of-source", "of-target", "other"];
    write(&fixture, keys.map(|key| put("a", key, json!(1), 1))).await;
    write(&fixture, [put("b", "of-target", json!(2), 1)]).await;
    store_long(&fixture, 20, "(session_id, context_key) IN (VALUES ('a', 'of-source'), ('b', 'of-target'))")
        .await;
    let sync = Sync::new();
    process(&fixture, [sync.transfer("a", "b")]).await;
    assert_eq!(fixture.dead_letters().await, Vec::<String>::new());
    assert_eq!(sync.state(&fixture).await, "completed carried");
    assert_eq!(sync.counted(&fixture, "created").await, "1");
    assert_eq!(sync.counted(&fixture, "failed").await, "2");
    assert_eq!(
        fixture.count("simple_chat_context WHERE session_id = 'b' AND context_key = 'other'").await,
        1
    );
    let ended = payloads(&fixture, "sync.completed").await;
    let limit = format!("more than {} bytes", contract::limit::EVENT_PAYLOAD_BYTES);
    assert!(!ended.is_empty());
    for event in &ended {
        let failures = event["failures"].as_array().expect("failures");
        assert!(failures.len() == 2, "{failures:?}");
        let names_limit = |one: &Value| one["reason"].as_str().is_some_and(|reason| reason.contains(&limit));
        assert!(failures.iter().all(names_limit), "{failures:?}");
    }
    // What it carried goes back, but for what has become too long meanwhile.
    store_long(&fixture, 20, "session_id = 'b' AND context_key = 'other'").await;
    process(&fixture, [sync.undo()]).await;
    assert_eq!(fixture.dead_letters().await, Vec::<String>::new());
    let undone = payloads(&fixture, "sync.undone").await;
    assert!(undone.iter().any(|event| event.to_string().contains(&limit)), "{undone:?}");
    assert_eq!(
        fixture.count("simple_chat_context WHERE session_id = 'b' AND context_key = 'other'").await,
        1
    );
}

/// Numbers that take 16 bytes and are not compressed count as what they are as text.
#[tokio::test(flavor = "multi_thread")]
async fn a_round_counts_numbers_as_they_are_written() {
    const KEYS: usize = 12;
    let fixture = with_sessions(&["a", "b"]).await;
    without_wakes(&fixture).await;
    write(&fixture, (0..KEYS).map(|at| put("a", &format!("k{at:02}"), json!(at), 1))).await;
    store_long(&fixture, 15, "session_id = 'a'").await;
    assert_eq!(
        fixture.count("simple_chat_context WHERE pg_column_compression(context_value) IS NOT NULL").await,
        0
    );
    let sync = Sync::new();
    process(&fixture, [sync.transfer("a", "b")]).await;
    assert_eq!(sync.state(&fixture).await, "in_progress");
    // Each is larger than a merged value may be.
    assert_eq!(sync.counted(&fixture, "failed").await, "9", "16 MiB");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_row_that_is_too_large_to_archive_stays_and_the_others_are_archived() {
    let mut fixture = Fixture::new().await;
    let _folder = with_target(&mut fixture);
    retention::without_schedule(&fixture).await;
    retention::with_old_sessions(&fixture, 1..=3, 400).await;
    archive(&fixture, &["simple_chat_context"]).await;
    let kept = |user: i32| format!("user_id = {user} AND session_id = 'ended' AND context_key = 'kept'");
    // 275 MB, more than a file may have.
    store_long(&fixture, 2_100, &kept(1)).await;
    // 36 MB of ciphertexts as text, of a row that says it has none. They take 25 kB each.
    fixture
        .execute(&format!(
            "ALTER TABLE encrypted_fields DISABLE TRIGGER USER;
             INSERT INTO encrypted_fields (id, user_id, table_name, column_name, row_id, ciphertext)
                 SELECT gen_random_uuid(), c.user_id, 'simple_chat_context', 'c' || n, c.id, decode(repeat('01', 2097152), 'hex')
                 FROM simple_chat_context c, generate_series(1, 9) AS n WHERE {};
             ALTER TABLE encrypted_fields ENABLE TRIGGER USER",
            kept(3)
        ))
        .await;
    let worker = fixture.run(retention::cleaner(&fixture));
    for _ in 0..3 {
        retention::tick(&fixture).await;
    }
    worker.stop().await.expect("a clean end");
    for (user, left) in [(1, 1), (2, 0), (3, 1)] {
        assert_eq!(fixture.count(&format!("simple_chat_context WHERE {}", kept(user))).await, left, "{user}");
    }
    let failures = fixture.lines("failure FROM job_runs WHERE failure IS NOT NULL").await;
    let expected = "2 rows of simple_chat_context are too large to archive and stay";
    assert!(!failures.is_empty() && failures.iter().all(|failure| failure == expected), "{failures:?}");
    succeeds(&fixture, &["verify"]).await;
}

/// Whoever has a right to delete or update a whole table may also lock it. No role has one, unless somebody gives it.
#[tokio::test(flavor = "multi_thread")]
async fn others_end_a_transaction_that_keeps_a_table_for_itself() {
    let fixture = with_sessions(&["a"]).await;
    let end = "SELECT sec.end_old_transactions()";
    let mut other = login(&fixture, "w_router_logger").await;
    // Makes what is five or 40 seconds otherwise no time at all, in this database.
    fixture
        .execute(
            "GRANT UPDATE ON simple_chat_context TO w_context_writer; DO $$ BEGIN EXECUTE replace(regexp_replace(pg_get_functiondef('sec.end_old_transactions'::regproc), '''(5|40) seconds''', '''0 seconds''', 'g'),
             'a.pid <> pg_backend_pid()', 'a.pid <> pg_backend_pid() AND a.datname = current_database()'); END $$",
        )
        .await;
    for (mode, wanted) in [
        ("ACCESS EXCLUSIVE", "ROW EXCLUSIVE"),
        ("EXCLUSIVE", "ROW EXCLUSIVE"),
        ("SHARE", "ROW EXCLUSIVE"),
        // What an administrator changes the table with.
        ("ACCESS SHARE", "ACCESS EXCLUSIVE"),
    ] {
        let mut worker = login(&fixture, ROLE).await;
        let lock = format!(
            "SET idle_in_transaction_session_timeout = 0; BEGIN; LOCK TABLE simple_chat_context IN {mode} MODE"
        );
        worker.batch_execute(&lock).await.expect("a lock");
        attempt(&mut other, end).await.expect("its right");
        assert_eq!(attempt(&mut worker, "SELECT 1").await, Ok(1), "{mode}: nobody waits for it");
        let mut waiting = fixture.connection().await;
        let waits = tokio::spawn(async move {
            let lock = format!("BEGIN; LOCK TABLE simple_chat_context IN {wanted} MODE; ROLLBACK");
            waiting.batch_execute(&lock).await
        });
        eventually("somebody waits", async || {
            let waiting =
                "pg_locks l JOIN pg_database d ON d.oid = l.database AND d.datname = current_database()
                WHERE NOT l.granted AND l.waitstart IS NOT NULL AND l.relation = 'simple_chat_context'::regclass";
            (fixture.count(waiting).await == 1).then_some(())
        })
        .await;
        attempt(&mut other, end).await.expect("its right");
        let problem = attempt(&mut worker, "SELECT 1").await.expect_err("its connection was ended");
        assert!(
            problem.contains("terminating connection") || problem.contains("closed"),
            "{mode}: {problem}"
        );
        waits.await.expect("the task").expect("the lock");
    }
}

/// A fixture in which no transaction is too old, whatever takes its time, and somebody gave a role a right to a whole table.
async fn without_age() -> Fixture {
    let fixture = with_sessions(&["a"]).await;
    fixture
        .execute(
            "GRANT UPDATE ON chat_mode_sessions TO w_retention_cleaner;
             DO $$ BEGIN EXECUTE replace(pg_get_functiondef('sec.end_old_transactions'::regproc), '''5 seconds''', '''1 hour'''); END $$",
        )
        .await;
    fixture
}

/// How many sessions wait for a lock on the table of sessions.
async fn waiting(fixture: &Fixture) -> i64 {
    let waiting = "pg_locks l JOIN pg_database d ON d.oid = l.database AND d.datname = current_database()
        WHERE NOT l.granted AND l.waitstart IS NOT NULL AND l.relation = 'chat_mode_sessions'::regclass";
    fixture.count(waiting).await
}

fn is_ended(problem: &str) -> bool {
    problem.contains("terminating connection") || problem.contains("closed")
}

/// Connections that lock a table in turns let nobody in, although each of them holds the lock for a moment only.
#[tokio::test(flavor = "multi_thread")]
async fn others_end_all_sessions_of_a_role_that_lock_a_table_in_turns() {
    let fixture = without_age().await;
    let mut other = login(&fixture, "w_router_logger").await;
    let mut holder = login(&fixture, "w_retention_cleaner").await;
    let hold =
        "SET idle_in_transaction_session_timeout = 0; BEGIN; LOCK TABLE chat_mode_sessions IN SHARE MODE";
    holder.batch_execute(hold).await.expect("a lock");
    let mut turns = Vec::new();
    for number in 1..=3 {
        let mut next = login(&fixture, "w_retention_cleaner").await;
        turns.push(tokio::spawn(async move {
            let lock = "BEGIN; LOCK TABLE chat_mode_sessions IN ACCESS EXCLUSIVE MODE";
            (next.batch_execute(lock).await, next)
        }));
        eventually("it waits", async || (waiting(&fixture).await == number).then_some(())).await;
    }
    let end = "SELECT sec.end_old_transactions()";
    attempt(&mut other, end).await.expect("its right");
    assert_eq!(attempt(&mut holder, "SELECT 1").await, Ok(1), "nobody else waits");
    let mut writer = fixture.connection().await;
    let writes = tokio::spawn(async move {
        writer.batch_execute("BEGIN; LOCK TABLE chat_mode_sessions IN ROW EXCLUSIVE MODE; COMMIT").await
    });
    eventually("somebody else waits", async || (waiting(&fixture).await == 4).then_some(())).await;
    attempt(&mut other, end).await.expect("its right");
    let problem = attempt(&mut holder, "SELECT 1").await.expect_err("its connection was ended");
    assert!(is_ended(&problem), "the one that holds the lock: {problem}");
    for turn in turns {
        // It may have got the lock of one that was ended before it.
        let problem = match turn.await.expect("the task") {
            (Err(problem), _) => problem.to_string(),
            (Ok(()), mut next) => attempt(&mut next, "SELECT 1").await.expect_err("its connection was ended"),
        };
        assert!(is_ended(&problem), "one that waits: {problem}");
    }
    writes.await.expect("the task").expect("the lock");
}

/// One connection that locks a table again and again is ended, too, once somebody has waited nearly as long as a worker does.
#[tokio::test(flavor = "multi_thread")]
async fn others_end_a_young_transaction_for_which_somebody_waits_in_vain() {
    let fixture = without_age().await;
    let mut holder = login(&fixture, "w_retention_cleaner").await;
    let mut writer = fixture.connection().await;
    let hold =
        "SET idle_in_transaction_session_timeout = 0; BEGIN; LOCK TABLE chat_mode_sessions IN EXCLUSIVE MODE";
    holder.batch_execute(hold).await.expect("a lock");
    let writes = tokio::spawn(async move {
        writer.batch_execute("BEGIN; LOCK TABLE chat_mode_sessions IN ROW EXCLUSIVE MODE; COMMIT").await
    });
    eventually("the writer gets its lock", async || {
        let mut other = login(&fixture, "w_router_logger").await;
        attempt(&mut other, "SELECT sec.end_old_transactions()").await.expect("its right");
        writes.is_finished().then_some(())
    })
    .await;
    let problem = attempt(&mut holder, "SELECT 1").await.expect_err("its connection was ended");
    assert!(is_ended(&problem), "{problem}");
    writes.await.expect("the task").expect("the lock");
}
