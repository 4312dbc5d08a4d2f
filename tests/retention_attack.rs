//! Retention under attack: by the role of its worker, and by services that set policies and holds or fill sessions.

use chrono::Utc;
use diesel::QueryableByName;
use diesel::sql_types::BigInt;
use diesel_async::{AsyncConnection as _, AsyncPgConnection, SimpleAsyncConnection as _};
use retention_cleaner::RetentionCleaner;
use serde_json::json;
use store::{job_grants, security};
use testkit::attack::{assert_refused, attempt, attempt_for, grant, login};
use testkit::{Fixture, eventually, request};
use uuid::Uuid;

use crate::support::retention::{cleaner, job, sweep_all, tick, with_old_sessions, without_schedule};
use crate::support::ticks::publish_tick;

const ROLE: &str = "w_retention_cleaner";

/// Under the grants of a tick, of which the platform's is always one, a role could make rows of everybody due.
#[tokio::test(flavor = "multi_thread")]
async fn no_job_changes_policies_or_holds() {
    let fixture = Fixture::new().await;
    with_old_sessions(&fixture, 1..=2, 400).await;
    fixture
        .execute("INSERT INTO retention_holds (id, user_id, reason) SELECT gen_random_uuid(), n, 'case 7' FROM unnest(ARRAY[0, 2]) AS n")
        .await;
    let mut worker = login(&fixture, ROLE).await;
    let minted = job_grants::mint(&mut worker, job(), Uuid::now_v7(), 10).await.expect("grants");
    let minted: Vec<String> = minted.into_iter().map(|grant| grant.grant).collect();
    let put = "INSERT INTO data_retention_policies (id, user_id, table_name, keep_days, action)
        VALUES (gen_random_uuid(), 0, 'simple_chat_context', 1, 'delete')
        ON CONFLICT (user_id, table_name, chat_mode, access_tier) DO UPDATE SET keep_days = 1";
    let moved = "UPDATE data_retention_policies SET user_id = 1 WHERE user_id = 0";
    let released = "UPDATE retention_holds SET released_at = now()";
    for sql in [put, moved, released] {
        assert_refused(attempt_for(&mut worker, &minted, sql).await, "is changed by requests", sql);
    }
    // Beside the grant of a request, they are still of the platform alone.
    let mut of_user = minted;
    of_user.push(grant(1, ROLE));
    assert_refused(attempt_for(&mut worker, &of_user, moved).await, "is changed by requests", moved);
    let own = put.replace("(gen_random_uuid(), 0,", "(gen_random_uuid(), 1,");
    attempt_for(&mut worker, &of_user, &own).await.expect("a request of user 1");
    attempt_for(&mut worker, &[grant(0, ROLE)], put).await.expect("a request of the platform");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_carried_out_is_no_policy_whoever_writes_it() {
    let fixture = Fixture::new().await;
    fixture.execute("INSERT INTO users (id, username, email) VALUES (1, 'u', 'e')").await;
    let mut administrator = fixture.connection().await;
    for (table, days, action) in [
        ("inbox", 7, "delete"),
        ("tombstones", 7, "delete"),
        ("blackboard_events", 7, "delete"),
        ("simple_chat_context", 7, "anonymise"),
    ] {
        let sql = format!(
            "INSERT INTO data_retention_policies (id, user_id, table_name, keep_days, action)
             VALUES (gen_random_uuid(), 1, '{table}', {days}, '{action}')"
        );
        assert_refused(attempt(&mut administrator, &sql).await, "can_be_carried_out", &sql);
    }
}

/// To find out whose rows are due takes a time that does not depend on how many holds and policies there are.
#[tokio::test(flavor = "multi_thread")]
async fn many_holds_and_policies_keep_nobodys_rows() {
    let fixture = Fixture::new().await;
    with_old_sessions(&fixture, 1..=200, 400).await;
    fixture
        .execute(
            "INSERT INTO retention_holds (id, user_id, table_name, reason)
                 SELECT gen_random_uuid(), n % 201, 'inbox', 'x' FROM generate_series(1, 20000) AS n;
             INSERT INTO data_retention_policies (id, user_id, table_name, keep_days, action)
                 SELECT gen_random_uuid(), n, t, 300, 'delete' FROM generate_series(1, 200) AS n,
                     unnest(ARRAY['simple_chat_context', 'agent_context_states', 'chat_mode_sessions', 'router_decision_log']) AS t",
        )
        .await;
    let mut connection = fixture.connection().await;
    connection.batch_execute("SET statement_timeout = '10s'").await.expect("a setting");
    attempt(&mut connection, "SELECT FROM sec.due_retention_sweep(1000)").await.expect("within the time");
    assert_eq!(
        fixture.count("sec.due_retention_sweep(1000) AS u WHERE u > 0").await,
        199,
        "of the first 200 users, 0 is one"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_with_the_longest_keys_is_swept() {
    let fixture = Fixture::new().await;
    without_schedule(&fixture).await;
    with_old_sessions(&fixture, 1..=2, 400).await;
    fixture
        .execute(
            "INSERT INTO agent_context_states (id, user_id, session_id, agent_id, memory_tier, context_key, context_value)
             SELECT gen_random_uuid(), 1, 'ended', repeat('𝔘', 100), 'shared', repeat('𝔘', 250) || n, '1'
             FROM generate_series(1, 2500) AS n",
        )
        .await;
    let worker = fixture.run(cleaner(&fixture));
    sweep_all(&fixture).await;
    worker.stop().await.expect("a clean end");
    assert_eq!(fixture.count("agent_context_states WHERE session_id = 'ended'").await, 0);
    assert_eq!(fixture.count("job_runs WHERE failure IS NOT NULL").await, 0);
    let told = "blackboard_events e, jsonb_array_elements(e.event_payload -> 'removed') AS k
        WHERE e.event_type = 'retention.swept' AND k ->> 'context_key' LIKE '𝔘%'";
    assert_eq!(fixture.count(told).await, 2500);
}

/// The grants of a run are minted by the first 2,000 due rows of a kind: while there are as many, others may be due.
#[tokio::test(flavor = "multi_thread")]
async fn who_has_many_due_rows_keeps_nobody_out_of_a_pass() {
    let fixture = Fixture::new().await;
    without_schedule(&fixture).await;
    fixture
        .execute(
            "INSERT INTO users (id, username, email) SELECT n, 'u', 'e' FROM generate_series(1, 2) AS n;
             INSERT INTO chat_mode_sessions (id, user_id, session_id, chat_mode)
                 SELECT gen_random_uuid(), n, 's', 'simple' FROM generate_series(1, 2) AS n;
             INSERT INTO router_decision_log (id, user_id, session_id, user_request, routing_decision, created_at)
                 SELECT gen_random_uuid(), CASE WHEN n > 2500 THEN 2 ELSE 1 END, 's', 'where?', '{}', now() - interval '181 days'
                 FROM generate_series(1, 5000) AS n;
             ANALYZE router_decision_log",
        )
        .await;
    let due = fixture.lines("u FROM sec.due_retention_sweep(1000) AS u").await;
    assert!(due == ["0", "1"] || due == ["0", "2"], "{due:?}");
    let worker = fixture.run(cleaner(&fixture));
    for _ in 0..20 {
        tick(&fixture).await;
        if fixture.count("retention_state WHERE pass_completed_at IS NOT NULL").await == 1 {
            break;
        }
    }
    assert_eq!(fixture.count("retention_state WHERE pass_completed_at IS NOT NULL").await, 1);
    assert_eq!(fixture.count("router_decision_log").await, 0);
    worker.stop().await.expect("a clean end");
}

/// A run takes 100 rows of users who have ten thousand of a kind each, and looks at few of the others.
#[tokio::test(flavor = "multi_thread")]
async fn a_run_looks_at_few_of_the_rows_of_a_user_who_has_many() {
    let fixture = Fixture::new().await;
    without_schedule(&fixture).await;
    fixture
        .execute(
            "SET session_replication_role = replica;
             INSERT INTO users (id, username, email) SELECT n, 'u', 'e' FROM generate_series(1, 6) AS n;
             INSERT INTO chat_mode_sessions (id, user_id, session_id, chat_mode, is_active, ended_at)
                 SELECT gen_random_uuid(), n, 's' || s, 'simple', false, now() - interval '100 days'
                 FROM generate_series(1, 6) AS n, generate_series(0, 99) AS s;
             INSERT INTO simple_chat_context (id, user_id, session_id, context_key, context_value, expires_at)
                 SELECT gen_random_uuid(), u, 's' || n % 100, n, '1', CASE u WHEN 2 THEN now() - interval '1 minute' END
                 FROM generate_series(1, 10000) AS n, generate_series(1, 2) AS u;
             INSERT INTO agent_context_states (id, user_id, session_id, agent_id, memory_tier, context_key, context_value, updated_at)
                 SELECT gen_random_uuid(), u, CASE u WHEN 3 THEN 's' ELSE 'none' END || n % 100, 'a', 'shared', n, '1', now() - interval '200 days'
                 FROM generate_series(1, 10000) AS n, generate_series(3, 4) AS u;
             INSERT INTO router_decision_log (id, user_id, session_id, user_request, routing_decision, created_at)
                 SELECT gen_random_uuid(), 5, 's' || n % 100, 'where?', '{}', now() - interval '181 days' FROM generate_series(1, 10000) AS n;
             INSERT INTO unified_memory_vectors (id, user_id, session_id, vector_type, content_text, embedding_model, point_count, updated_at,
                     memory_node_id)
                 SELECT gen_random_uuid(), 6, 's' || n % 100, 'knowledge', '', '', 0, now() - interval '800 days', gen_random_uuid()
                 FROM generate_series(1, 10000) AS n;
             RESET session_replication_role;
             ANALYZE",
        )
        .await;
    for user in 1..=6 {
        let grants = [grant(0, ROLE), grant(user, ROLE)];
        let grants: Vec<&str> = grants.iter().map(String::as_str).collect();
        // The role itself may not read the figures of the server.
        let mut administrator = fixture.connection().await;
        let (changed, read) = administrator
            .transaction(async |connection| {
                connection.batch_execute(&format!("SET SESSION AUTHORIZATION {ROLE}")).await?;
                security::open_context_of_batch(connection, &grants, 1).await?;
                let swept =
                    retention_cleaner::sweep(connection, Utc::now(), &[user], 100, Uuid::now_v7()).await?;
                connection.batch_execute("RESET SESSION AUTHORIZATION").await?;
                Ok::<_, store::Fault>((swept.changed(), rows_read(connection).await?))
            })
            .await
            .unwrap_or_else(|fault| panic!("{fault}"));
        assert_eq!(changed, 100, "user {user}");
        // A delete of 100 may look at all of ten thousand: that costs as much as an index for each.
        assert!(read < 15_000, "user {user}: {read} rows were read");
    }
}

/// The rows of tables of users that the transaction has read.
async fn rows_read(connection: &mut AsyncPgConnection) -> Result<i64, store::Fault> {
    use diesel_async::RunQueryDsl as _;
    #[derive(QueryableByName)]
    struct Read {
        #[diesel(sql_type = BigInt)]
        read: i64,
    }
    let query = "SELECT coalesce(sum(seq_tup_read + coalesce(idx_tup_fetch, 0)), 0)::bigint AS read FROM pg_stat_xact_user_tables
        WHERE relname IN ('simple_chat_context', 'agent_context_states', 'router_decision_log', 'unified_memory_vectors',
            'chat_mode_sessions')";
    let read: Read = diesel::sql_query(query).get_result(connection).await?;
    Ok(read.read)
}

/// One tick is enough for all that is due: each run is followed by another one while something is removed, past users who have nothing
/// due, and past the last one.
#[tokio::test(flavor = "multi_thread")]
async fn a_backlog_is_removed_without_further_ticks() {
    let fixture = Fixture::new().await;
    without_schedule(&fixture).await;
    fixture
        .execute(
            "INSERT INTO users (id, username, email) SELECT n, 'u', 'e' FROM generate_series(1, 800) AS n;
             INSERT INTO chat_mode_sessions (id, user_id, session_id, chat_mode)
                 SELECT gen_random_uuid(), n, 's', 'simple' FROM generate_series(1, 800) AS n;
             INSERT INTO router_decision_log (id, user_id, session_id, user_request, routing_decision, created_at)
                 SELECT gen_random_uuid(), 1 + n % 5 + u, 's', 'where?', '{}', now() - interval '181 days'
                 FROM generate_series(1, 5000) AS n, unnest(ARRAY[0, 600]) AS u;
             UPDATE retention_state SET after_user = 600;
             ANALYZE router_decision_log",
        )
        .await;
    let worker = fixture.run(cleaner(&fixture));
    publish_tick(&fixture, job()).await;
    eventually("nothing is due", async || (fixture.count("router_decision_log").await == 0).then_some(()))
        .await;
    assert_eq!(fixture.count("retention_state WHERE pass_completed_at IS NOT NULL").await, 1);
    worker.stop().await.expect("a clean end");
}

/// A slice that has shrunk to one user, and finds nothing there, does not end the sweep before those behind it.
#[tokio::test(flavor = "multi_thread")]
async fn a_small_slice_without_due_rows_does_not_end_the_sweep() {
    let fixture = Fixture::new().await;
    without_schedule(&fixture).await;
    fixture
        .execute(
            "INSERT INTO users (id, username, email) SELECT n, 'u', 'e' FROM generate_series(1, 60) AS n;
             INSERT INTO chat_mode_sessions (id, user_id, session_id, chat_mode)
                 SELECT gen_random_uuid(), n, 's', 'simple' FROM generate_series(1, 60) AS n;
             INSERT INTO router_decision_log (id, user_id, session_id, user_request, routing_decision, created_at)
                 SELECT gen_random_uuid(), n, 's', 'where?', '{}', now() - interval '181 days' FROM generate_series(50, 60) AS n;
             UPDATE retention_state SET after_user = 0, slice_users = 1",
        )
        .await;
    let worker = fixture.run(cleaner(&fixture));
    publish_tick(&fixture, job()).await;
    eventually("nothing is due", async || (fixture.count("router_decision_log").await == 0).then_some(()))
        .await;
    worker.stop().await.expect("a clean end");
}

/// A run that got its grants before another one moved on to the next users does not leave these unseen.
#[tokio::test(flavor = "multi_thread")]
async fn two_runs_at_once_pass_over_nobody() {
    let fixture = Fixture::new().await;
    without_schedule(&fixture).await;
    fixture
        .execute(
            "INSERT INTO users (id, username, email) SELECT n, 'u', 'e' FROM generate_series(1, 2) AS n;
             INSERT INTO chat_mode_sessions (id, user_id, session_id, chat_mode) VALUES (gen_random_uuid(), 2, 's', 'simple');
             INSERT INTO unified_memory_vectors (id, user_id, vector_type, content_text, embedding_model, point_count, removed_at, has_points)
                 VALUES (gen_random_uuid(), 1, 'knowledge', '', '', 0, now(), true);
             INSERT INTO router_decision_log (id, user_id, session_id, user_request, routing_decision, created_at)
                 VALUES (gen_random_uuid(), 2, 's', 'where?', '{}', now() - interval '181 days');
             UPDATE retention_state SET after_user = 0, slice_users = 1",
        )
        .await;
    let mut other = fixture.connection().await;
    other
        .batch_execute("BEGIN; LOCK TABLE vector_collections IN ACCESS EXCLUSIVE MODE")
        .await
        .expect("the other run");
    let mut settings = fixture.settings.clone();
    settings.postgres.lock_timeout_ms = 60_000;
    let worker = fixture.run(RetentionCleaner::open(&settings).expect("the worker"));
    publish_tick(&fixture, job()).await;
    let waiting = format!(
        "pg_stat_activity WHERE datname = current_database() AND usename = '{ROLE}' AND wait_event_type = 'Lock'"
    );
    eventually("a run has the grants of the first user", async || {
        (fixture.count(&waiting).await > 0).then_some(())
    })
    .await;
    other.batch_execute("UPDATE retention_state SET after_user = 1; COMMIT").await.expect("the next slice");
    eventually("its end", async || (fixture.count("job_runs").await == 1).then_some(())).await;
    tick(&fixture).await;
    assert_eq!(fixture.count("router_decision_log").await, 0);
    worker.stop().await.expect("a clean end");
}

/// The outcome of a hold says that nothing is removed from then on.
#[tokio::test(flavor = "multi_thread")]
async fn a_hold_waits_for_the_run_that_began_without_it() {
    let fixture = Fixture::new().await;
    without_schedule(&fixture).await;
    with_old_sessions(&fixture, 1..=1, 400).await;
    let mut run = fixture.connection().await;
    run.batch_execute("BEGIN; SELECT FROM retention_state FOR UPDATE").await.expect("a run");
    let worker = fixture.run(cleaner(&fixture));
    let hold = json!({ "hold_id": Uuid::now_v7(), "reason": "case 7" });
    fixture.publish([request("policy.hold", 1, hold)]).await;
    let waiting = format!(
        "pg_stat_activity WHERE datname = current_database() AND usename = '{ROLE}' AND wait_event_type = 'Lock'"
    );
    eventually("the hold waits", async || (fixture.count(&waiting).await > 0).then_some(())).await;
    assert_eq!(fixture.count("retention_holds").await, 0);
    run.batch_execute("COMMIT").await.expect("its end");
    eventually("the hold is stored", async || (fixture.count("retention_holds").await == 1).then_some(()))
        .await;
    worker.stop().await.expect("a clean end");
    assert_eq!(fixture.dead_letters().await, Vec::<String>::new());
}

/// If not even its grants can be minted, a sweep passes over the user whose rows are why.
#[tokio::test(flavor = "multi_thread")]
async fn a_sweep_that_cannot_begin_passes_over_one_user() {
    let fixture = Fixture::new().await;
    with_old_sessions(&fixture, 1..=2, 400).await;
    let mut worker = login(&fixture, ROLE).await;
    let state = "concat_ws(' ', after_user, slice_users) FROM retention_state";
    for expected in ["-1 1", "0 1", "1 1", "2 1", "-1 1"] {
        let note = "SELECT sec.note_job_run('retention-sweep', gen_random_uuid(), now(), 0, 0, 0, 'it took too long', '{}')";
        attempt(&mut worker, note).await.expect("a note");
        assert_eq!(fixture.lines(state).await, [expected]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_notes_a_run_in_the_place_of_anothers() {
    let fixture = Fixture::new().await;
    let tick = Uuid::now_v7();
    let note =
        |job: &str| format!("SELECT sec.note_job_run('{job}', '{tick}', now(), 1, 1, 0, NULL, '{{}}')");
    let mut other = login(&fixture, "w_memory_sync").await;
    attempt(&mut other, &note("sync-carry")).await.expect("a run of its own job");
    let mut worker = login(&fixture, ROLE).await;
    attempt(&mut worker, &note(job())).await.expect("a run of its own job");
    assert_eq!(fixture.lines("job FROM job_runs ORDER BY job").await, ["retention-sweep", "sync-carry"]);
    // A worker to come may note its runs, too.
    let noting =
        "pg_proc p WHERE p.proname = 'note_job_run' AND p.oid::regprocedure = ANY (sec.worker_functions())";
    assert_eq!(fixture.count(noting).await, 1);
}

/// A history goes as a whole, or an undo would restore a part of it; many of them go in several runs.
#[tokio::test(flavor = "multi_thread")]
async fn syncs_go_with_all_that_they_changed_and_few_of_them_at_a_time() {
    let fixture = Fixture::new().await;
    without_schedule(&fixture).await;
    fixture
        .execute(
            "INSERT INTO users (id, username, email) VALUES (1, 'u', 'e');
             INSERT INTO chat_mode_sessions (id, user_id, session_id, chat_mode)
                 SELECT gen_random_uuid(), 1, s, 'simple' FROM unnest(ARRAY['a', 'b']) AS s;
             INSERT INTO cross_service_memory_sync (id, user_id, source_session_id, target_session_id, sync_type, sync_status,
                     data_transferred, created_at, completed_at)
                 SELECT gen_random_uuid(), 1, 'a', 'b', 'context_transfer', 'completed', '{}', now() - interval '200 days',
                     now() - interval '190 days' FROM generate_series(1, 5);
             INSERT INTO sync_changes (id, user_id, sync_id, source_session_id, target_session_id, context_key, effect)
                 SELECT gen_random_uuid(), 1, y.id, 'a', 'b', 'k' || n, 'referenced'
                 FROM cross_service_memory_sync y, generate_series(1, 9000) AS n",
        )
        .await;
    let worker = fixture.run(cleaner(&fixture));
    sweep_all(&fixture).await;
    worker.stop().await.expect("a clean end");
    assert_eq!(fixture.count("cross_service_memory_sync").await, 0);
    assert_eq!(fixture.count("sync_changes").await, 0);
    let deleted = "l ->> 'rows' FROM job_runs r, jsonb_array_elements(r.details -> 'lines') AS l
        WHERE l ->> 'table' = 'cross_service_memory_sync' ORDER BY r.started_at";
    assert_eq!(fixture.lines(deleted).await, ["2", "2", "1"]);
}
