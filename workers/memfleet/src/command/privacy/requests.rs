//! The rows of `privacy_requests` and of `sec.erased_users`, as operators see them.

use std::collections::BTreeMap;

use anyhow::Context;
use chrono::{DateTime, SecondsFormat, Utc};
use diesel::QueryableByName;
use diesel::sql_types::{BigInt, Bool, Integer, Jsonb, Nullable, Text, Timestamptz, Uuid as SqlUuid};
use diesel_async::RunQueryDsl;
use privacy::Progress;
use serde::Serialize;
use serde_json::value::RawValue;
use store::Connection;
use uuid::Uuid;

/// An erasure that is not complete, or that was cancelled; a restriction, or its lift; an export; a correction.
#[derive(Clone, Debug, Serialize, QueryableByName)]
pub(super) struct Request {
    #[diesel(sql_type = SqlUuid)]
    pub(super) id: Uuid,
    #[diesel(sql_type = Integer)]
    pub(super) user_id: i32,
    #[diesel(sql_type = Text)]
    pub(super) request_type: String,
    #[diesel(sql_type = Text)]
    pub(super) status: String,
    #[diesel(sql_type = Nullable<Text>)]
    pub(super) step: Option<String>,
    #[diesel(sql_type = Nullable<Text>)]
    pub(super) service: Option<String>,
    #[diesel(sql_type = Nullable<Text>)]
    pub(super) reason: Option<String>,
    #[diesel(sql_type = Timestamptz)]
    pub(super) requested_at: DateTime<Utc>,
    #[diesel(sql_type = Timestamptz)]
    pub(super) due_at: DateTime<Utc>,
    #[diesel(sql_type = Nullable<Timestamptz>)]
    pub(super) retry_at: Option<DateTime<Utc>>,
    #[diesel(sql_type = Nullable<Timestamptz>)]
    pub(super) completed_at: Option<DateTime<Utc>>,
    #[diesel(sql_type = Nullable<Text>)]
    pub(super) last_error: Option<String>,
    #[diesel(sql_type = Nullable<SqlUuid>)]
    pub(super) hold_id: Option<Uuid>,
    #[diesel(sql_type = Nullable<Text>)]
    pub(super) hold_reason: Option<String>,
    /// Of a restriction: what becomes of requests meanwhile.
    #[diesel(sql_type = Nullable<Text>)]
    #[serde(rename = "while", skip_serializing_if = "Option::is_none")]
    pub(super) meanwhile: Option<String>,
    /// Of an export that waits: the public key of whoever can open it.
    #[diesel(sql_type = Nullable<Text>)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) recipient: Option<String>,
    /// Of a correction that waits or was rejected: what is wrong.
    #[diesel(sql_type = Nullable<Jsonb>)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) corrections: Option<serde_json::Value>,
    /// Of a correction that was carried out: the columns.
    #[diesel(sql_type = Nullable<Jsonb>)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) corrected: Option<serde_json::Value>,
    #[diesel(sql_type = Jsonb)]
    #[serde(skip)]
    progress: serde_json::Value,
}

/// Which requests. What is not given means all.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Filter {
    pub(super) id: Option<Uuid>,
    pub(super) user: Option<i32>,
    /// Only those that are neither complete nor cancelled.
    pub(super) is_open: bool,
    /// Only open ones whose time is over.
    pub(super) is_overdue: bool,
    /// Only restrictions that are in force.
    pub(super) lasts: bool,
}

/// Requests, the one that is due first before the others.
pub(super) async fn requests(
    connection: &mut Connection,
    filter: Filter,
    limit: i64,
) -> anyhow::Result<Vec<Request>> {
    const LIST: &str = "
        SELECT r.id, r.user_id, r.request_type::text AS request_type, r.request_status::text AS status, r.step::text AS step, r.service, r.reason, r.requested_at, r.due_at, r.retry_at,
            r.completed_at, r.last_error, r.hold_id, h.reason AS hold_reason, r.details ->> 'while' AS meanwhile,
            CASE WHEN r.request_type = 'access' THEN r.details ->> 'recipient' END AS recipient, r.details -> 'corrections' AS corrections,
            r.details -> 'corrected' AS corrected, r.progress
        FROM privacy_requests r LEFT JOIN retention_holds h ON h.id = r.hold_id AND h.user_id IN (r.user_id, 0)
        WHERE r.request_type::text IN ('erase', 'anonymise', 'restrict', 'lift', 'access', 'rectify') AND ($1 IS NULL OR r.id = $1) AND ($2 IS NULL OR r.user_id = $2)
            AND (NOT ($3 OR $4) OR r.request_status IN ('pending', 'held', 'in_progress')) AND (NOT $4 OR r.due_at < now())
            AND (NOT $6 OR EXISTS (SELECT FROM sec.restricted_users u WHERE u.user_id = r.user_id AND u.request_id = r.id))
        ORDER BY r.due_at, r.id LIMIT $5";
    diesel::sql_query(LIST)
        .bind::<Nullable<SqlUuid>, _>(filter.id)
        .bind::<Nullable<Integer>, _>(filter.user)
        .bind::<Bool, _>(filter.is_open)
        .bind::<Bool, _>(filter.is_overdue)
        .bind::<BigInt, _>(limit)
        .bind::<Bool, _>(filter.lasts)
        .load(connection)
        .await
        .context("cannot read the requests")
}

impl Request {
    /// What the steps have kept.
    pub(super) fn progress(&self) -> Progress {
        serde_json::from_value(self.progress.clone()).unwrap_or_default()
    }

    /// Rows before and rows deleted, by table.
    pub(super) fn counts(&self) -> BTreeMap<String, (u64, u64)> {
        let progress = self.progress();
        let deleted = |table: &String| progress.deleted.get(table).copied().unwrap_or(0);
        progress.before.iter().map(|(table, before)| (table.clone(), (*before, deleted(table)))).collect()
    }
}

/// A complete erasure. Nothing in it names the person.
#[derive(Clone, Debug, QueryableByName)]
pub(super) struct Erased {
    #[diesel(sql_type = SqlUuid)]
    pub(super) erasure: Uuid,
    #[diesel(sql_type = Timestamptz)]
    pub(super) erased_at: DateTime<Utc>,
    /// The text of its file.
    #[diesel(sql_type = Nullable<Text>)]
    pub(super) receipt: Option<String>,
}

impl Erased {
    /// The receipt as it was signed, byte by byte; none before.
    pub(super) fn receipt(&self) -> Option<&RawValue> {
        self.receipt.as_deref().and_then(|text| serde_json::from_str(text.trim_end()).ok())
    }
}

/// The erasure of this id, from when its tombstone is there.
pub(super) async fn erased(connection: &mut Connection, erasure: Uuid) -> anyhow::Result<Option<Erased>> {
    const ERASED: &str = "SELECT erasure, erased_at, receipt FROM sec.erased_users WHERE erasure = $1";
    let query = diesel::sql_query(ERASED).bind::<SqlUuid, _>(erasure);
    let found: Vec<Erased> = query.load(connection).await.context("cannot read the erasures")?;
    Ok(found.into_iter().next())
}

pub(super) fn time(time: DateTime<Utc>) -> String {
    time.to_rfc3339_opts(SecondsFormat::Secs, true)
}
