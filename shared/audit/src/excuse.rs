//! What speaks for an event that is not as it was sealed.

use std::collections::HashMap;
use std::fmt;

use chrono::{DateTime, SecondsFormat, Utc};
use diesel::prelude::*;
use diesel::sql_types::{Array, Nullable, Text, Timestamptz, Uuid as SqlUuid};
use diesel_async::{AsyncPgConnection, RunQueryDsl};
use serde::Serialize;
use store::Fault;
use uuid::Uuid;

/// What speaks for an edited or missing event. It excuses nothing unless it is as strong as the seal: a proof would be a
/// variant of its own, and whoever adds it decides in each `match` what it excuses (docs/adr/0041).
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Excuse {
    /// The trail has a row about it. That is no proof: whoever may change the event may write this row too.
    WithoutProof(AuditRow),
    /// The trail has no row about it.
    Absent,
}

impl fmt::Display for Excuse {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::WithoutProof(row) => write!(f, "excused without proof by an audit row ({row})"),
            Self::Absent => write!(f, "no audit row tells of it"),
        }
    }
}

/// The last row of the trail about a change or removal of an event.
#[derive(Clone, Debug, PartialEq, Eq, QueryableByName, Serialize)]
pub struct AuditRow {
    /// The event.
    #[diesel(sql_type = SqlUuid)]
    #[serde(skip)]
    event: Uuid,
    /// `update` or `delete`.
    #[diesel(sql_type = Text)]
    pub operation: String,
    /// The database role.
    #[diesel(sql_type = Text)]
    pub role: String,
    /// The service.
    #[diesel(sql_type = Nullable<Text>)]
    pub service: Option<String>,
    /// The id of the request.
    #[diesel(sql_type = Nullable<SqlUuid>)]
    pub request: Option<Uuid>,
    /// When its transaction began.
    #[diesel(sql_type = Timestamptz)]
    pub at: DateTime<Utc>,
}

impl fmt::Display for AuditRow {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { event: _, operation, role, service, request, at } = self;
        write!(f, "{operation} by role {role}, ")?;
        match service {
            Some(service) => write!(f, "service {service}, ")?,
            None => write!(f, "no service, ")?,
        }
        match request {
            Some(request) => write!(f, "request {request}, ")?,
            None => write!(f, "no request, ")?,
        }
        write!(f, "{}", at.to_rfc3339_opts(SecondsFormat::Millis, true))
    }
}

/// The last audit row about each of these events that has one.
pub(crate) async fn audit_rows(
    connection: &mut AsyncPgConnection,
    events: Vec<Uuid>,
) -> Result<HashMap<Uuid, AuditRow>, Fault> {
    const ASK: &str = "
        SELECT DISTINCT ON (row_id) row_id AS event, lower(operation::text) AS operation, role_name AS role, service,
            request_id AS request, occurred_at AS at
        FROM audit.audit_log
        WHERE table_name = 'blackboard_events' AND operation <> 'INSERT' AND row_id = ANY ($1)
        ORDER BY row_id, transaction_id DESC, id DESC";
    if events.is_empty() {
        return Ok(HashMap::new());
    }
    let rows: Vec<AuditRow> =
        diesel::sql_query(ASK).bind::<Array<SqlUuid>, _>(events).load(connection).await?;
    Ok(rows.into_iter().map(|row| (row.event, row)).collect())
}
