//! How rows of an archive are removed: those alone that nothing has changed since they were read, that no hold covers, and that nothing
//! needs. Each statement takes the users ($1), the ids ($2) and the versions ($3) of the rows, and locks one after the other, as those of a
//! run do (`steps.rs`).

use ::store::{Connection, Fault};
use diesel::QueryableByName;
use diesel::sql_types::{Array, Integer, Nullable, Text, Uuid as SqlUuid};
use diesel_async::RunQueryDsl;
use uuid::Uuid;

use super::archive::{Archived, ArchivedRow};

/// A row that was removed.
#[derive(Debug, QueryableByName)]
pub(crate) struct Gone {
    #[diesel(sql_type = Integer)]
    pub(crate) user_id: i32,
    #[diesel(sql_type = SqlUuid)]
    pub(crate) id: Uuid,
    #[diesel(sql_type = Nullable<Text>)]
    pub(crate) session_id: Option<String>,
    #[diesel(sql_type = Nullable<Text>)]
    pub(crate) context_key: Option<String>,
    #[diesel(sql_type = Nullable<Text>)]
    pub(crate) agent_id: Option<String>,
    #[diesel(sql_type = Nullable<Text>)]
    pub(crate) memory_tier: Option<String>,
}

macro_rules! archived {
    () => {
        "archived AS MATERIALIZED (SELECT i.* FROM unnest($1::integer[], $2::uuid[], $3::text[]) AS i (user_id, id, row_version))"
    };
}
/// The kinds of rows that are under a hold.
macro_rules! held {
    ($table:literal) => {
        concat!("held AS MATERIALIZED (SELECT * FROM sec.held_kinds($1, '", $table, "'))")
    };
}
/// Contexts that a sync still reads or writes stay.
macro_rules! no_sync {
    () => {
        "NOT EXISTS (SELECT FROM cross_service_memory_sync y WHERE y.user_id = s.user_id
            AND s.session_id IN (y.source_session_id, y.target_session_id) AND y.sync_status IN ('pending', 'in_progress'))"
    };
}
/// The columns of a row that is no key of a session.
macro_rules! no_key {
    () => {
        "NULL::text AS context_key, NULL::text AS agent_id, NULL::text AS memory_tier"
    };
}

/// The rows that are locked and gone. No role deletes rows by itself: with the right to do so, it might lock the table against everybody.
macro_rules! deleted {
    ($table:literal, $columns:expr) => {
        concat!(
            ", deleted AS MATERIALIZED (SELECT * FROM sec.delete_rows('",
            $table,
            "', ARRAY(SELECT user_id FROM locked), ARRAY(SELECT id FROM locked)))
            SELECT l.user_id, l.id, l.session_id::text AS session_id, ",
            $columns,
            " FROM locked l JOIN deleted g ON g.user_id = l.user_id AND g.id = l.id"
        )
    };
}

