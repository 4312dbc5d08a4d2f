//! What syncs wrote, from their events: `sync.carried` and `sync.undone` list the keys of the target as they are stored.

use contract::{Event, EventType};
use diesel::sql_types::{Integer, Text, Timestamptz, Uuid as SqlUuid};
use diesel_async::RunQueryDsl;
use store::{Connection, Fault};
use uuid::Uuid;

/// Keys whose rows syncs wrote. Such a write changes no version, and counts none.
const CONTEXTS: &str = "
    INSERT INTO simple_chat_context AS t (id, user_id, session_id, context_key, context_value, context_type, access_level, priority,
        version, expires_at, is_persistent, is_sensitive, writes, request_id, created_at, updated_at, removed_at)
    SELECT uuid7(), $1, $2, k ->> 'context_key', k -> 'context_value', (k ->> 'context_type')::context_type,
        (k ->> 'access_level')::access_level, (k ->> 'priority')::integer, (k ->> 'version')::bigint,
        (k ->> 'expires_at')::timestamptz, (k ->> 'is_persistent')::boolean, (k ->> 'sensitive')::boolean, 0, $5, $6, $6,
        CASE WHEN NOT k ? 'context_value' THEN $6 END
    FROM jsonb_array_elements(coalesce($3::jsonb -> $4, '[]')) AS k WHERE NOT k ? 'agent_id' AND k ? 'version'
    ON CONFLICT (user_id, session_id, context_key) DO UPDATE SET context_value = excluded.context_value,
        context_type = excluded.context_type, access_level = excluded.access_level, priority = excluded.priority,
        expires_at = excluded.expires_at, is_persistent = excluded.is_persistent, is_sensitive = excluded.is_sensitive,
        request_id = excluded.request_id, updated_at = excluded.updated_at, removed_at = excluded.removed_at";
const AGENTS: &str = "
    INSERT INTO agent_context_states AS t (id, user_id, session_id, agent_id, memory_tier, context_key, context_value, version,
        expires_at, is_shareable, is_sensitive, writes, request_id, created_at, updated_at, removed_at)
    SELECT uuid7(), $1, $2, k ->> 'agent_id', (k ->> 'memory_tier')::memorytier, k ->> 'context_key', k -> 'context_value',
        (k ->> 'version')::bigint, (k ->> 'expires_at')::timestamptz, (k ->> 'is_shareable')::boolean,
        (k ->> 'sensitive')::boolean, 0, $5, $6, $6, CASE WHEN NOT k ? 'context_value' THEN $6 END
    FROM jsonb_array_elements(coalesce($3::jsonb -> $4, '[]')) AS k WHERE k ? 'agent_id' AND k ? 'version'
    ON CONFLICT (user_id, session_id, agent_id, memory_tier, context_key) DO UPDATE SET context_value = excluded.context_value,
        expires_at = excluded.expires_at, is_shareable = excluded.is_shareable, is_sensitive = excluded.is_sensitive,
        request_id = excluded.request_id, updated_at = excluded.updated_at, removed_at = excluded.removed_at";
/// Keys that are not there any more.
const GONE_CONTEXTS: &str = "
    DELETE FROM simple_chat_context t USING jsonb_array_elements(coalesce($3::jsonb -> $4, '[]')) AS k
    WHERE t.user_id = $1 AND t.session_id = $2 AND t.context_key = k ->> 'context_key' AND NOT k ? 'agent_id' AND NOT k ? 'version'";
const GONE_AGENTS: &str = "
    DELETE FROM agent_context_states t USING jsonb_array_elements(coalesce($3::jsonb -> $4, '[]')) AS k
    WHERE t.user_id = $1 AND t.session_id = $2 AND t.context_key = k ->> 'context_key' AND t.agent_id = k ->> 'agent_id'
        AND t.memory_tier::text = k ->> 'memory_tier' AND NOT k ? 'version'";

/// The member of an event's payload that lists keys, if it is one of these.
pub(crate) fn listed_in(event_type: EventType) -> Option<&'static str> {
    if event_type == EventType::SyncCarried {
        Some("keys")
    } else if event_type == EventType::SyncUndone {
        Some("restored")
    } else {
        None
    }
}

/// Writes the keys of an event.
pub(crate) async fn apply(
    connection: &mut Connection,
    event: &Event,
    member: &str,
    request_id: Uuid,
) -> Result<(), Fault> {
    // PostgreSQL keeps all digits of numbers.
    let keys = event.payload.as_str();
    for sql in [GONE_CONTEXTS, GONE_AGENTS] {
        let query = diesel::sql_query(sql)
            .bind::<Integer, _>(event.user_id.get())
            .bind::<Text, _>(&event.session_id)
            .bind::<Text, _>(keys)
            .bind::<Text, _>(member);
        query.execute(connection).await?;
    }
    for sql in [CONTEXTS, AGENTS] {
        let query = diesel::sql_query(sql)
            .bind::<Integer, _>(event.user_id.get())
            .bind::<Text, _>(&event.session_id)
            .bind::<Text, _>(keys)
            .bind::<Text, _>(member)
            .bind::<SqlUuid, _>(request_id)
            .bind::<Timestamptz, _>(event.created_at);
        query.execute(connection).await?;
    }
    Ok(())
}
