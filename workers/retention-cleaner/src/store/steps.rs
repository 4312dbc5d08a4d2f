//! The statements of a run, in their order: children before the rows that they refer to.
//!
//! Each takes the users ($1), the time ($2), the most rows ($3) and the id of the tick ($4), and gives a row for each row that it
//! changed, beside the number of rows that were due; one row without a user if it changed none. A row that another transaction holds is
//! left out, and what is changed is checked again under its lock.
//!
//! The rows are locked one after the other, in a subquery for each, so that each is found by its id, and its session by its name. As a join, a
//! statement might read all rows of a user who has many more. No row is waited for, so their order does not matter. With `NOT is_active`, a
//! session might be looked up by another index: hence `is_active IS NOT TRUE`.

use super::sweep::Effect;

/// A statement of a run.
pub(crate) struct Step {
    /// The table, as policies name it.
    pub(crate) table: &'static str,
    pub(crate) effect: Effect,
    pub(crate) sql: &'static str,
}

macro_rules! statement {
    ($due:literal, $($part:expr),+) => {
        concat!(
            "WITH due AS MATERIALIZED (SELECT * FROM sec.", $due, " AND $4::uuid IS NOT NULL), ",
            $($part,)+
            " SELECT f.found, c.user_id, c.session_id::text AS session_id, c.context_key::text AS context_key,
                c.agent_id::text AS agent_id, c.memory_tier::text AS memory_tier, c.policy_id
            FROM (SELECT count(*) AS found FROM due) AS f LEFT JOIN changed c ON true"
        )
    };
}

/// The columns of `changed` for a row that is no key of a session.
macro_rules! no_key {
    () => {
        "NULL::text AS context_key, NULL::text AS agent_id, NULL::text AS memory_tier"
    };
}

/// The rows that are locked and gone. No role deletes rows by itself: with the right to do so, it might lock the table against everybody.
macro_rules! deleted {
    ($table:literal) => {
        concat!(
            "deleted AS MATERIALIZED (SELECT * FROM sec.delete_rows('",
            $table,
            "', ARRAY(SELECT user_id FROM locked), ARRAY(SELECT id FROM locked)))"
        )
    };
}
/// The columns of the rows that are gone.
macro_rules! gone {
    ($columns:expr) => {
        concat!(
            ", changed AS (SELECT l.user_id, l.session_id, l.policy_id, ",
            $columns,
            " FROM locked l JOIN deleted g ON g.user_id = l.user_id AND g.id = l.id)"
        )
    };
}

