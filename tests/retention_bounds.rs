//! How long a run of the sweep keeps rows locked, and what it reads to find out which rows are due.

use std::time::{Duration, Instant};

use chrono::Utc;
use diesel_async::{AsyncConnection as _, SimpleAsyncConnection as _};
use retention_cleaner::ROWS;
use store::{Fault, security};
use testkit::attack::{grant, login};
use testkit::{Fixture, eventually, lines_on};
use uuid::Uuid;

const ROLE: &str = "w_retention_cleaner";

/// The most that a writer waits for a row of a run. It is wide: the machine of the tests may be slow.
const MOST: Duration = Duration::from_secs(2);

/// The run is stopped where it deletes the row, which it has locked by then: the writer waits for the rest of the run.
#[tokio::test(flavor = "multi_thread")]
async fn a_writer_waits_a_short_time_for_a_row_that_a_run_deletes() {
    let fixture = Fixture::new().await;
    fixture
        .execute(&format!(
            "INSERT INTO users (id, username, email) VALUES (1, 'u', 'e');
             INSERT INTO chat_mode_sessions (id, user_id, session_id, chat_mode, is_active, ended_at)
                 VALUES (gen_random_uuid(), 1, 's', 'simple', false, now() - interval '400 days');
             INSERT INTO simple_chat_context (id, user_id, session_id, context_key, context_value)
                 SELECT gen_random_uuid(), 1, 's', 'k' || to_char(n, 'FM0000'), '1' FROM generate_series(1, {ROWS}) AS n;
             CREATE FUNCTION stop() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER AS $$ BEGIN
                 PERFORM pg_advisory_xact_lock_shared(1);
                 RETURN OLD;
             END $$;
             CREATE TRIGGER stop BEFORE DELETE ON simple_chat_context FOR EACH ROW WHEN (OLD.context_key = 'k0001')
                 EXECUTE FUNCTION stop()"
        ))
        .await;
    let (mut gate, mut runs, mut writes) =
        (fixture.connection().await, login(&fixture, ROLE).await, fixture.connection().await);
    let grants = [grant(0, ROLE), grant(1, ROLE)];
    let grants: Vec<&str> = grants.iter().map(String::as_str).collect();
    gate.batch_execute("SELECT pg_advisory_lock(1)").await.expect("a lock");
    let run = async {
        let swept = runs
            .transaction(async |connection| {
                security::open_context_of_batch(connection, &grants, 1).await?;
                retention_cleaner::sweep(connection, Utc::now(), &[1], ROWS, Uuid::now_v7()).await
            })
            .await;
        swept.unwrap_or_else(|fault: Fault| panic!("{fault}"))
    };
    let stopped = "pg_locks WHERE locktype = 'advisory' AND NOT granted
        AND database = (SELECT oid FROM pg_database WHERE datname = current_database())";
    let waits = "pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'
        AND query LIKE 'UPDATE simple_chat_context%'";
    let write = async {
        eventually("the run deletes", async || (fixture.count(stopped).await == 1).then_some(())).await;
        let update =
            writes.batch_execute("UPDATE simple_chat_context SET priority = 2 WHERE context_key = 'k0001'");
        let release = async {
            eventually("the writer waits", async || (fixture.count(waits).await == 1).then_some(())).await;
            let since = Instant::now();
            gate.batch_execute("SELECT pg_advisory_unlock(1)").await.expect("no lock");
            since
        };
        let (updated, since) = tokio::join!(update, release);
        updated.expect("an update of a row that is gone");
        since.elapsed()
    };
    let (swept, waited) = tokio::join!(run, write);
    assert_eq!(swept.changed(), u64::from(ROWS.unsigned_abs()));
    assert!(waited < MOST, "the writer waited {waited:?}");
}

