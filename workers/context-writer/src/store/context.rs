//! Contexts of sessions: the busiest table. A higher version wins.

use chrono::{DateTime, Utc};
use contract::{AccessLevel, ContextRequest as Request, ContextType, Name, SessionId};
use diesel::sql_types::{Array, BigInt, Bool, Integer, Nullable, Text, Timestamptz, Uuid as SqlUuid};
use diesel_async::RunQueryDsl;
use store::{Connection, Fault};
use uuid::Uuid;

use super::table::{Change, Table, Writer};
use super::{Done, Item, record, rounds};

pub(crate) static CONTEXTS: Table = Table { name: "simple_chat_context", writer: Writer::Contexts };

/// Everything a row is made of. What a removal leaves out takes its default and is never read: the row is a
/// tombstone.
struct Columns<'a> {
    session_id: &'a SessionId,
    context_key: &'a Name,
    value: Option<&'a str>,
    context_type: ContextType,
    access_level: AccessLevel,
    priority: i32,
    version: i64,
    expires_at: Option<DateTime<Utc>>,
    is_persistent: bool,
    is_sensitive: bool,
}

impl<'a> Columns<'a> {
    /// Those of a request that writes this table.
    fn of(request: &'a Request) -> Option<Self> {
        if let Request::ContextPut(put) = request {
            return Some(Columns {
                session_id: &put.session_id,
                context_key: &put.context_key,
                value: Some(put.context_value.as_str()),
                context_type: put.context_type,
                access_level: put.access_level,
                // Its bounds are those of the type.
                priority: i32::try_from(put.priority.get()).unwrap_or(1),
                version: put.version.get(),
                expires_at: put.expires_at,
                is_persistent: put.is_persistent,
                is_sensitive: put.sensitive,
            });
        }
        let Request::ContextRemove(remove) = request else { return None };
        Some(Columns {
            session_id: &remove.session_id,
            context_key: &remove.context_key,
            value: None,
            context_type: ContextType::default(),
            access_level: AccessLevel::default(),
            priority: 1,
            version: remove.version.get(),
            expires_at: None,
            is_persistent: false,
            is_sensitive: false,
        })
    }
}

/// The statement, for measuring what the database alone can do with it.
pub const WRITE: &str = "
    WITH input AS (
        SELECT (i.ordinal - 1)::integer AS ordinal, i.id, i.user_id, i.session_id, i.context_key, i.context_value,
            i.context_type, i.access_level, i.priority, i.version, i.expires_at, i.is_persistent, i.is_sensitive,
            i.stored_at, i.request_id
        FROM unnest($1::uuid[], $2::integer[], $3::text[], $4::text[], $5::text[], $6::text[], $7::text[],
            $8::integer[], $9::bigint[], $10::timestamptz[], $11::boolean[], $12::timestamptz[], $13::uuid[], $14::boolean[])
            WITH ORDINALITY AS i (id, user_id, session_id, context_key, context_value, context_type, access_level,
            priority, version, expires_at, is_persistent, stored_at, request_id, is_sensitive, ordinal)
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
        ON w.user_id = i.user_id AND w.session_id = i.session_id AND w.context_key = i.context_key";

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
        (item.message.user_id(), row.session_id.clone(), row.context_key.clone())
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
            .bind::<Array<Text>, _>(column(&rows, |row| row.context_key.as_str()))
            .bind::<Array<Nullable<Text>>, _>(column(&rows, |row| row.value))
            .bind::<Array<Text>, _>(column(&rows, |row| row.context_type.as_str()))
            .bind::<Array<Text>, _>(column(&rows, |row| row.access_level.as_str()))
            .bind::<Array<Integer>, _>(column(&rows, |row| row.priority))
            .bind::<Array<BigInt>, _>(column(&rows, |row| row.version))
            .bind::<Array<Nullable<Timestamptz>>, _>(column(&rows, |row| row.expires_at))
            .bind::<Array<Bool>, _>(column(&rows, |row| row.is_persistent))
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