/// As context-writer removes a key, but without another version: the next put of its publisher is a later one.
const EXPIRE_CONTEXTS: &str = statement!(
    "due_expired_contexts($1, $2, $3) WHERE true",
    "locked AS MATERIALIZED (
        SELECT d.user_id, d.id FROM due d CROSS JOIN LATERAL (
            SELECT FROM simple_chat_context t
            WHERE t.user_id = d.user_id AND t.id = d.id AND t.removed_at IS NULL AND t.expires_at <= $2
            FOR UPDATE OF t SKIP LOCKED
        ) AS t
    ), changed AS (
        UPDATE simple_chat_context t SET context_value = NULL, priority = 1, expires_at = NULL, is_sensitive = false, request_id = $4,
            updated_at = $2, removed_at = $2, writes = t.writes + 1, written_at = $2, sync_values = NULL
        FROM locked l WHERE t.user_id = l.user_id AND t.id = l.id
        RETURNING t.user_id, t.session_id, t.context_key, NULL::text AS agent_id, NULL::text AS memory_tier, NULL::uuid AS policy_id
    )"
);
const EXPIRE_AGENT_CONTEXTS: &str = statement!(
    "due_expired_agent_contexts($1, $2, $3) WHERE true",
    "locked AS MATERIALIZED (
        SELECT d.user_id, d.id FROM due d CROSS JOIN LATERAL (
            SELECT FROM agent_context_states t
            WHERE t.user_id = d.user_id AND t.id = d.id AND t.removed_at IS NULL AND t.expires_at <= $2
            FOR UPDATE OF t SKIP LOCKED
        ) AS t
    ), changed AS (
        UPDATE agent_context_states t SET context_value = NULL, expires_at = NULL, is_shareable = false, is_sensitive = false,
            request_id = $4, updated_at = $2, removed_at = $2, writes = t.writes + 1, written_at = $2, sync_values = NULL
        FROM locked l WHERE t.user_id = l.user_id AND t.id = l.id
        RETURNING t.user_id, t.session_id, t.context_key, t.agent_id, t.memory_tier, NULL::uuid AS policy_id
    )"
);
/// A session that is opened again meanwhile keeps its contexts; its row is locked, too.
const DELETE_CONTEXTS: &str = statement!(
    "due_contexts($1, $2, $3) WHERE true",
    "locked AS MATERIALIZED (
        SELECT d.user_id, d.id, d.policy_id, t.session_id, t.context_key FROM due d CROSS JOIN LATERAL (
            SELECT t.user_id, t.session_id, t.context_key FROM simple_chat_context t
            WHERE t.user_id = d.user_id AND t.id = d.id AND NOT t.is_persistent
            FOR UPDATE OF t SKIP LOCKED
        ) AS t CROSS JOIN LATERAL (
            SELECT FROM chat_mode_sessions s
            WHERE s.user_id = t.user_id AND s.session_id = t.session_id AND s.is_active IS NOT TRUE
            FOR NO KEY UPDATE OF s SKIP LOCKED
        ) AS s
    ), ",
    deleted!("simple_chat_context"),
    gone!("l.context_key, NULL::text AS agent_id, NULL::text AS memory_tier")
);
/// One that is of no chat session stays if it is written meanwhile.
const DELETE_AGENT_CONTEXTS: &str = statement!(
    "due_agent_contexts($1, $2, $3) WHERE true",
    "of_sessions AS MATERIALIZED (
        SELECT d.user_id, d.id, d.policy_id, t.session_id, t.context_key, t.agent_id, t.memory_tier FROM due d CROSS JOIN LATERAL (
            SELECT t.user_id, t.session_id, t.context_key, t.agent_id, t.memory_tier FROM agent_context_states t
            WHERE t.user_id = d.user_id AND t.id = d.id
            FOR UPDATE OF t SKIP LOCKED
        ) AS t CROSS JOIN LATERAL (
            SELECT FROM chat_mode_sessions s
            WHERE s.user_id = t.user_id AND s.session_id = t.session_id AND s.is_active IS NOT TRUE
            FOR NO KEY UPDATE OF s SKIP LOCKED
        ) AS s
    ), seen AS MATERIALIZED (
        SELECT d.user_id, d.id, d.policy_id, t.updated_at FROM due d CROSS JOIN LATERAL (
            SELECT t.updated_at FROM agent_context_states t
            WHERE t.user_id = d.user_id AND t.id = d.id AND NOT EXISTS (SELECT FROM chat_mode_sessions s
                WHERE s.user_id = t.user_id AND s.session_id = t.session_id OFFSET 0)
            OFFSET 0
        ) AS t
    ), of_none AS MATERIALIZED (
        SELECT n.user_id, n.id, n.policy_id, t.session_id, t.context_key, t.agent_id, t.memory_tier FROM seen n CROSS JOIN LATERAL (
            SELECT t.session_id, t.context_key, t.agent_id, t.memory_tier FROM agent_context_states t
            WHERE t.user_id = n.user_id AND t.id = n.id AND t.updated_at = n.updated_at
            FOR UPDATE OF t SKIP LOCKED
        ) AS t
    ), locked AS MATERIALIZED (
        SELECT * FROM of_sessions UNION ALL SELECT * FROM of_none
    ), ",
    deleted!("agent_context_states"),
    gone!("l.context_key, l.agent_id, l.memory_tier")
);
const DELETE_DECISIONS: &str = statement!(
    "due_decisions($1, $2, $3, 'delete') WHERE true",
    "locked AS MATERIALIZED (
        SELECT d.user_id, d.id, d.policy_id, t.session_id FROM due d CROSS JOIN LATERAL (
            SELECT t.session_id FROM router_decision_log t
            WHERE t.user_id = d.user_id AND t.id = d.id
            FOR UPDATE OF t SKIP LOCKED
        ) AS t
    ), ",
    deleted!("router_decision_log"),
    gone!(no_key!())
);
/// The numbers stay, by which routes are compared. A ciphertext goes with the mark that there is one.
const ANONYMISE_DECISIONS: &str = statement!(
    "due_decisions($1, $2, $3, 'anonymise') WHERE true",
    "locked AS MATERIALIZED (
        SELECT d.user_id, d.id, d.policy_id FROM due d CROSS JOIN LATERAL (
            SELECT FROM router_decision_log t
            WHERE t.user_id = d.user_id AND t.id = d.id AND t.anonymised_at IS NULL
            FOR UPDATE OF t SKIP LOCKED
        ) AS t
    ), changed AS (
        UPDATE router_decision_log t SET user_request = '[anonymised]', routing_decision = '{}', tools_invoked = '[]', error_details = NULL,
            is_sensitive = false, anonymised_at = $2, request_id = $4
        FROM locked l WHERE t.user_id = l.user_id AND t.id = l.id
        RETURNING t.user_id, t.session_id, l.policy_id, ",
    no_key!(),
    ")"
);
/// As vector-indexer removes a memory. Its points are deleted by the next run.
const REMOVE_MEMORIES: &str = statement!(
    "due_memories($1, $2, $3) WHERE true",
    "locked AS MATERIALIZED (
        SELECT d.user_id, d.id, d.policy_id FROM due d CROSS JOIN LATERAL (
            SELECT FROM unified_memory_vectors t
            WHERE t.user_id = d.user_id AND t.id = d.id AND t.updated_at = d.updated_at
            FOR UPDATE OF t SKIP LOCKED
        ) AS t
    ), changed AS (
        UPDATE unified_memory_vectors t SET content_text = '', speaker = NULL, preceding_text = NULL,
            has_points = t.has_points OR t.qdrant_point_id IS NOT NULL, qdrant_point_id = NULL, point_count = 0, content_hash = NULL,
            content_words = '', metadata = '{}', relevance_score = NULL, updated_at = $2, removed_at = $2, request_id = $4
        FROM locked l WHERE t.user_id = l.user_id AND t.id = l.id
        RETURNING t.user_id, t.session_id, l.policy_id, ",
    no_key!(),
    ")"
);
/// With what they have changed, which the function deletes, so that nobody undoes a part of one: as many as have 20,000 changes together, and
/// one in any case.
const DELETE_SYNCS: &str = statement!(
    "due_syncs($1, $2, $3) WHERE true",
    "found AS MATERIALIZED (
        SELECT d.user_id, d.id, d.policy_id, t.session_id FROM due d CROSS JOIN LATERAL (
            SELECT t.source_session_id AS session_id FROM cross_service_memory_sync t
            WHERE t.user_id = d.user_id AND t.id = d.id AND t.sync_status IN ('completed', 'failed')
            FOR UPDATE OF t SKIP LOCKED
        ) AS t
    ), counted AS (
        SELECT l.*, row_number() OVER w AS place, sum(c.number) OVER w AS total FROM found l
        CROSS JOIN LATERAL (SELECT count(*) AS number FROM sync_changes h WHERE h.user_id = l.user_id AND h.sync_id = l.id) AS c
        WINDOW w AS (ORDER BY l.user_id, l.id)
    ), locked AS MATERIALIZED (
        SELECT user_id, id, policy_id, session_id FROM counted WHERE place = 1 OR total <= 20000
    ), ",
    deleted!("cross_service_memory_sync"),
    gone!(no_key!())
);
/// Whoever adds a row of a session locks the session: of one that is locked here, the next statement sees all rows.
pub(crate) const LOCK_SESSIONS: &str = "
    SELECT t.id FROM chat_mode_sessions t JOIN sec.due_sessions($1, $2, $3) AS d ON d.user_id = t.user_id AND d.id = t.id
    WHERE NOT t.is_active ORDER BY t.user_id, t.session_id FOR UPDATE OF t SKIP LOCKED";
