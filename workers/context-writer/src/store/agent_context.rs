//! What agents remember, in three tiers. A higher version wins.

use std::sync::LazyLock;

use chrono::{DateTime, Utc};
use contract::{AgentContextPut, AgentContextRemove, MemoryTier, Name, SessionId};
use diesel_async::RunQueryDsl;
use store::unnest::{UnnestRow, with_rows};
use store::{Connection, Fault};
use uuid::Uuid;

use super::{Done, Item, record, rounds};

/// A change of what an agent remembers.
#[derive(Clone, Copy)]
pub(crate) enum Change<'a> {
    Put(&'a AgentContextPut),
    Remove(&'a AgentContextRemove),
}

impl<'a> Change<'a> {
    fn key(&self) -> (&'a SessionId, &'a SessionId, MemoryTier, &'a Name) {
        match *self {
            Self::Put(put) => (&put.session_id, &put.agent_id, put.memory_tier, &put.context_key),
            Self::Remove(remove) => {
                (&remove.session_id, &remove.agent_id, remove.memory_tier, &remove.context_key)
            }
        }
    }
}

store::unnest_row! {
    /// A row of [`WRITE`].
    struct Row<'a> {
        id: Uuid,
        user_id: i32,
        session_id: &'a str,
        agent_id: &'a str,
        memory_tier: &'a str,
        context_key: &'a str,
        context_value: Option<&'a str>,
        is_shareable: bool,
        expires_at: Option<DateTime<Utc>>,
        version: i64,
        is_sensitive: bool,
        stored_at: DateTime<Utc>,
        request_id: Uuid,
    }
}

impl<'a> Row<'a> {
    fn new(item: &Item<'a, Change<'a>>) -> Self {
        let (session_id, agent_id, memory_tier, context_key) = item.request.key();
        // What a removal leaves out is never read: the row is a tombstone.
        let row = Self {
            id: Uuid::now_v7(),
            user_id: item.message.subject.user_id.get(),
            session_id: session_id.as_str(),
            agent_id: agent_id.as_str(),
            memory_tier: memory_tier.as_str(),
            context_key: context_key.as_str(),
            context_value: None,
            is_shareable: false,
            expires_at: None,
            version: 0,
            is_sensitive: false,
            stored_at: item.message.stored_at,
            request_id: item.message.request_id,
        };
        match item.request {
            Change::Put(put) => Self {
                context_value: Some(put.context_value.as_str()),
                is_shareable: put.is_shareable,
                expires_at: put.expires_at,
                version: put.version.get(),
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
        SELECT (i.ordinal - 1)::integer AS ordinal, i.id, i.user_id, i.session_id, i.agent_id,
            i.memory_tier::memorytier AS memory_tier, i.context_key, i.context_value, i.is_shareable, i.expires_at,
            i.version, i.is_sensitive, i.stored_at, i.request_id
        FROM unnest({arrays}) WITH ORDINALITY AS i ({names}, ordinal)
        JOIN users u ON u.id = i.user_id
    ), written AS (
        INSERT INTO agent_context_states AS t (id, user_id, session_id, agent_id, memory_tier, context_key,
            context_value, is_shareable, expires_at, version, is_sensitive, request_id, created_at, updated_at, removed_at)
        SELECT id, user_id, session_id, agent_id, memory_tier, context_key, context_value::jsonb, is_shareable,
            expires_at, version, is_sensitive, request_id, stored_at, stored_at, CASE WHEN context_value IS NULL THEN stored_at END
        FROM input ORDER BY user_id, session_id, agent_id, memory_tier, context_key
        ON CONFLICT (user_id, session_id, agent_id, memory_tier, context_key) DO UPDATE SET
            context_value = excluded.context_value, is_shareable = excluded.is_shareable,
            expires_at = excluded.expires_at, version = excluded.version, is_sensitive = excluded.is_sensitive, request_id = excluded.request_id, updated_at = excluded.updated_at,
            removed_at = excluded.removed_at
        WHERE excluded.version > t.version
        RETURNING user_id, id, session_id, agent_id, memory_tier, context_key
    )
    SELECT i.ordinal, w.id AS row_id
    FROM input i LEFT JOIN written w ON w.user_id = i.user_id AND w.session_id = i.session_id
        AND w.agent_id = i.agent_id AND w.memory_tier = i.memory_tier AND w.context_key = i.context_key"
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
