//! What the preview says runs remove, and what they do remove.

use std::collections::BTreeSet;

use serde_json::Value;
use testkit::Fixture;

use crate::support::archives::with_target;
use crate::support::program::{Ended, memfleet, output};
use crate::support::retention::{
    cleaner, sweep_all, with_memories_of_no_session, with_old_sessions, without_schedule,
};

async fn run(fixture: &Fixture, arguments: &[&str]) -> Ended {
    output(memfleet(fixture, arguments)).await.into()
}

/// More of what twelve users with old sessions have: sessions of all modes, contexts of all tiers, and old rows of the other tables.
const MORE_ROWS: &str = "
    UPDATE chat_mode_sessions SET chat_mode = (enum_range(NULL::chat_mode))[1 + user_id % 4] WHERE user_id <= 12;
    UPDATE simple_chat_context SET access_level = (enum_range(NULL::access_level))[1 + user_id % 3] WHERE user_id <= 12;
    INSERT INTO simple_chat_context (id, user_id, session_id, context_key, context_value, removed_at)
        SELECT gen_random_uuid(), n, s, 'removed', NULL, now() - interval '31 days'
        FROM generate_series(1, 12) AS n, unnest(ARRAY['open', 'ended']) AS s;
    INSERT INTO agent_context_states (id, user_id, session_id, agent_id, memory_tier, context_key, context_value, removed_at, updated_at)
        SELECT gen_random_uuid(), n, s, 'a', 'private', 'removed', NULL, now() - interval '31 days', now() - interval '31 days'
        FROM generate_series(1, 12) AS n, unnest(ARRAY['ended', 'old', 'somewhere']) AS s;
    INSERT INTO consensus_memory_nodes (id, user_id, node_type, node_key, title, content)
        SELECT gen_random_uuid(), n, 'memory', 'm', 'm', '{}' FROM generate_series(1, 12) AS n;
    INSERT INTO unified_memory_vectors (id, user_id, vector_type, content_text, embedding_model, memory_node_id, session_id, updated_at)
        SELECT gen_random_uuid(), m.user_id, 'knowledge', 'a text', '', m.id, s, now() - interval '800 days'
        FROM consensus_memory_nodes m, unnest(ARRAY['open', NULL]) AS s;
    INSERT INTO unified_memory_vectors (id, user_id, vector_type, content_text, embedding_model, point_count, session_id, removed_at)
        SELECT gen_random_uuid(), n, 'knowledge', '', '', 0, 'ended', now() - interval '31 days' FROM generate_series(1, 12) AS n;
    INSERT INTO cross_service_memory_sync (id, user_id, source_session_id, target_session_id, sync_type, sync_status, data_transferred,
            created_at, completed_at)
        SELECT gen_random_uuid(), n, 'ended', 'open', 'context_transfer', 'completed', '{}', now() - interval '200 days',
            now() - interval '190 days' FROM generate_series(1, 12) AS n;
    INSERT INTO session_clocks (user_id, session_id) SELECT n, 'ended' FROM generate_series(1, 12) AS n;
    INSERT INTO blackboard_events (id, event_type, performative, source_agent_id, user_id, session_id, event_payload, logical_timestamp,
            created_at)
        SELECT uuid7_at(now() - interval '731 days' + make_interval(secs => n)), 'context.stored', 'inform', 'x', n, 'ended', '{}', 1,
            now() - interval '731 days' FROM generate_series(1, 12) AS n;
    INSERT INTO inbox (worker, user_id, message_id, event_id, received_at)
        SELECT 'context-writer', n, gen_random_uuid(), gen_random_uuid(), now() - interval '9 days' FROM generate_series(1, 12) AS n";

