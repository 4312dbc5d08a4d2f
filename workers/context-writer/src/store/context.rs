//! Contexts of sessions: the busiest table. A higher version wins.

use std::sync::LazyLock;

use chrono::{DateTime, Utc};
use contract::{AccessLevel, ContextPut, ContextRemove, ContextType, Name, SessionId};
use diesel_async::RunQueryDsl;
use store::unnest::{UnnestRow, with_rows};
use store::{Connection, Fault};
use uuid::Uuid;

use super::{Done, Item, record, rounds};

/// A change of a context.
#[derive(Clone, Copy)]
pub(crate) enum Change<'a> {
    Put(&'a ContextPut),
    Remove(&'a ContextRemove),
}

impl<'a> Change<'a> {
    fn key(&self) -> (&'a SessionId, &'a Name) {
        match *self {
            Self::Put(put) => (&put.session_id, &put.context_key),
            Self::Remove(remove) => (&remove.session_id, &remove.context_key),
        }
    }
}

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
    fn new(item: &Item<'a, Change<'a>>) -> Self {
        let (session_id, context_key) = item.request.key();
        // What a removal leaves out takes its default and is never read: the row is a tombstone.
        let row = Self {
            id: Uuid::now_v7(),
            user_id: item.message.subject.user_id.get(),
            session_id: session_id.as_str(),
            context_key: context_key.as_str(),
            context_value: None,
            context_type: ContextType::default().as_str(),
            access_level: AccessLevel::default().as_str(),
            priority: 1,
            version: 0,
            expires_at: None,
            is_persistent: false,
            is_sensitive: false,
            stored_at: item.message.stored_at,
            request_id: item.message.request_id,
        };
        match item.request {
            Change::Put(put) => Self {
                context_value: Some(put.context_value.as_str()),
                context_type: put.context_type.as_str(),
                access_level: put.access_level.as_str(),
                // Its bounds are those of the type.
                priority: i32::try_from(put.priority.get()).unwrap_or(1),
                version: put.version.get(),
                expires_at: put.expires_at,
                is_persistent: put.is_persistent,
                is_sensitive: put.sensitive,
                ..row
            },
            Change::Remove(remove) => Self { version: remove.version.get(), ..row },
        }
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
            access_level, priority, version, expires_at, is_persistent, is_sensitive, request_id, created_at, updated_at, removed_at)
        SELECT id, user_id, session_id, context_key, context_value::jsonb, context_type::context_type,
            access_level::access_level, priority, version, expires_at, is_persistent, is_sensitive, request_id, stored_at, stored_at,
            CASE WHEN context_value IS NULL THEN stored_at END
        FROM input ORDER BY user_id, session_id, context_key
        ON CONFLICT (user_id, session_id, context_key) DO UPDATE SET context_value = excluded.context_value,
            context_type = excluded.context_type, access_level = excluded.access_level,
            priority = excluded.priority, version = excluded.version, expires_at = excluded.expires_at,
            is_persistent = excluded.is_persistent, is_sensitive = excluded.is_sensitive, request_id = excluded.request_id, updated_at = excluded.updated_at,
            removed_at = excluded.removed_at
        WHERE excluded.version > t.version
        RETURNING user_id, id, session_id, context_key
    )
    SELECT i.ordinal, w.id AS row_id
    FROM input i LEFT JOIN written w
        ON w.user_id = i.user_id AND w.session_id = i.session_id AND w.context_key = i.context_key"
    )
});

pub(crate) async fn write(
    connection: &mut Connection,
    changes: Vec<Item<'_, Change<'_>>>,
    done: &mut [Done],
) -> Result<(), Fault> {
    for round in rounds(changes, |item| (item.message.subject.user_id, item.request.key())) {
        let rows = round.iter().map(Row::new).collect();
        let answers = with_rows(&WRITE, rows).load(connection).await?;
        record::note(answers, &round, done);
    }
    Ok(())
}
