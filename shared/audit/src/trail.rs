//! The audit trail of one user.

use chrono::{DateTime, Utc};
use diesel::prelude::*;
use diesel::sql_types::{Array, BigInt, Integer, Nullable, Text, Timestamptz, Uuid as SqlUuid};
use diesel_async::{AsyncPgConnection, RunQueryDsl};
use serde::Serialize;
use store::Fault;
use store::schema::subjects;
use uuid::Uuid;

/// An entry of the audit trail.
#[derive(Clone, Debug, QueryableByName, Serialize)]
pub struct TrailEntry {
    /// When the transaction began.
    #[diesel(sql_type = Timestamptz)]
    pub occurred_at: DateTime<Utc>,
    /// `insert`, `update`, `delete`, `event`, `access` or `refused`.
    #[diesel(sql_type = Text)]
    pub operation: String,
    /// The table; for an access, the object that was read; for an event, its type.
    #[diesel(sql_type = Nullable<Text>)]
    pub object: Option<String>,
    /// The row.
    #[diesel(sql_type = Nullable<SqlUuid>)]
    pub row_id: Option<Uuid>,
    /// For an update, the changed columns; for an access, its type and row count; for a refusal, its type and reason.
    #[diesel(sql_type = Array<Text>)]
    pub details: Vec<String>,
    /// The service; several if the transaction acted for the user through several services. For a refusal
    /// `claimed:<service>`, since only the role says so.
    #[diesel(sql_type = Nullable<Text>)]
    pub service: Option<String>,
    /// The database role.
    #[diesel(sql_type = Nullable<Text>)]
    pub role_name: Option<String>,
    /// The id of the request.
    #[diesel(sql_type = Nullable<SqlUuid>)]
    pub request_id: Option<Uuid>,
    /// The id of the entry.
    #[diesel(sql_type = SqlUuid)]
    pub id: Uuid,
}

/// The last `limit` entries about a user, newest first. None if the trail does not know the user: the user never
/// existed, or was erased together with the link between the user and the entries.
///
/// # Errors
/// A [`Fault`] of the database.
pub async fn trail(
    connection: &mut AsyncPgConnection,
    user_id: i32,
    limit: u32,
) -> Result<Option<Vec<TrailEntry>>, Fault> {
    // Each part is limited by its index before the parts are merged.
    const TRAIL: &str = "
        (SELECT occurred_at, lower(operation::text) AS operation, table_name::text AS object, row_id,
            changed_columns AS details, service, role_name, request_id, id
        FROM audit.audit_log WHERE subject_token = $1 ORDER BY id DESC LIMIT $2)
        UNION ALL
        (SELECT occurred_at, 'access', object_name, NULL, ARRAY[access_type::text, rows_returned || ' rows'], service,
            role_name, request_id, id
        FROM audit.data_access_log WHERE subject_token = $1 ORDER BY occurred_at DESC LIMIT $2)
        UNION ALL
        (SELECT occurred_at, 'refused', table_name, NULL, ARRAY[violation_type::text, reason], service, role_name, request_id,
            id
        FROM audit.security_violations WHERE subject_token = $1 ORDER BY id DESC LIMIT $2)
        UNION ALL
        (SELECT created_at, 'event', event_type::text, id, '{}', source_agent_id, NULL, request_id, id
        FROM public.blackboard_events WHERE user_id = $3 ORDER BY id DESC LIMIT $2)
        ORDER BY occurred_at DESC, id DESC LIMIT $2";
    store::security::fix_search_path(connection).await?;
    let subject = subjects::table.find(user_id).select(subjects::token);
    let Some(token) = subject.first::<Uuid>(connection).await.optional()? else { return Ok(None) };
    let entries = diesel::sql_query(TRAIL)
        .bind::<SqlUuid, _>(token)
        .bind::<BigInt, _>(i64::from(limit))
        .bind::<Integer, _>(user_id)
        .load(connection)
        .await?;
    Ok(Some(entries))
}