/// Takes the sessions that are locked, too ($5). The function deletes their summaries with them.
pub(crate) const DELETE_SESSIONS: &str = statement!(
    "due_sessions($1, $2, $3) WHERE true",
    "locked AS MATERIALIZED (
        SELECT t.user_id, t.id, t.session_id, d.policy_id FROM chat_mode_sessions t JOIN due d ON d.user_id = t.user_id AND d.id = t.id
        WHERE t.id = ANY ($5::uuid[])
    ), ",
    deleted!("chat_mode_sessions"),
    gone!(no_key!())
);
const FORGET_CONTEXTS: &str = statement!(
    "due_tombstones($1, $2, $3) WHERE table_name = 'simple_chat_context'",
    "locked AS MATERIALIZED (
        SELECT d.user_id, d.id, d.policy_id, t.session_id, t.context_key FROM due d CROSS JOIN LATERAL (
            SELECT t.session_id, t.context_key FROM simple_chat_context t
            WHERE t.user_id = d.user_id AND t.id = d.id AND t.removed_at IS NOT NULL AND t.sync_state IS NULL
            FOR UPDATE OF t SKIP LOCKED
        ) AS t
    ), ",
    deleted!("simple_chat_context"),
    gone!("l.context_key, NULL::text AS agent_id, NULL::text AS memory_tier")
);
const FORGET_AGENT_CONTEXTS: &str = statement!(
    "due_tombstones($1, $2, $3) WHERE table_name = 'agent_context_states'",
    "locked AS MATERIALIZED (
        SELECT d.user_id, d.id, d.policy_id, t.session_id, t.context_key, t.agent_id, t.memory_tier FROM due d CROSS JOIN LATERAL (
            SELECT t.session_id, t.context_key, t.agent_id, t.memory_tier FROM agent_context_states t
            WHERE t.user_id = d.user_id AND t.id = d.id AND t.removed_at IS NOT NULL AND t.sync_state IS NULL
            FOR UPDATE OF t SKIP LOCKED
        ) AS t
    ), ",
    deleted!("agent_context_states"),
    gone!("l.context_key, l.agent_id, l.memory_tier")
);
const FORGET_MEMORIES: &str = statement!(
    "due_tombstones($1, $2, $3) WHERE table_name = 'unified_memory_vectors'",
    "locked AS MATERIALIZED (
        SELECT d.user_id, d.id, d.policy_id, t.session_id FROM due d CROSS JOIN LATERAL (
            SELECT t.session_id FROM unified_memory_vectors t
            WHERE t.user_id = d.user_id AND t.id = d.id AND t.removed_at IS NOT NULL AND NOT t.has_points
            FOR UPDATE OF t SKIP LOCKED
        ) AS t
    ), ",
    deleted!("unified_memory_vectors"),
    gone!(no_key!())
);
/// Of functions of the database that find and delete rows themselves, which are no keys of sessions.
macro_rules! forgotten {
    ($columns:literal, $from:literal) => {
        concat!(
            "WITH changed AS MATERIALIZED (SELECT ",
            $columns,
            ", ",
            no_key!(),
            " FROM ",
            $from,
            " AND $4::uuid IS NOT NULL)
            SELECT f.found, c.user_id, c.session_id, c.context_key, c.agent_id, c.memory_tier, c.policy_id
            FROM (SELECT count(*) AS found FROM changed) AS f LEFT JOIN changed c ON true"
        )
    };
}
/// The database removes what is due now, whatever the time of the sweep is.
const DELETE_EVENTS: &str = forgotten!(
    "e.*",
    "sec.forget_events($3) AS e WHERE $1::integer[] IS NOT NULL AND $2::timestamptz IS NOT NULL"
);
const DELETE_INBOX: &str = forgotten!(
    "e.user_id, NULL::text AS session_id, e.policy_id",
    "sec.forget_inbox($1, $2, $3) AS e WHERE true"
);