/// Thirty rows of each of a thousand users, in each table. All of them are due, but sessions, to which the others refer.
const OF_MANY_USERS: &str = "
    SET session_replication_role = replica;
    INSERT INTO users (id, username, email) SELECT u, 'u', 'e' FROM generate_series(1, 1000) AS u;
    INSERT INTO chat_mode_sessions (id, user_id, session_id, chat_mode, is_active, ended_at)
        SELECT gen_random_uuid(), u, 's' || n, 'simple', false, now() - interval '1000 days'
        FROM generate_series(1, 1000) AS u, generate_series(1, 30) AS n;
    INSERT INTO simple_chat_context (id, user_id, session_id, context_key, context_value, expires_at, removed_at)
        SELECT gen_random_uuid(), u, 's' || n, 'k', CASE WHEN n > 1 THEN '1'::jsonb END,
            CASE WHEN n = 2 THEN now() - interval '1 day' END, CASE WHEN n = 1 THEN now() - interval '100 days' END
        FROM generate_series(1, 1000) AS u, generate_series(1, 30) AS n;
    INSERT INTO agent_context_states (id, user_id, session_id, agent_id, memory_tier, context_key, context_value, expires_at, removed_at,
            updated_at)
        SELECT gen_random_uuid(), u, (ARRAY['s', 'c', 'x'])[1 + n % 3] || n, 'a', 'shared', 'k', CASE WHEN n > 1 THEN '1'::jsonb END,
            CASE WHEN n = 2 THEN now() - interval '1 day' END, CASE WHEN n = 1 THEN now() - interval '100 days' END,
            now() - interval '1000 days'
        FROM generate_series(1, 1000) AS u, generate_series(1, 30) AS n;
    INSERT INTO multi_agent_conversations (id, user_id, session_id, conversation_title, started_at, completed_at)
        SELECT gen_random_uuid(), u, 'c' || n, 't', now() - interval '1001 days', now() - interval '1000 days'
        FROM generate_series(1, 1000) AS u, generate_series(1, 30) AS n;
    INSERT INTO router_decision_log (id, user_id, session_id, user_request, routing_decision, created_at)
        SELECT gen_random_uuid(), u, 's' || n, 'where?', '{}', now() - interval '1000 days'
        FROM generate_series(1, 1000) AS u, generate_series(1, 30) AS n;
    INSERT INTO unified_memory_vectors (id, user_id, vector_type, content_text, embedding_model, memory_node_id, session_id, updated_at)
        SELECT gen_random_uuid(), u, 'knowledge', 'a text', '', gen_random_uuid(), 's' || n, now() - interval '1000 days'
        FROM generate_series(1, 1000) AS u, generate_series(1, 30) AS n;
    INSERT INTO cross_service_memory_sync (id, user_id, source_session_id, target_session_id, sync_type, sync_status, data_transferred,
            created_at, completed_at)
        SELECT gen_random_uuid(), u, 's' || n, 's' || 1 + n % 30, 'context_transfer', 'completed', '{}', now() - interval '1000 days',
            now() - interval '999 days' FROM generate_series(1, 1000) AS u, generate_series(1, 30) AS n;
    INSERT INTO session_clocks (user_id, session_id) SELECT u, 's1' FROM generate_series(1, 1000) AS u;
    INSERT INTO blackboard_events (id, event_type, performative, source_agent_id, user_id, session_id, event_payload, logical_timestamp,
            created_at)
        SELECT uuid7_at(now() - interval '1000 days' + make_interval(secs => 30 * u + n)), 'context.stored', 'inform', 'x', u, 's1', '{}', 1,
            now() - interval '1000 days' FROM generate_series(1, 1000) AS u, generate_series(1, 30) AS n;
    INSERT INTO inbox (worker, user_id, message_id, event_id, received_at)
        SELECT 'context-writer', u, gen_random_uuid(), gen_random_uuid(), now() - interval '9 days'
        FROM generate_series(1, 1000) AS u, generate_series(1, 30) AS n;
    SET session_replication_role = origin;
    ANALYZE";

#[tokio::test(flavor = "multi_thread")]
async fn what_is_due_of_a_user_is_found_without_reading_the_rows_of_others() {
    const FUNCTIONS: [(&str, &str); 11] = [
        ("due_expired_contexts", ""),
        ("due_expired_agent_contexts", ""),
        ("due_contexts", ", NULL"),
        ("due_agent_contexts", ", NULL"),
        ("due_decisions", ", NULL"),
        ("due_memories", ""),
        ("due_syncs", ""),
        ("due_sessions", ", NULL"),
        ("due_tombstones", ""),
        ("due_events", ", NULL"),
        ("due_inbox", ""),
    ];
    let fixture = Fixture::new().await;
    fixture.execute(OF_MANY_USERS).await;
    for (function, more) in FUNCTIONS {
        // The server counts by connection what a transaction reads.
        let mut connection = fixture.connection().await;
        connection.batch_execute("BEGIN").await.expect("a transaction");
        let due = format!("count(*) FROM sec.{function}('{{500}}', now(), {ROWS}{more})");
        let found = lines_on(&mut connection, &due).await;
        assert_eq!(found == ["0"], function == "due_sessions", "{function}: {found:?}");
        let scanned = "concat_ws(' ', relname, seq_scan) FROM pg_stat_xact_user_tables AS t
            WHERE seq_scan > 0 AND (SELECT c.reltuples FROM pg_class c WHERE c.oid = t.relid) >= 10000 ORDER BY relname";
        assert_eq!(lines_on(&mut connection, scanned).await, Vec::<String>::new(), "{function}");
        let read = lines_on(
            &mut connection,
            "coalesce(sum(idx_tup_fetch + seq_tup_read), 0) FROM pg_stat_xact_user_tables",
        )
        .await;
        let read: i64 = read[0].parse().expect("a number");
        assert!(read < 15_000, "{function} read {read} rows");
    }
}