const CONTEXTS: &str = concat!(
    "WITH ",
    archived!(),
    ", ",
    held!("simple_chat_context"),
    ", locked AS MATERIALIZED (
        SELECT a.user_id, a.id, t.session_id, t.context_key FROM archived a CROSS JOIN LATERAL (
            SELECT t.user_id, t.session_id, t.context_key, t.access_level::text AS access_tier FROM simple_chat_context t
            WHERE t.user_id = a.user_id AND t.id = a.id AND t.xmin::text = a.row_version AND NOT t.is_persistent
            FOR UPDATE OF t SKIP LOCKED
        ) AS t CROSS JOIN LATERAL (
            SELECT s.user_id, s.session_id, s.chat_mode FROM chat_mode_sessions s
            WHERE s.user_id = t.user_id AND s.session_id = t.session_id AND s.is_active IS NOT TRUE
            FOR NO KEY UPDATE OF s SKIP LOCKED
        ) AS s
        WHERE NOT EXISTS (SELECT FROM held h
                WHERE h.user_id = t.user_id AND h.chat_mode = s.chat_mode AND h.access_tier = t.access_tier)
            AND ",
    no_sync!(),
    "
    )",
    deleted!(
        "simple_chat_context",
        "l.context_key::text AS context_key, NULL::text AS agent_id, NULL::text AS memory_tier"
    )
);
/// One that is of no chat session stays while a conversation is under way in its session.
const AGENT_CONTEXTS: &str = concat!(
    "WITH ",
    archived!(),
    ", ",
    held!("agent_context_states"),
    ", of_sessions AS MATERIALIZED (
        SELECT a.user_id, a.id, t.session_id, t.context_key, t.agent_id, t.access_tier FROM archived a CROSS JOIN LATERAL (
            SELECT t.user_id, t.session_id, t.context_key, t.agent_id, t.memory_tier::text AS access_tier FROM agent_context_states t
            WHERE t.user_id = a.user_id AND t.id = a.id AND t.xmin::text = a.row_version
            FOR UPDATE OF t SKIP LOCKED
        ) AS t CROSS JOIN LATERAL (
            SELECT s.user_id, s.session_id, s.chat_mode FROM chat_mode_sessions s
            WHERE s.user_id = t.user_id AND s.session_id = t.session_id AND s.is_active IS NOT TRUE
            FOR NO KEY UPDATE OF s SKIP LOCKED
        ) AS s
        WHERE NOT EXISTS (SELECT FROM held h
                WHERE h.user_id = t.user_id AND h.chat_mode = s.chat_mode AND h.access_tier = t.access_tier)
            AND ",
    no_sync!(),
    "
    ), of_none AS MATERIALIZED (
        SELECT a.user_id, a.id, t.session_id, t.context_key, t.agent_id, t.access_tier FROM archived a CROSS JOIN LATERAL (
            SELECT t.session_id, t.context_key, t.agent_id, t.memory_tier::text AS access_tier FROM agent_context_states t
            WHERE t.user_id = a.user_id AND t.id = a.id AND t.xmin::text = a.row_version
                AND NOT EXISTS (SELECT FROM chat_mode_sessions s WHERE s.user_id = t.user_id AND s.session_id = t.session_id OFFSET 0)
                AND NOT EXISTS (SELECT FROM multi_agent_conversations m
                    WHERE m.user_id = t.user_id AND m.session_id = t.session_id AND m.completed_at IS NULL OFFSET 0)
                AND NOT EXISTS (SELECT FROM held h
                    WHERE h.user_id = t.user_id AND h.chat_mode IS NULL AND h.access_tier = t.memory_tier::text)
            FOR UPDATE OF t SKIP LOCKED
        ) AS t
    ), locked AS MATERIALIZED (
        SELECT * FROM of_sessions UNION ALL SELECT * FROM of_none
    )",
    deleted!(
        "agent_context_states",
        "l.context_key::text AS context_key, l.agent_id::text AS agent_id, l.access_tier AS memory_tier"
    )
);
const DECISIONS: &str = concat!(
    "WITH ",
    archived!(),
    ", ",
    held!("router_decision_log"),
    ", locked AS MATERIALIZED (
        SELECT a.user_id, a.id, t.session_id FROM archived a CROSS JOIN LATERAL (
            SELECT t.user_id, t.session_id FROM router_decision_log t
            WHERE t.user_id = a.user_id AND t.id = a.id AND t.xmin::text = a.row_version
            FOR UPDATE OF t SKIP LOCKED
        ) AS t CROSS JOIN LATERAL (
            SELECT s.chat_mode FROM chat_mode_sessions s WHERE s.user_id = t.user_id AND s.session_id = t.session_id OFFSET 0
        ) AS s
        WHERE NOT EXISTS (SELECT FROM held h WHERE h.user_id = t.user_id AND h.chat_mode = s.chat_mode AND h.access_tier IS NULL)
    )",
    deleted!("router_decision_log", no_key!())
);
/// Events never change. The function checks again that they are due.
const EVENTS: &str = concat!(
    "SELECT e.user_id, e.id, NULL::text AS session_id, ",
    no_key!(),
    " FROM sec.forget_archived_events($2) AS e WHERE $1::integer[] IS NOT NULL AND $3::text[] IS NOT NULL"
);
/// Whoever adds a row of a session locks the session: of one that is locked here, the statement that deletes sees all rows.
const LOCK_SESSIONS: &str = concat!(
    "WITH ",
    archived!(),
    " SELECT t.user_id, t.id, NULL::text AS session_id, ",
    no_key!(),
    " FROM chat_mode_sessions t JOIN archived a ON a.user_id = t.user_id AND a.id = t.id
    WHERE t.xmin::text = a.row_version AND NOT t.is_active AND NOT EXISTS (SELECT FROM sec.held_kinds($1, 'chat_mode_sessions') AS h
                WHERE h.user_id = t.user_id AND h.chat_mode = t.chat_mode AND h.access_tier IS NULL)
    ORDER BY t.user_id, t.session_id FOR UPDATE OF t SKIP LOCKED"
);
const LOCK_SUMMARIES: &str = concat!(
    "WITH ",
    archived!(),
    " SELECT t.user_id, t.id, NULL::text AS session_id, ",
    no_key!(),
    " FROM chat_session_summary t JOIN archived a ON a.user_id = t.user_id AND a.id = t.id WHERE t.xmin::text = a.row_version
    ORDER BY t.user_id, t.id FOR UPDATE OF t SKIP LOCKED"
);
/// Of the sessions that are locked ($1, $2), those to which nothing refers but summaries that are locked ($3). The function deletes them, too.
const SESSIONS: &str = concat!(
    "WITH locked AS MATERIALIZED (
        SELECT t.user_id, t.id, t.session_id FROM unnest($1::integer[], $2::uuid[]) AS i (user_id, id)
        JOIN chat_mode_sessions t ON t.user_id = i.user_id AND t.id = i.id
        WHERE NOT EXISTS (SELECT FROM simple_chat_context r WHERE r.user_id = t.user_id AND r.session_id = t.session_id)
            AND NOT EXISTS (SELECT FROM agent_context_states r WHERE r.user_id = t.user_id AND r.session_id = t.session_id)
            AND NOT EXISTS (SELECT FROM router_decision_log r WHERE r.user_id = t.user_id AND r.session_id = t.session_id)
            AND NOT EXISTS (SELECT FROM unified_memory_vectors r WHERE r.user_id = t.user_id AND r.session_id = t.session_id)
            AND NOT EXISTS (SELECT FROM session_knowledge r WHERE r.user_id = t.user_id AND r.session_id = t.session_id)
            AND NOT EXISTS (SELECT FROM cross_service_memory_sync r WHERE r.user_id = t.user_id
                AND t.session_id IN (r.source_session_id, r.target_session_id))
            AND NOT EXISTS (SELECT FROM chat_session_summary m WHERE m.user_id = t.user_id AND m.session_id = t.session_id
                AND m.id <> ALL ($3::uuid[]))
    )",
    deleted!("chat_mode_sessions", no_key!())
);

