//! Rows that change between the moment at which a run finds them and the moment at which it removes them, without a lock at either.

use chrono::Utc;
use diesel_async::{AsyncConnection as _, SimpleAsyncConnection as _};
use retention_cleaner::ROWS;
use store::{Fault, security};
use testkit::attack::{grant, login};
use testkit::{Fixture, eventually};
use uuid::Uuid;

use crate::archives::filled;
use crate::support::archives::{TABLES, archive, files, with_target};
use crate::support::retention::{cleaner, tick, with_old_sessions, without_schedule};

const ROLE: &str = "w_retention_cleaner";

/// The transaction that removes what an archive has begins with its inbox row: one row of each table changes then.
#[tokio::test(flavor = "multi_thread")]
async fn a_row_that_changed_since_it_was_archived_stays() {
    const CHANGED: [&str; 5] = [
        "simple_chat_context t WHERE t.user_id = 1 AND t.session_id = 'ended' AND t.context_key = 'kept'",
        "agent_context_states t WHERE t.user_id = 1 AND t.session_id = 'ended'",
        "router_decision_log t WHERE t.user_id = 1 AND t.session_id = 'ended'",
        "chat_mode_sessions t WHERE t.user_id = 1 AND t.session_id = 'alone'",
        "chat_mode_sessions t WHERE t.user_id = 1 AND t.session_id = 'summarised'",
    ];
    let (fixture, _folder) = filled(1..=2).await;
    // What a run that meets this one has changed is not waited for.
    let change = |(table, session): (&str, &str)| {
        format!(
            "UPDATE {table} SET request_id = gen_random_uuid() WHERE id IN (
                SELECT id FROM {table} WHERE user_id = 1 AND session_id = '{session}' FOR UPDATE SKIP LOCKED);"
        )
    };
    let changes = [
        ("simple_chat_context", "ended"),
        ("agent_context_states", "ended"),
        ("router_decision_log", "ended"),
        ("chat_mode_sessions", "alone"),
        ("chat_session_summary", "summarised"),
    ];
    let changes = changes.map(change).concat();
    fixture
        .execute(&format!(
            "INSERT INTO chat_mode_sessions (id, user_id, session_id, chat_mode, is_active, ended_at)
                 SELECT gen_random_uuid(), n, s, 'simple', false, now() - interval '400 days'
                 FROM generate_series(1, 2) AS n, unnest(ARRAY['alone', 'summarised']) AS s;
             INSERT INTO chat_session_summary (id, user_id, session_id, summary)
                 SELECT gen_random_uuid(), n, 'summarised', 'short' FROM generate_series(1, 2) AS n;
             CREATE FUNCTION change() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER AS $$ BEGIN
                 {changes}
                 RETURN NULL;
             END $$;
             CREATE TRIGGER change AFTER INSERT ON inbox EXECUTE FUNCTION change()"
        ))
        .await;
    archive(&fixture, &TABLES).await;
    let worker = fixture.run(cleaner(&fixture));
    for _ in 0..4 {
        tick(&fixture).await;
    }
    worker.stop().await.expect("a clean end");
    for changed in CHANGED {
        assert_eq!(fixture.count(changed).await, 1, "{changed}");
        let unchanged = changed.replace("user_id = 1", "user_id = 2");
        assert_eq!(fixture.count(&unchanged).await, 0, "{unchanged}");
    }
}

/// Users with contexts of ended sessions alone, due of the first one, and no schedule. The first run that begins finds that another one has
/// done this meanwhile.
async fn with_another_run(fixture: &Fixture, done: &str) {
    without_schedule(fixture).await;
    with_old_sessions(fixture, 1..=2, 400).await;
    fixture
        .execute(&format!(
            "UPDATE simple_chat_context SET expires_at = NULL; DELETE FROM agent_context_states; DELETE FROM router_decision_log;
             UPDATE data_retention_policies SET keep_days = 1000 WHERE table_name = 'chat_mode_sessions';
             UPDATE chat_mode_sessions SET ended_at = now() WHERE user_id = 2 AND NOT is_active;
             CREATE FUNCTION run() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER SET session_replication_role = replica AS $$ BEGIN
                 DELETE FROM simple_chat_context WHERE user_id = 1 AND session_id = 'ended' AND context_key <> 'later';
                 IF FOUND THEN
                     UPDATE retention_state SET slice_runs = slice_runs;
                     {done};
                 END IF;
                 RETURN NULL;
             END $$;
             CREATE TRIGGER run AFTER INSERT ON inbox EXECUTE FUNCTION run()"
        ))
        .await;
}

