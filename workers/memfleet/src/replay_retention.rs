//! What retention removed, from its events: `retention.swept` lists the keys of a session.

use contract::{Event, EventType};
use diesel::sql_types::{Integer, Text, Timestamptz, Uuid as SqlUuid};
use diesel_async::RunQueryDsl;
use store::{Connection, Fault};
use uuid::Uuid;

macro_rules! of_context {
    ($member:literal) => {
        concat!(
            " jsonb_array_elements(coalesce($3::jsonb -> '",
            $member,
            "', '[]')) AS k
            WHERE t.user_id = $1 AND t.session_id = $2 AND t.context_key = k ->> 'context_key' AND NOT k ? 'agent_id'
                AND $4::uuid IS NOT NULL AND $5::timestamptz IS NOT NULL"
        )
    };
}
macro_rules! of_agent {
    ($member:literal) => {
        concat!(
            " jsonb_array_elements(coalesce($3::jsonb -> '",
            $member,
            "', '[]')) AS k
            WHERE t.user_id = $1 AND t.session_id = $2 AND t.context_key = k ->> 'context_key' AND t.agent_id = k ->> 'agent_id'
                AND t.memory_tier::text = k ->> 'memory_tier' AND $4::uuid IS NOT NULL AND $5::timestamptz IS NOT NULL"
        )
    };
}

const STATEMENTS: [&str; 4] = [
    concat!(
        "UPDATE simple_chat_context t SET context_value = NULL, priority = 1, expires_at = NULL, is_sensitive = false, request_id = $4,
            updated_at = $5, removed_at = $5 FROM",
        of_context!("expired")
    ),
    concat!(
        "UPDATE agent_context_states t SET context_value = NULL, expires_at = NULL, is_shareable = false, is_sensitive = false,
            request_id = $4, updated_at = $5, removed_at = $5 FROM",
        of_agent!("expired")
    ),
    // What expired may be removed by the same run.
    concat!("DELETE FROM simple_chat_context t USING", of_context!("removed")),
    concat!("DELETE FROM agent_context_states t USING", of_agent!("removed")),
];

/// Whether an event says what retention removed.
pub(crate) fn removes(event_type: EventType) -> bool {
    event_type == EventType::RetentionSwept
}

/// Removes the keys of an event.
pub(crate) async fn apply(connection: &mut Connection, event: &Event, request_id: Uuid) -> Result<(), Fault> {
    for sql in STATEMENTS {
        let query = diesel::sql_query(sql)
            .bind::<Integer, _>(event.user_id.get())
            .bind::<Text, _>(&event.session_id)
            .bind::<Text, _>(event.payload.as_str())
            .bind::<SqlUuid, _>(request_id)
            .bind::<Timestamptz, _>(event.created_at);
        query.execute(connection).await?;
    }
    Ok(())
}
