//! What agents remember, in three tiers. A higher version wins.

use chrono::{DateTime, Utc};
use contract::{AgentContextPut, AgentContextRemove, MemoryTier, Name, SessionId};
use diesel::sql_types::{Array, BigInt, Bool, Integer, Nullable, Text, Timestamptz, Uuid as SqlUuid};
use diesel_async::RunQueryDsl;
use store::{Connection, Fault};
use uuid::Uuid;

use super::{Done, Item, record, rounds};

/// A change of what an agent remembers.
#[derive(Clone, Copy)]
pub(crate) enum Change<'a> {
    Put(&'a AgentContextPut),
    Remove(&'a AgentContextRemove),
}

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

impl<'a> Change<'a> {
    fn columns(&self) -> Columns<'a> {
        match *self {
            Self::Put(put) => Columns {
                agent_id: &put.agent_id,
                session_id: &put.session_id,
                memory_tier: put.memory_tier,
                context_key: &put.context_key,
                value: Some(put.context_value.as_str()),
                is_shareable: put.is_shareable,
                expires_at: put.expires_at,
                version: put.version.get(),
                is_sensitive: put.sensitive,
            },
            Self::Remove(remove) => Columns {
                agent_id: &remove.agent_id,
                session_id: &remove.session_id,
                memory_tier: remove.memory_tier,
                context_key: &remove.context_key,
                value: None,
                is_shareable: false,
                expires_at: None,
                version: remove.version.get(),
                is_sensitive: false,
            },
        }
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
    changes: Vec<Item<'_, Change<'_>>>,
    done: &mut [Done],
) -> Result<(), Fault> {
    let key = |item: &Item<'_, Change<'_>>| {
        let Columns { session_id, agent_id, memory_tier, context_key, .. } = item.request.columns();
        (item.message.subject.user_id, session_id.clone(), agent_id.clone(), memory_tier, context_key.clone())
    };
    for round in rounds(changes, key) {
        let rows: Vec<Columns<'_>> = round.iter().map(|item| item.request.columns()).collect();
        let ids: Vec<Uuid> = rows.iter().map(|_| Uuid::now_v7()).collect();
        let stored: Vec<DateTime<Utc>> = round.iter().map(|item| item.message.stored_at).collect();
        let requests: Vec<Uuid> = round.iter().map(|item| item.message.request_id).collect();
        let users: Vec<i32> = round.iter().map(|item| item.message.subject.user_id.get()).collect();
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

fn column<'r, 'a, T>(rows: &'r [Columns<'a>], field: impl Fn(&'r Columns<'a>) -> T) -> Vec<T> {
    rows.iter().map(field).collect()
}
