//! Sessions and their summaries.

use super::table::{Table, Writer};

pub(crate) static SESSIONS: Table =
    Table { name: "chat_mode_sessions", writer: Writer::Records { put: OPEN, remove: CLOSE } };
pub(crate) static SUMMARIES: Table = Table {
    name: "chat_session_summary",
    writer: Writer::Records { put: WRITE_SUMMARIES, remove: WRITE_SUMMARIES },
};

const OPEN: &str = "
    WITH input AS (
        SELECT i.* FROM jsonb_to_recordset($1::jsonb) AS i (ordinal integer, id uuid, user_id integer,
            request_id uuid, stored_at timestamptz, session_id text, chat_mode chat_mode, configuration jsonb,
            parent_session_id text, session_metadata jsonb)
        JOIN users u ON u.id = i.user_id
    ), written AS (
        INSERT INTO chat_mode_sessions AS t (id, user_id, session_id, chat_mode, configuration, parent_session_id,
            session_metadata, request_id, created_at, updated_at)
        SELECT id, user_id, session_id, chat_mode, configuration, parent_session_id, session_metadata, request_id, stored_at,
            stored_at
        FROM input ORDER BY user_id, session_id
        ON CONFLICT (user_id, session_id) DO UPDATE SET chat_mode = excluded.chat_mode,
            configuration = excluded.configuration, parent_session_id = excluded.parent_session_id,
            session_metadata = excluded.session_metadata, is_active = true, ended_at = NULL,
            request_id = excluded.request_id, updated_at = excluded.updated_at
        WHERE excluded.updated_at >= t.updated_at
        RETURNING user_id, id, session_id
    )
    SELECT i.ordinal, w.id AS row_id
    FROM input i LEFT JOIN written w ON w.user_id = i.user_id AND w.session_id = i.session_id";

const CLOSE: &str = "
    WITH input AS (
        SELECT i.*, s.updated_at FROM jsonb_to_recordset($1::jsonb) AS i (ordinal integer, user_id integer,
            request_id uuid, stored_at timestamptz, session_id text)
        JOIN chat_mode_sessions s ON s.user_id = i.user_id AND s.session_id = i.session_id
        ORDER BY s.user_id, s.session_id FOR NO KEY UPDATE OF s
    ), written AS (
        UPDATE chat_mode_sessions t SET is_active = false, ended_at = i.stored_at, request_id = i.request_id,
            updated_at = i.stored_at
        FROM input i
        WHERE t.user_id = i.user_id AND t.session_id = i.session_id AND i.stored_at >= i.updated_at
        RETURNING t.user_id, t.id, t.session_id
    )
    SELECT i.ordinal, w.id AS row_id
    FROM input i LEFT JOIN written w ON w.user_id = i.user_id AND w.session_id = i.session_id";

const WRITE_SUMMARIES: &str = "
    WITH input AS (
        SELECT i.* FROM jsonb_to_recordset($1::jsonb) AS i (ordinal integer, id uuid, user_id integer,
            request_id uuid, stored_at timestamptz, session_id text, summary text, key_topics jsonb,
            sensitive boolean)
        JOIN chat_mode_sessions s ON s.user_id = i.user_id AND s.session_id = i.session_id
    ), written AS (
        INSERT INTO chat_session_summary AS t (id, user_id, session_id, summary, key_topics, is_sensitive, request_id, created_at, updated_at)
        SELECT id, user_id, session_id, summary, key_topics, coalesce(sensitive, false), request_id, stored_at, stored_at
        FROM input ORDER BY user_id, session_id
        ON CONFLICT (user_id, session_id) DO UPDATE SET summary = excluded.summary,
            key_topics = excluded.key_topics, is_sensitive = excluded.is_sensitive, request_id = excluded.request_id, updated_at = excluded.updated_at
        WHERE excluded.updated_at >= t.updated_at
        RETURNING user_id, id, session_id
    )
    SELECT i.ordinal, w.id AS row_id
    FROM input i LEFT JOIN written w ON w.user_id = i.user_id AND w.session_id = i.session_id";