/// A run is over once it has removed what is due of the users of its grants: of others it sees nothing.
#[tokio::test(flavor = "multi_thread")]
async fn a_run_whose_rows_another_one_has_deleted_leaves_nobodys_rows_to_the_schedule() {
    let fixture = Fixture::new().await;
    let due = "UPDATE chat_mode_sessions SET ended_at = now() - interval '400 days' WHERE user_id = 2 AND NOT is_active";
    with_another_run(&fixture, due).await;
    let worker = fixture.run(cleaner(&fixture));
    tick(&fixture).await;
    worker.stop().await.expect("a clean end");
    assert_eq!(fixture.count("simple_chat_context WHERE session_id = 'ended'").await, 0);
}

/// Both have read the same rows, of which the first one has left some that neither has read. Its events have the sweep go on.
#[tokio::test(flavor = "multi_thread")]
async fn a_run_whose_rows_another_one_has_archived_leaves_the_slice_to_it() {
    let mut fixture = Fixture::new().await;
    let folder = with_target(&mut fixture);
    let later = "INSERT INTO simple_chat_context (id, user_id, session_id, context_key, context_value)
        VALUES (gen_random_uuid(), 1, 'ended', 'later', '1')";
    with_another_run(&fixture, later).await;
    archive(&fixture, &["simple_chat_context"]).await;
    let worker = fixture.run(cleaner(&fixture));
    tick(&fixture).await;
    worker.stop().await.expect("a clean end");
    assert_eq!(fixture.count("retention_state WHERE after_user = -1 AND pass_completed_at IS NULL").await, 1);
    assert!(files(folder.path()).is_empty(), "what it has written has no use");
}

/// Two users have more rows to archive than a run takes, and nothing else: it has grants of the one whose rows are found first.
#[tokio::test(flavor = "multi_thread")]
async fn rows_that_cannot_be_archived_keep_no_other_users_from_their_turn() {
    let mut fixture = Fixture::new().await;
    let folder = with_target(&mut fixture);
    without_schedule(&fixture).await;
    with_old_sessions(&fixture, 1..=2, 400).await;
    with_old_sessions(&fixture, 300..=300, 400).await;
    fixture
        .execute(
            "UPDATE simple_chat_context SET expires_at = NULL;
             DELETE FROM agent_context_states; DELETE FROM router_decision_log WHERE user_id < 300;
             INSERT INTO users (id, username, email) SELECT n, 'u', 'e' FROM generate_series(3, 299) AS n;
             INSERT INTO simple_chat_context (id, user_id, session_id, context_key, context_value)
                 SELECT gen_random_uuid(), u, 'ended', 'k' || n, '1' FROM generate_series(1, 2) AS u, generate_series(1, 2100) AS n",
        )
        .await;
    archive(&fixture, &["simple_chat_context"]).await;
    // A file is where the folder was.
    let path = folder.path().to_owned();
    folder.close().expect("no folder");
    std::fs::write(&path, "").expect("a file");
    let worker = fixture.run(cleaner(&fixture));
    tick(&fixture).await;
    // Of the first tick alone: once there are events, another one may run beside it, and the later of both rightly comes again.
    let minted_again = "(SELECT FROM sec.minted_job_grants GROUP BY tick HAVING count(*) > 1) AS again";
    assert_eq!(fixture.count("job_runs WHERE failure IS NOT NULL").await, 1);
    assert_eq!(fixture.count(minted_again).await, 0, "a tick that failed waits for the schedule");
    for _ in 0..7 {
        tick(&fixture).await;
    }
    worker.stop().await.expect("a clean end");
    std::fs::remove_file(&path).expect("no file");
    assert_eq!(fixture.count("router_decision_log WHERE user_id = 300").await, 0);
    assert_eq!(
        fixture.count("simple_chat_context WHERE session_id = 'ended' AND context_key = 'kept'").await,
        3
    );
    let failures = fixture.lines("failure FROM job_runs WHERE failure IS NOT NULL").await;
    assert!(
        failures.iter().all(|failure| failure.starts_with("rows of simple_chat_context stay")),
        "{failures:?}"
    );
}

