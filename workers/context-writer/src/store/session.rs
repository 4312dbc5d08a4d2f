//! Sessions and their summaries.

use contract::{SessionClose, SessionId, SessionOpen, SummaryPut};
use store::{Connection, Fault};

use super::{Done, Item, record, rounds};

/// A change of a session.
#[derive(Clone, Copy)]
pub(crate) enum Change<'a> {
    Open(&'a SessionOpen),
    Close(&'a SessionClose),
}

impl<'a> Change<'a> {
    fn session_id(&self) -> &'a SessionId {
        match self {
            Self::Open(open) => &open.session_id,
            Self::Close(close) => &close.session_id,
        }
    }
}

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

const SUMMARIES: &str = "
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

pub(crate) async fn write(
    connection: &mut Connection,
    changes: Vec<Item<'_, Change<'_>>>,
    done: &mut [Done],
) -> Result<(), Fault> {
    for round in rounds(changes, |item| (item.message.subject.user_id, item.request.session_id())) {
        let (mut opens, mut closes) = (Vec::new(), Vec::new());
        for Item { index, message, request } in round {
            match request {
                Change::Open(open) => opens.push(Item { index, message, request: open }),
                Change::Close(close) => closes.push(Item { index, message, request: close }),
            }
        }
        record::write(connection, OPEN, &opens, |_| false, done).await?;
        record::write(connection, CLOSE, &closes, |_| true, done).await?;
    }
    Ok(())
}

pub(crate) async fn write_summaries(
    connection: &mut Connection,
    summaries: Vec<Item<'_, &SummaryPut>>,
    done: &mut [Done],
) -> Result<(), Fault> {
    for round in rounds(summaries, |item| (item.message.subject.user_id, &item.request.session_id)) {
        record::write(connection, SUMMARIES, &round, |_| false, done).await?;
    }
    Ok(())
}
