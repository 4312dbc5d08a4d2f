//! Contexts of sessions, the table with the most writes. The highest version wins.
//!
//! `writes` counts what the session itself has put or removed; memory-sync tells from it what it has not carried yet. A row that only
//! syncs have written has no version of its session's publisher, so any put replaces it. A removed key keeps its type and access level,
//! by which its removal crosses or stays, and no value in what syncs know of it.

use std::sync::LazyLock;

use chrono::{DateTime, Utc};
use contract::{AccessLevel, ContextRequest as Request, ContextType};
use diesel_async::RunQueryDsl;
use runtime::Message;
use store::unnest::{UnnestRow, with_rows};
use store::{Connection, Fault};
use uuid::Uuid;

use super::table::{Change, Table, Writer};
use super::{Done, Item, record, rounds};

pub(crate) static CONTEXTS: Table = Table { name: "simple_chat_context", writer: Writer::Contexts };

store::unnest_row! {
    /// A row of [`WRITE`].
    struct Row<'a> {
        id: Uuid,
        user_id: i32,
        session_id: &'a str,
        context_key: &'a str,
        context_value: Option<&'a str>,
        context_type: &'a str,
        access_level: &'a str,
        priority: i32,
        version: i64,
        expires_at: Option<DateTime<Utc>>,
        is_persistent: bool,
        is_sensitive: bool,
        stored_at: DateTime<Utc>,
        request_id: Uuid,
    }
}

impl<'a> Row<'a> {
    /// The row for a request. `None` if the request does not write this table.
    fn new(message: &'a Message<Request>) -> Option<Self> {
        // Fields missing in a removal keep these defaults: the row is a tombstone.
        let row = Self {
            id: Uuid::now_v7(),
            user_id: message.user_id().get(),
            session_id: "",
            context_key: "",
            context_value: None,
            context_type: ContextType::default().as_str(),
            access_level: AccessLevel::default().as_str(),
            priority: 1,
            version: 0,
            expires_at: None,
            is_persistent: false,
            is_sensitive: false,
            stored_at: message.stored_at,
            request_id: message.request_id,
        };
        if let Request::ContextPut(put) = &message.request {
            return Some(Self {
                session_id: put.session_id.as_str(),
                context_key: put.context_key.as_str(),
                context_value: Some(put.context_value.as_str()),
                context_type: put.context_type.as_str(),
                access_level: put.access_level.as_str(),
                // The conversion cannot fail: the type limits the range of priorities.
                priority: i32::try_from(put.priority.get()).unwrap_or(1),
                version: put.version.get(),
                expires_at: put.expires_at,
                is_persistent: put.is_persistent,
                is_sensitive: put.sensitive,
                ..row
            });
        }
        let Request::ContextRemove(remove) = &message.request else { return None };
        Some(Self {
            session_id: remove.session_id.as_str(),
            context_key: remove.context_key.as_str(),
            version: remove.version.get(),
            ..row
        })
    }
}

static WRITE: LazyLock<String> = LazyLock::new(|| {
    let (arrays, names) = (Row::arrays(1), Row::names());
    format!(
        "WITH input AS (
        SELECT (i.ordinal - 1)::integer AS ordinal, i.id, i.user_id, i.session_id, i.context_key, i.context_value,
            i.context_type, i.access_level, i.priority, i.version, i.expires_at, i.is_persistent, i.is_sensitive,
            i.stored_at, i.request_id
        FROM unnest({arrays}) WITH ORDINALITY AS i ({names}, ordinal)
        JOIN chat_mode_sessions s ON s.user_id = i.user_id AND s.session_id = i.session_id
    ), written AS (
        INSERT INTO simple_chat_context AS t (id, user_id, session_id, context_key, context_value, context_type,
            access_level, priority, version, expires_at, is_persistent, is_sensitive, request_id, created_at, updated_at, removed_at,
            writes, written_at)
        SELECT id, user_id, session_id, context_key, context_value::jsonb, context_type::context_type,
            access_level::access_level, priority, version, expires_at, is_persistent, is_sensitive, request_id, stored_at, stored_at,
            CASE WHEN context_value IS NULL THEN stored_at END, 1, stored_at
        FROM input ORDER BY user_id, session_id, context_key
        ON CONFLICT (user_id, session_id, context_key) DO UPDATE SET context_value = excluded.context_value,
            context_type = CASE WHEN excluded.removed_at IS NULL THEN excluded.context_type ELSE t.context_type END,
            access_level = CASE WHEN excluded.removed_at IS NULL THEN excluded.access_level ELSE t.access_level END,
            priority = excluded.priority, version = excluded.version, expires_at = excluded.expires_at,
            is_persistent = excluded.is_persistent, is_sensitive = excluded.is_sensitive, request_id = excluded.request_id, updated_at = excluded.updated_at,
            removed_at = excluded.removed_at, writes = t.writes + 1, written_at = excluded.written_at,
            sync_values = CASE WHEN excluded.removed_at IS NULL THEN t.sync_values END
        WHERE excluded.version > t.version OR t.writes = 0
        RETURNING user_id, id, session_id, context_key
    )
    SELECT i.ordinal, w.id AS row_id
    FROM input i LEFT JOIN written w
        ON w.user_id = i.user_id AND w.session_id = i.session_id AND w.context_key = i.context_key"
    )
});

pub(crate) async fn write(
    connection: &mut Connection,
    items: Vec<Item<'_, &Change>>,
    done: &mut [Done],
) -> Result<(), Fault> {
    let items: Vec<Item<'_, Row<'_>>> = items
        .into_iter()
        .filter_map(|Item { index, message, .. }| Some(Item { index, message, request: Row::new(message)? }))
        .collect();
    for round in rounds(items, |Item { request: row, .. }| (row.user_id, row.session_id, row.context_key)) {
        let (indexes, rows): (Vec<usize>, Vec<Row<'_>>) =
            round.into_iter().map(|item| (item.index, item.request)).unzip();
        let answers = with_rows(&WRITE, rows).load(connection).await?;
        record::mark(answers, &indexes, done);
    }
    Ok(())
}
