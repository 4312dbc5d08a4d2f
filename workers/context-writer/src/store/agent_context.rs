//! Contexts of agents, in three tiers. The highest version wins. What syncs need is kept as in `context.rs`.

use std::sync::LazyLock;

use chrono::{DateTime, Utc};
use contract::ContextRequest as Request;
use diesel_async::RunQueryDsl;
use runtime::Message;
use store::unnest::{UnnestRow, with_rows};
use store::{Connection, Fault};
use uuid::Uuid;

use super::table::{Change, Table, Writer};
use super::{Done, Item, record, rounds};

pub(crate) static AGENT_CONTEXTS: Table =
    Table { name: "agent_context_states", writer: Writer::AgentContexts };

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
    /// The row for a request. `None` if the request does not write this table.
    fn new(message: &'a Message<Request>) -> Option<Self> {
        // Fields missing in a removal keep these defaults and are never read: the row is a tombstone.
        let row = Self {
            id: Uuid::now_v7(),
            user_id: message.user_id().get(),
            session_id: "",
            agent_id: "",
            memory_tier: "",
            context_key: "",
            context_value: None,
            is_shareable: false,
            expires_at: None,
            version: 0,
            is_sensitive: false,
            stored_at: message.stored_at,
            request_id: message.request_id,
        };
        if let Request::AgentContextPut(put) = &message.request {
            return Some(Self {
                session_id: put.session_id.as_str(),
                agent_id: put.agent_id.as_str(),
                memory_tier: put.memory_tier.as_str(),
                context_key: put.context_key.as_str(),
                context_value: Some(put.context_value.as_str()),
                is_shareable: put.is_shareable,
                expires_at: put.expires_at,
                version: put.version.get(),
                is_sensitive: put.sensitive,
                ..row
            });
        }
        let Request::AgentContextRemove(remove) = &message.request else { return None };
        Some(Self {
            session_id: remove.session_id.as_str(),
            agent_id: remove.agent_id.as_str(),
            memory_tier: remove.memory_tier.as_str(),
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
        SELECT (i.ordinal - 1)::integer AS ordinal, i.id, i.user_id, i.session_id, i.agent_id,
            i.memory_tier::memorytier AS memory_tier, i.context_key, i.context_value, i.is_shareable, i.expires_at,
            i.version, i.is_sensitive, i.stored_at, i.request_id
        FROM unnest({arrays}) WITH ORDINALITY AS i ({names}, ordinal)
        JOIN users u ON u.id = i.user_id
    ), written AS (
        INSERT INTO agent_context_states AS t (id, user_id, session_id, agent_id, memory_tier, context_key,
            context_value, is_shareable, expires_at, version, is_sensitive, request_id, created_at, updated_at, removed_at,
            writes, written_at)
        SELECT id, user_id, session_id, agent_id, memory_tier, context_key, context_value::jsonb, is_shareable,
            expires_at, version, is_sensitive, request_id, stored_at, stored_at, CASE WHEN context_value IS NULL THEN stored_at END,
            1, stored_at
        FROM input ORDER BY user_id, session_id, agent_id, memory_tier, context_key
        ON CONFLICT (user_id, session_id, agent_id, memory_tier, context_key) DO UPDATE SET
            context_value = excluded.context_value, is_shareable = excluded.is_shareable,
            expires_at = excluded.expires_at, version = excluded.version, is_sensitive = excluded.is_sensitive, request_id = excluded.request_id, updated_at = excluded.updated_at,
            removed_at = excluded.removed_at, writes = t.writes + 1, written_at = excluded.written_at,
            sync_values = CASE WHEN excluded.removed_at IS NULL THEN t.sync_values END
        WHERE excluded.version > t.version OR t.writes = 0
        RETURNING user_id, id, session_id, agent_id, memory_tier, context_key
    )
    SELECT i.ordinal, w.id AS row_id
    FROM input i LEFT JOIN written w ON w.user_id = i.user_id AND w.session_id = i.session_id
        AND w.agent_id = i.agent_id AND w.memory_tier = i.memory_tier AND w.context_key = i.context_key"
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
    for round in rounds(items, |Item { request: row, .. }| {
        (row.user_id, row.session_id, row.agent_id, row.memory_tier, row.context_key)
    }) {
        let (indexes, rows): (Vec<usize>, Vec<Row<'_>>) =
            round.into_iter().map(|item| (item.index, item.request)).unzip();
        let answers = with_rows(&WRITE, rows).load(connection).await?;
        record::mark(answers, &indexes, done);
    }
    Ok(())
}
