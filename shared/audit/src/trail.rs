//! What the trail tells of one user.

use chrono::{DateTime, Utc};
use diesel::prelude::*;
use diesel::sql_types::{Array, BigInt, Integer, Nullable, Text, Timestamptz, Uuid as SqlUuid};
use diesel_async::{AsyncPgConnection, RunQueryDsl};
use serde::Serialize;
use store::Fault;
use store::schema::subjects;
use uuid::Uuid;

/// One row of the trail.
#[derive(Clone, Debug, QueryableByName, Serialize)]
pub struct Deed {
    /// When its transaction began.
    #[diesel(sql_type = Timestamptz)]
    pub occurred_at: DateTime<Utc>,
    /// `insert`, `update`, `delete`, `event`, `access` or `refused`.
    #[diesel(sql_type = Text)]
    pub operation: String,
    /// The table; of an access what was read; of an event its type.
    #[diesel(sql_type = Nullable<Text>)]
    pub object: Option<String>,
    /// The row.
    #[diesel(sql_type = Nullable<SqlUuid>)]
    pub row_id: Option<Uuid>,
    /// The columns that an update changed; of an access its sort; of a refusal the reason.
    #[diesel(sql_type = Array<Text>)]
    pub details: Vec<String>,
    /// In whose name; several if the user acted through several in the same transaction.
    #[diesel(sql_type = Nullable<Text>)]
    pub service: Option<String>,
    /// The database role.
    #[diesel(sql_type = Nullable<Text>)]
    pub role_name: Option<String>,
    /// The request.
    #[diesel(sql_type = Nullable<SqlUuid>)]
    pub request_id: Option<Uuid>,
    /// The trail's own id.
    #[diesel(sql_type = SqlUuid)]
    pub id: Uuid,
}

/// The last `limit` deeds concerning a user, the newest first. None if the trail knows no such user: there never was one, or
/// all was erased, and with it who the rows are about.
///
/// # Errors
/// A [`Fault`] of the database.
pub async fn trail(
    connection: &mut AsyncPgConnection,
    user_id: i32,
    limit: u32,
) -> Result<Option<Vec<Deed>>, Fault> {
    // Each part is cut to the limit by its index before all are put together.
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
        FROM blackboard_events WHERE user_id = $3 ORDER BY id DESC LIMIT $2)
        ORDER BY occurred_at DESC, id DESC LIMIT $2";
    let subject = subjects::table.find(user_id).select(subjects::token);
    let Some(token) = subject.first::<Uuid>(connection).await.optional()? else { return Ok(None) };
    let deeds = diesel::sql_query(TRAIL)
        .bind::<SqlUuid, _>(token)
        .bind::<BigInt, _>(i64::from(limit))
        .bind::<Integer, _>(user_id)
        .load(connection)
        .await?;
    Ok(Some(deeds))
}