/// All of them but those of sessions, which come last.
pub(crate) const STEPS: &[Step] = &[
    Step { table: "simple_chat_context", effect: Effect::Expired, sql: EXPIRE_CONTEXTS },
    Step { table: "agent_context_states", effect: Effect::Expired, sql: EXPIRE_AGENT_CONTEXTS },
    Step { table: "simple_chat_context", effect: Effect::Deleted, sql: DELETE_CONTEXTS },
    Step { table: "agent_context_states", effect: Effect::Deleted, sql: DELETE_AGENT_CONTEXTS },
    Step { table: "router_decision_log", effect: Effect::Anonymised, sql: ANONYMISE_DECISIONS },
    Step { table: "router_decision_log", effect: Effect::Deleted, sql: DELETE_DECISIONS },
    Step { table: "unified_memory_vectors", effect: Effect::Deleted, sql: REMOVE_MEMORIES },
    Step { table: "cross_service_memory_sync", effect: Effect::Deleted, sql: DELETE_SYNCS },
    Step { table: "tombstones", effect: Effect::Deleted, sql: FORGET_CONTEXTS },
    Step { table: "tombstones", effect: Effect::Deleted, sql: FORGET_AGENT_CONTEXTS },
    Step { table: "tombstones", effect: Effect::Deleted, sql: FORGET_MEMORIES },
    Step { table: "blackboard_events", effect: Effect::Deleted, sql: DELETE_EVENTS },
    Step { table: "inbox", effect: Effect::Deleted, sql: DELETE_INBOX },
];
