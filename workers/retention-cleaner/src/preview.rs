//! What runs would remove, by table and policy, without removing it.

use std::borrow::Cow;

use ::store::{Connection, Fault};
use chrono::{DateTime, Utc};
use diesel::QueryableByName;
use diesel::sql_types::{Array, BigInt, Integer, Nullable, Timestamptz, Uuid as SqlUuid};
use diesel_async::RunQueryDsl;
use uuid::Uuid;

use crate::store::sweep::{Effect, Line};

macro_rules! counted {
    ($due:literal) => {
        concat!("SELECT d.policy_id, count(*) AS rows FROM sec.", $due, " GROUP BY d.policy_id ORDER BY 1")
    };
}

/// A context that was removed and whose session is over goes with the session.
const TOMBSTONES: &str = counted!(
    "due_tombstones($1, $2, 2147483647) AS d
    WHERE d.id NOT IN (SELECT c.id FROM sec.due_contexts($1, $2, 2147483647, NULL) AS c)
        AND d.id NOT IN (SELECT c.id FROM sec.due_agent_contexts($1, $2, 2147483647, NULL) AS c)"
);
/// Sessions of which nothing is left but what goes, too.
macro_rules! sessions {
    ($action:literal) => {
        concat!(
            "
    WITH gone AS MATERIALIZED (
        SELECT d.id FROM sec.due_contexts($1, $2, 2147483647, NULL) AS d
        UNION SELECT d.id FROM sec.due_agent_contexts($1, $2, 2147483647, NULL) AS d
        UNION SELECT d.id FROM sec.due_decisions($1, $2, 2147483647, NULL) AS d WHERE d.action <> 'anonymise'
        UNION SELECT d.id FROM sec.due_syncs($1, $2, 2147483647) AS d
        UNION SELECT d.id FROM sec.due_tombstones($1, $2, 2147483647) AS d)
    SELECT r.policy_id, count(*) AS rows FROM sec.retention_rules($1, 'chat_mode_sessions') AS r
    JOIN chat_mode_sessions s ON s.user_id = r.user_id AND s.chat_mode = r.chat_mode
        AND s.ended_at <= $2 - make_interval(days => r.keep_days)
    WHERE r.access_tier IS NULL AND r.action = '",
            $action,
            "'
        AND NOT EXISTS (SELECT FROM simple_chat_context t WHERE t.user_id = s.user_id AND t.session_id = s.session_id
            AND t.id NOT IN (SELECT g.id FROM gone g))
        AND NOT EXISTS (SELECT FROM agent_context_states t WHERE t.user_id = s.user_id AND t.session_id = s.session_id
            AND t.id NOT IN (SELECT g.id FROM gone g))
        AND NOT EXISTS (SELECT FROM router_decision_log t WHERE t.user_id = s.user_id AND t.session_id = s.session_id
            AND t.id NOT IN (SELECT g.id FROM gone g))
        AND NOT EXISTS (SELECT FROM unified_memory_vectors t WHERE t.user_id = s.user_id AND t.session_id = s.session_id
            AND t.id NOT IN (SELECT g.id FROM gone g))
        AND NOT EXISTS (SELECT FROM session_knowledge t WHERE t.user_id = s.user_id AND t.session_id = s.session_id)
        AND NOT EXISTS (SELECT FROM cross_service_memory_sync t WHERE t.user_id = s.user_id
            AND s.session_id IN (t.source_session_id, t.target_session_id) AND t.id NOT IN (SELECT g.id FROM gone g))
    GROUP BY r.policy_id ORDER BY 1"
        )
    };
}

const COUNTS: &[(&str, Effect, &str)] = &[
    (
        "simple_chat_context",
        Effect::Expired,
        "SELECT NULL::uuid AS policy_id, count(*) AS rows FROM sec.due_expired_contexts($1, $2, 2147483647)",
    ),
    (
        "agent_context_states",
        Effect::Expired,
        "SELECT NULL::uuid AS policy_id, count(*) AS rows FROM sec.due_expired_agent_contexts($1, $2, 2147483647)",
    ),
    ("simple_chat_context", Effect::Deleted, counted!("due_contexts($1, $2, 2147483647) AS d")),
    ("agent_context_states", Effect::Deleted, counted!("due_agent_contexts($1, $2, 2147483647) AS d")),
    (
        "router_decision_log",
        Effect::Anonymised,
        counted!("due_decisions($1, $2, 2147483647, 'anonymise') AS d"),
    ),
    ("router_decision_log", Effect::Deleted, counted!("due_decisions($1, $2, 2147483647, 'delete') AS d")),
    ("unified_memory_vectors", Effect::Deleted, counted!("due_memories($1, $2, 2147483647) AS d")),
    ("cross_service_memory_sync", Effect::Deleted, counted!("due_syncs($1, $2, 2147483647) AS d")),
    ("tombstones", Effect::Deleted, TOMBSTONES),
    ("chat_mode_sessions", Effect::Deleted, sessions!("delete")),
    ("blackboard_events", Effect::Deleted, counted!("due_events($1, $2, 2147483647) AS d")),
    ("inbox", Effect::Deleted, counted!("due_inbox($1, $2, 2147483647) AS d")),
    ("simple_chat_context", Effect::Archived, counted!("due_contexts($1, $2, 2147483647, 'archive') AS d")),
    (
        "agent_context_states",
        Effect::Archived,
        counted!("due_agent_contexts($1, $2, 2147483647, 'archive') AS d"),
    ),
    ("router_decision_log", Effect::Archived, counted!("due_decisions($1, $2, 2147483647, 'archive') AS d")),
    ("chat_mode_sessions", Effect::Archived, sessions!("archive")),
    ("blackboard_events", Effect::Archived, counted!("due_events($1, $2, 2147483647, 'archive') AS d")),
];

/// What runs would remove of these users at a time. It locks nothing.
///
/// # Errors
/// A [`Fault`] of the database.
pub async fn preview(
    connection: &mut Connection,
    at: DateTime<Utc>,
    users: &[i32],
) -> Result<Vec<Line>, Fault> {
    #[derive(QueryableByName)]
    struct Count {
        #[diesel(sql_type = Nullable<SqlUuid>)]
        policy_id: Option<Uuid>,
        #[diesel(sql_type = BigInt)]
        rows: i64,
    }
    let mut lines = Vec::new();
    for (table, effect, sql) in COUNTS {
        let query = diesel::sql_query(*sql).bind::<Array<Integer>, _>(users).bind::<Timestamptz, _>(at);
        let counts: Vec<Count> = ::store::prepared(query).load(connection).await?;
        lines.extend(counts.into_iter().filter(|count| count.rows > 0).map(|count| Line {
            table: Cow::Borrowed(*table),
            effect: *effect,
            policy: count.policy_id,
            rows: count.rows.unsigned_abs(),
        }));
    }
    lines.sort();
    Ok(lines)
}
