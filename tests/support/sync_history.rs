//! Syncs of two users, and what they did.

use context_writer::ContextWriter;
use testkit::{Fixture, session, user};
use uuid::Uuid;

/// For users 1 and 2, each with the same: the sync 1 carried `a` (new), `b` (with a conflict), `c` (cannot be merged), `fact.d`
/// (disputed) and `e` (encrypted) from x to y; the live sync 2 from y to x carried `b`; the sync 3 from x to z shared a node, and was undone.
const ROWS: &str = r#"
INSERT INTO cross_service_memory_sync (id, user_id, source_session_id, target_session_id, sync_type, sync_status, end_reason, filter,
        crosses_private, service, rounds, data_transferred, created_at, updated_at, completed_at, undone_at)
    SELECT md5(u || 'sync' || n)::uuid, u, source, target, type::sync_type, status::sync_status, reason, filter::jsonb, n = 2, 'test', n,
        counts::jsonb, at, at + interval '1 minute', CASE WHEN n <> 2 THEN at + interval '1 minute' END,
        CASE WHEN n = 3 THEN at + interval '2 minutes' END
    FROM unnest(ARRAY[1, 2]) AS u, (VALUES
        (1, 'x', 'y', 'context_transfer', 'completed', 'carried', '{"prefixes": ["a", "b"]}',
            '{"created": 1, "merged": 3, "failed": 1, "private": 2, "conflicts": 2, "disputes": 1}'),
        (2, 'y', 'x', 'state_sync', 'in_progress', NULL, '{}', '{"fast_forwarded": 1}'),
        (3, 'x', 'z', 'knowledge_share', 'completed', 'undone', '{}', '{"references": 1}')
        ) AS v (n, source, target, type, status, reason, filter, counts),
        LATERAL (SELECT '2026-11-01 10:00+00'::timestamptz + n * interval '1 hour' AS at) AS t;
INSERT INTO sync_changes (id, user_id, sync_id, source_session_id, target_session_id, position, agent_id, memory_tier, context_key, node_id,
        effect, reason, after_digest, conflicts, disputed, is_sensitive, changed_at, undone_at)
    SELECT md5(u || 'change' || p)::uuid, u, md5(u || 'sync' || n)::uuid, source, target, u * 1000 + p, agent, tier::memorytier, key,
        CASE WHEN n = 3 THEN md5(u || 'node')::uuid END, effect, reason,
        CASE WHEN effect IN ('created', 'fast-forward', 'merged') THEN repeat('a', 64) END, conflicts::jsonb, disputed::jsonb, key = 'e',
        '2026-11-01 11:00+00'::timestamptz, CASE WHEN n = 3 THEN '2026-11-01 13:02+00'::timestamptz END
    FROM unnest(ARRAY[1, 2]) AS u, (VALUES
        (1, 1, 'x', 'y', NULL, NULL, 'a', 'created', NULL, '[]', '[]'),
        (2, 1, 'x', 'y', 'ada', 'shared', 'b', 'merged', NULL, '[{"path": "/theme", "cause": "edited", "rule": "preference",
            "base": "light", "ours": "blue", "theirs": "dark", "kept": "blue",
            "lost": [{"session_id": "x", "write": 3, "written_at": "2026-11-01T10:59:00Z", "value": "dark"}]}]', '[]'),
        (3, 1, 'x', 'y', NULL, NULL, 'c', 'failed', 'the counter at "" would be too large; lower it in one session', '[]', '[]'),
        (4, 1, 'x', 'y', NULL, NULL, 'fact.d', 'merged', NULL, '[]',
            '[{"session_id": "x", "write": 1, "written_at": "2026-11-01T10:58:00Z", "value": "vegan"},
              {"session_id": "y", "write": 2, "written_at": "2026-11-01T10:59:00Z"}]'),
        (5, 1, 'x', 'y', NULL, NULL, 'e', 'merged', NULL, '[{"path": "", "cause": "edited", "rule": "preference",
            "kept": "$encrypted",
            "lost": [{"session_id": "x", "write": 1, "written_at": "2026-11-01T10:59:00Z", "value": "$encrypted"}]}]', '[]'),
        (6, 2, 'y', 'x', NULL, NULL, 'b', 'fast-forward', NULL, '[]', '[]'),
        (7, 3, 'x', 'z', NULL, NULL, 'port', 'referenced', NULL, '[]', '[]')
        ) AS v (p, n, source, target, agent, tier, key, effect, reason, conflicts, disputed);
"#;

/// A fixture with these rows.
pub async fn filled() -> Fixture {
    let fixture = Fixture::new().await;
    let sessions = [1, 2].into_iter().flat_map(|id| ["x", "y", "z"].map(|name| session(id, name)));
    fixture.process(ContextWriter, [user(1), user(2)].into_iter().chain(sessions)).await;
    fixture.execute(ROWS).await;
    fixture
}

/// The id of a sync of a user.
pub async fn sync_id(fixture: &Fixture, user: i32, number: i32) -> Uuid {
    let query = format!(
        "id::text FROM cross_service_memory_sync WHERE user_id = {user} AND id = md5('{user}' || 'sync' || '{number}')::uuid"
    );
    fixture.lines(&query).await.remove(0).parse().expect("an id")
}
