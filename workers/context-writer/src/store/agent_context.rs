//! What agents remember, in three tiers. A higher version wins.

use chrono::{DateTime, Utc};
use contract::{ContextRequest as Request, MemoryTier, Name, SessionId};
use diesel::sql_types::{Array, BigInt, Bool, Integer, Nullable, Text, Timestamptz, Uuid as SqlUuid};
use diesel_async::RunQueryDsl;
use store::{Connection, Fault};
use uuid::Uuid;

use super::table::{Change, Table, Writer};
use super::{Done, Item, record, rounds};

pub(crate) static AGENT_CONTEXTS: Table =
    Table { name: "agent_context_states", writer: Writer::AgentContexts };

struct Columns<'a> {
    agent_id: &'a SessionId,
    session_id: &'a SessionId,
    memory_tier: MemoryTier,
    context_key: &'a Name,
    value: Option<&'a str>,
    is_shareable: bool,
    expires_at: Option<DateTime<Utc>>,
    version: i64,
    is_sensitive: bool,
}

impl<'a> Columns<'a> {
    /// Those of a request that writes this table.
    fn of(request: &'a Request) -> Option<Self> {
        if let Request::AgentContextPut(put) = request {
            return Some(Columns {
                agent_id: &put.agent_id,
                session_id: &put.session_id,
                memory_tier: put.memory_tier,
                context_key: &put.context_key,
                value: Some(put.context_value.as_str()),
                is_shareable: put.is_shareable,
                expires_at: put.expires_at,
                version: put.version.get(),
                is_sensitive: put.sensitive,
            });
        }
        let Request::AgentContextRemove(remove) = request else { return None };
        Some(Columns {
            agent_id: &remove.agent_id,
            session_id: &remove.session_id,
            memory_tier: remove.memory_tier,
            context_key: &remove.context_key,
            value: None,
            is_shareable: false,
            expires_at: None,
            version: remove.version.get(),
            is_sensitive: false,
        })
    }
}

const WRITE: &str = "
    WITH input AS (
        SELECT (i.ordinal - 1)::integer AS ordinal, i.id, i.user_id, i.session_id, i.agent_id,
            i.memory_tier::memorytier AS memory_tier, i.context_key, i.context_value, i.is_shareable, i.expires_at,
            i.version, i.is_sensitive, i.stored_at, i.request_id
        FROM unnest($1::uuid[], $2::integer[], $3::text[], $4::text[], $5::text[], $6::text[], $7::text[],
            $8::boolean[], $9::timestamptz[], $10::bigint[], $11::timestamptz[], $12::uuid[], $13::boolean[])
            WITH ORDINALITY AS i (id, user_id, session_id, agent_id, memory_tier, context_key, context_value,
            is_shareable, expires_at, version, stored_at, request_id, is_sensitive, ordinal)
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
        AND w.agent_id = i.agent_id AND w.memory_tier = i.memory_tier AND w.context_key = i.context_key";

pub(crate) async fn write(
    connection: &mut Connection,
    items: Vec<Item<'_, &Change>>,
    done: &mut [Done],
) -> Result<(), Fault> {
    let items: Vec<Item<'_, Columns<'_>>> = items
        .into_iter()
        .filter_map(|Item { index, message, .. }| {
            let request = Columns::of(&message.request)?;
            Some(Item { index, message, request })
        })
        .collect();
    let key = |item: &Item<'_, Columns<'_>>| {
        let row = &item.request;
        (
            item.message.user_id(),
            row.session_id.clone(),
            row.agent_id.clone(),
            row.memory_tier,
            row.context_key.clone(),
        )
    };
    for round in rounds(items, key) {
        let rows: Vec<&Columns<'_>> = round.iter().map(|item| &item.request).collect();
        let ids: Vec<Uuid> = rows.iter().map(|_| Uuid::now_v7()).collect();
        let stored: Vec<DateTime<Utc>> = round.iter().map(|item| item.message.stored_at).collect();
        let requests: Vec<Uuid> = round.iter().map(|item| item.message.request_id).collect();
        let users: Vec<i32> = round.iter().map(|item| item.message.user_id().get()).collect();
        let query = diesel::sql_query(WRITE)
            .bind::<Array<SqlUuid>, _>(ids)
            .bind::<Array<Integer>, _>(users)
            .bind::<Array<Text>, _>(column(&rows, |row| row.session_id.as_str()))
            .bind::<Array<Text>, _>(column(&rows, |row| row.agent_id.as_str()))
            .bind::<Array<Text>, _>(column(&rows, |row| row.memory_tier.as_str()))
            .bind::<Array<Text>, _>(column(&rows, |row| row.context_key.as_str()))
            .bind::<Array<Nullable<Text>>, _>(column(&rows, |row| row.value))
            .bind::<Array<Bool>, _>(column(&rows, |row| row.is_shareable))
            .bind::<Array<Nullable<Timestamptz>>, _>(column(&rows, |row| row.expires_at))
            .bind::<Array<BigInt>, _>(column(&rows, |row| row.version))
            .bind::<Array<Timestamptz>, _>(stored)
            .bind::<Array<SqlUuid>, _>(requests)
            .bind::<Array<Bool>, _>(column(&rows, |row| row.is_sensitive));
        let answers = store::prepared(query).load(connection).await?;
        record::note(answers, &round, done);
    }
    Ok(())
}

fn column<'r, 'a, T>(rows: &[&'r Columns<'a>], field: impl Fn(&'r Columns<'a>) -> T) -> Vec<T> {
    rows.iter().map(|row| field(row)).collect()
}