/// Policies and holds of most of them, by mode and tier.
const POLICIES: &str = "
    INSERT INTO data_retention_policies (id, user_id, table_name, chat_mode, access_tier, keep_days, action)
        SELECT gen_random_uuid(), p.user_id, p.table_name, p.chat_mode::chat_mode, p.tier, p.days, p.action::retention_action FROM (VALUES
            (2, 'simple_chat_context', NULL, 'public', 1000, 'delete'),
            (3, 'simple_chat_context', 'socratic', 'private', 10, 'archive'),
            (4, 'cross_service_memory_sync', NULL, NULL, 400, 'delete'),
            (5, 'router_decision_log', NULL, NULL, 30, 'anonymise'),
            (7, 'agent_context_states', NULL, NULL, 20, 'archive'),
            (7, 'agent_context_states', NULL, 'shared', 1000, 'delete'),
            (8, 'chat_mode_sessions', NULL, NULL, 100, 'archive'),
            (9, 'router_decision_log', 'smart-router', NULL, 50, 'archive'),
            (10, 'blackboard_events', NULL, NULL, 300, 'archive'),
            (11, 'unified_memory_vectors', 'socratic', NULL, 900, 'delete'),
            (12, 'tombstones', NULL, NULL, 40, 'delete'),
            (12, 'inbox', NULL, NULL, 10, 'delete')
        ) AS p (user_id, table_name, chat_mode, tier, days, action);
    INSERT INTO retention_holds (id, user_id, table_name, chat_mode, access_tier, reason) VALUES
        (gen_random_uuid(), 6, 'simple_chat_context', NULL, NULL, 'x'),
        (gen_random_uuid(), 1, NULL, NULL, 'private', 'x')";

/// The lines of a preview, each as a text.
fn counted(preview: &Value) -> Vec<String> {
    let mut counted: Vec<String> = preview["lines"]
        .as_array()
        .expect("lines")
        .iter()
        .map(|line| {
            let word = |name: &str| line[name].as_str().unwrap_or_default().to_owned();
            [word("table"), word("effect"), word("policy"), line["rows"].to_string()]
                .into_iter()
                .filter(|word| !word.is_empty())
                .collect::<Vec<_>>()
                .join(" ")
        })
        .collect();
    counted.sort();
    counted
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dry_run_counts_what_the_runs_remove() {
    let mut fixture = Fixture::new().await;
    let _folder = with_target(&mut fixture);
    without_schedule(&fixture).await;
    with_old_sessions(&fixture, 1..=20, 400).await;
    with_old_sessions(&fixture, 21..=30, 100).await;
    with_memories_of_no_session(&fixture, 1..=12).await;
    fixture.execute(MORE_ROWS).await;
    fixture.execute(POLICIES).await;
    let dry = run(&fixture, &["retention", "run", "--dry-run", "--json"]).await;
    assert!(dry.is_success(), "{}", dry.all());
    let dry: Value = serde_json::from_str(&dry.out).expect("JSON");
    assert_eq!(fixture.count("job_runs").await, 0, "it changes nothing");
    let worker = fixture.run(cleaner(&fixture));
    sweep_all(&fixture).await;
    worker.stop().await.expect("a clean end");
    assert_eq!(fixture.count("job_runs WHERE failure IS NOT NULL").await, 0);
    let mut done = fixture
        .lines(
            "concat_ws(' ', l ->> 'table', l ->> 'effect', l ->> 'policy', sum((l ->> 'rows')::bigint))
             FROM job_runs r, jsonb_array_elements(r.details -> 'lines') AS l
             GROUP BY l ->> 'table', l ->> 'effect', l ->> 'policy' ORDER BY 1",
        )
        .await;
    done.sort();
    let lines = counted(&dry);
    assert_eq!(lines, done);
    // All tables, and all that may become of their rows.
    let kinds: BTreeSet<String> =
        lines.iter().map(|line| line.split(' ').take(2).collect::<Vec<_>>().join(" ")).collect();
    assert_eq!(
        kinds.into_iter().collect::<Vec<_>>(),
        [
            "agent_context_states archived",
            "agent_context_states deleted",
            "agent_context_states expired",
            "blackboard_events archived",
            "blackboard_events deleted",
            "chat_mode_sessions archived",
            "chat_mode_sessions deleted",
            "cross_service_memory_sync deleted",
            "inbox deleted",
            "router_decision_log anonymised",
            "router_decision_log archived",
            "router_decision_log deleted",
            "simple_chat_context archived",
            "simple_chat_context deleted",
            "simple_chat_context expired",
            "tombstones deleted",
            "unified_memory_vectors deleted",
        ]
    );
    let again = run(&fixture, &["retention", "preview"]).await;
    assert_eq!(again.out, "nothing is due\n", "{}", again.all());
}
