//! What speaks for an event or a subject that is not as it was sealed.

use std::collections::HashMap;
use std::fmt;

use chrono::{DateTime, SecondsFormat, Utc};
use diesel::prelude::*;
use diesel::sql_types::{Array, Nullable, Text, Timestamptz, Uuid as SqlUuid};
use diesel_async::{AsyncPgConnection, RunQueryDsl};
use serde::Serialize;
use store::Fault;
use uuid::Uuid;

use crate::time::Time;

/// What speaks for an edited or missing event, or for a missing subject. It excuses nothing unless it is as strong as the seal
/// (docs/adr/0041).
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Excuse {
    /// A proof: a statement of an erasure, signed with the receipt key, has the row as it was sealed (docs/adr/0057), and the receipt of the
    /// erasure has the statement.
    Erased {
        /// The erasure.
        erasure: Uuid,
        /// Whether it has no receipt yet.
        is_under_way: bool,
    },
    /// A statement of an erasure has the row. But the erasure is not under way, or was for too long, and no receipt has the statement.
    WithoutReceipt {
        /// The erasure.
        erasure: Uuid,
    },
    /// The trail has a row about it. That is no proof: whoever may change the event may write this row too.
    WithoutProof(AuditRow),
    /// The trail has no row about it.
    Absent,
}

impl Excuse {
    /// Whether it is as strong as a seal, so that what it speaks for is no finding.
    pub(crate) fn is_proof(&self) -> bool {
        match self {
            Self::Erased { .. } => true,
            Self::WithoutReceipt { .. } | Self::WithoutProof(_) | Self::Absent => false,
        }
    }
}

impl fmt::Display for Excuse {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Erased { erasure, is_under_way: false } => {
                write!(f, "excused with proof by the erasure {erasure}")
            }
            Self::Erased { erasure, is_under_way: true } => {
                write!(f, "excused by the erasure {erasure}, which is under way")
            }
            Self::WithoutReceipt { erasure } => write!(
                f,
                "excused without proof by a statement of the erasure {erasure}, of which no receipt is known that has it"
            ),
            Self::WithoutProof(row) => write!(f, "excused without proof by an audit row ({row})"),
            Self::Absent => write!(f, "no audit row tells of it"),
        }
    }
}

/// The last row of the trail about a change or removal of an event, or about the removal of a user.
#[derive(Clone, Debug, PartialEq, Eq, QueryableByName, Serialize)]
pub struct AuditRow {
    /// The event, or the token of the subject.
    #[diesel(sql_type = SqlUuid)]
    #[serde(skip)]
    about: Uuid,
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
    #[diesel(sql_type = Timestamptz, deserialize_as = Time)]
    pub at: DateTime<Utc>,
}

impl fmt::Display for AuditRow {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { about: _, operation, role, service, request, at } = self;
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
pub(crate) async fn changes_of_events(
    connection: &mut AsyncPgConnection,
    events: Vec<Uuid>,
) -> Result<HashMap<Uuid, AuditRow>, Fault> {
    const CHANGES: &str = "
        SELECT DISTINCT ON (l.row_id) l.row_id AS about, l.operation, l.role_name AS role, l.service, l.request_id AS request,
            l.occurred_at AS at
        FROM audit.audit_log l
        WHERE l.table_name::pg_catalog.text OPERATOR(pg_catalog.=) 'blackboard_events'::pg_catalog.text
            AND l.operation OPERATOR(pg_catalog.<>) 'INSERT'::audit.operation AND l.row_id OPERATOR(pg_catalog.=) ANY ($1)
        ORDER BY l.row_id, l.transaction_id DESC, l.id DESC";
    audit_rows(connection, CHANGES, events).await
}

/// The last audit row about the removal of each of these users, by token, that has one.
pub(crate) async fn removals_of_users(
    connection: &mut AsyncPgConnection,
    tokens: Vec<Uuid>,
) -> Result<HashMap<Uuid, AuditRow>, Fault> {
    const REMOVALS: &str = "
        SELECT DISTINCT ON (l.subject_token) l.subject_token AS about, l.operation, l.role_name AS role, l.service,
            l.request_id AS request, l.occurred_at AS at
        FROM audit.audit_log l
        WHERE l.table_name::pg_catalog.text OPERATOR(pg_catalog.=) 'users'::pg_catalog.text
            AND l.operation OPERATOR(pg_catalog.=) 'DELETE'::audit.operation
            AND l.subject_token OPERATOR(pg_catalog.=) ANY ($1)
        ORDER BY l.subject_token, l.transaction_id DESC, l.id DESC";
    audit_rows(connection, REMOVALS, tokens).await
}

async fn audit_rows(
    connection: &mut AsyncPgConnection,
    statement: &str,
    about: Vec<Uuid>,
) -> Result<HashMap<Uuid, AuditRow>, Fault> {
    if about.is_empty() {
        return Ok(HashMap::new());
    }
    let rows: Vec<AuditRow> =
        diesel::sql_query(statement).bind::<Array<SqlUuid>, _>(about).load(connection).await?;
    let named = rows.into_iter().map(|row| AuditRow { operation: row.operation.to_lowercase(), ..row });
    Ok(named.map(|row| (row.about, row)).collect())
}