/// Sweeps, with this change between the moment at which a function has found what is due and the removal. Of the other tables, which a run
/// has taken before, nothing is due.
async fn sweep_behind_a_gate(found_by: &str, others: &str, change: &str) -> Fixture {
    let fixture = Fixture::new().await;
    with_old_sessions(&fixture, 1..=2, 400).await;
    fixture
        .execute(&format!(
            "UPDATE simple_chat_context SET expires_at = NULL;
             DELETE FROM {others}; DELETE FROM router_decision_log;
             ALTER FUNCTION sec.{found_by}(integer[], timestamptz, integer, retention_action) RENAME TO found;
             CREATE FUNCTION sec.wait() RETURNS void LANGUAGE sql SECURITY DEFINER SET lock_timeout = '60s'
                 AS 'SELECT pg_advisory_xact_lock_shared(1)';
             CREATE FUNCTION sec.{found_by}(users integer[], at timestamptz, most integer, of_action retention_action DEFAULT 'delete')
             RETURNS TABLE (user_id integer, id uuid, policy_id uuid) LANGUAGE plpgsql AS $$ BEGIN
                 RETURN QUERY SELECT * FROM sec.found(users, at, most, of_action);
                 PERFORM sec.wait();
             END $$;
             GRANT EXECUTE ON FUNCTION sec.wait(), sec.{found_by}(integer[], timestamptz, integer, retention_action) TO {ROLE}"
        ))
        .await;
    let (mut gate, mut runs) = (fixture.connection().await, login(&fixture, ROLE).await);
    gate.batch_execute("SELECT pg_advisory_lock(1)").await.expect("a lock");
    let grants = [grant(0, ROLE), grant(1, ROLE), grant(2, ROLE)];
    let grants: Vec<&str> = grants.iter().map(String::as_str).collect();
    let run = runs.transaction(async |connection| {
        security::open_context_of_batch(connection, &grants, 1).await?;
        retention_cleaner::sweep(connection, Utc::now(), &[1, 2], ROWS, Uuid::now_v7()).await
    });
    let waits = "pg_locks WHERE locktype = 'advisory' AND NOT granted
        AND database = (SELECT oid FROM pg_database WHERE datname = current_database())";
    let meanwhile = async {
        eventually("the run has found its rows", async || (fixture.count(waits).await == 1).then_some(()))
            .await;
        fixture.execute(change).await;
        gate.batch_execute("SELECT pg_advisory_unlock(1)").await.expect("no lock");
    };
    let run = async { run.await.unwrap_or_else(|fault: Fault| panic!("{fault}")) };
    tokio::join!(run, meanwhile);
    fixture
}

const REOPEN: &str = "UPDATE chat_mode_sessions SET is_active = true, ended_at = NULL WHERE user_id = 1 AND session_id = 'ended'";

#[tokio::test(flavor = "multi_thread")]
async fn contexts_of_a_session_that_was_opened_again_stay() {
    let fixture = sweep_behind_a_gate("due_contexts", "agent_context_states", REOPEN).await;
    let of = "simple_chat_context WHERE session_id = 'ended' AND user_id =";
    assert_eq!((fixture.count(&format!("{of} 1")).await, fixture.count(&format!("{of} 2")).await), (2, 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn memories_of_agents_of_a_session_that_was_opened_again_stay() {
    let fixture = sweep_behind_a_gate("due_agent_contexts", "simple_chat_context", REOPEN).await;
    let of = "agent_context_states WHERE session_id = 'ended' AND user_id =";
    assert_eq!((fixture.count(&format!("{of} 1")).await, fixture.count(&format!("{of} 2")).await), (1, 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_context_that_became_persistent_stays() {
    let change =
        "UPDATE simple_chat_context SET is_persistent = true WHERE user_id = 1 AND session_id = 'ended'";
    let fixture = sweep_behind_a_gate("due_contexts", "agent_context_states", change).await;
    let of = "simple_chat_context WHERE session_id = 'ended' AND user_id =";
    assert_eq!((fixture.count(&format!("{of} 1")).await, fixture.count(&format!("{of} 2")).await), (2, 0));
}