async fn run(
    connection: &mut Connection,
    sql: &'static str,
    rows: &[ArchivedRow],
) -> Result<Vec<Gone>, Fault> {
    let query = diesel::sql_query(sql)
        .bind::<Array<Integer>, _>(rows.iter().map(|row| row.user_id).collect::<Vec<_>>())
        .bind::<Array<SqlUuid>, _>(rows.iter().map(|row| row.id).collect::<Vec<_>>())
        .bind::<Array<Text>, _>(rows.iter().map(|row| row.row_version.as_str()).collect::<Vec<_>>());
    Ok(::store::prepared(query).load(connection).await?)
}

/// Removes the rows of an archive.
pub(crate) async fn remove(connection: &mut Connection, archived: &Archived) -> Result<Vec<Gone>, Fault> {
    match archived.table.name {
        "simple_chat_context" => run(connection, CONTEXTS, &archived.rows).await,
        "agent_context_states" => run(connection, AGENT_CONTEXTS, &archived.rows).await,
        "router_decision_log" => run(connection, DECISIONS, &archived.rows).await,
        "chat_mode_sessions" => {
            let locked = run(connection, LOCK_SESSIONS, &archived.rows).await?;
            let summaries = run(connection, LOCK_SUMMARIES, &archived.parts).await?;
            let query = diesel::sql_query(SESSIONS)
                .bind::<Array<Integer>, _>(locked.iter().map(|row| row.user_id).collect::<Vec<_>>())
                .bind::<Array<SqlUuid>, _>(locked.iter().map(|row| row.id).collect::<Vec<_>>())
                .bind::<Array<SqlUuid>, _>(summaries.iter().map(|row| row.id).collect::<Vec<_>>());
            Ok(::store::prepared(query).load(connection).await?)
        }
        _ => run(connection, EVENTS, &archived.rows).await,
    }
}
