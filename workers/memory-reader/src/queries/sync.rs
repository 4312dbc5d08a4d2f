//! `sync.status` and `sync.history`: syncs between sessions, and what they did to keys and what was lost.

use chrono::{DateTime, Utc};
use contract::{
    Malformed, Name, SessionId, SyncChangeInfo, SyncHistory, SyncHistoryPage, SyncInfo, SyncPage, SyncStatus,
    SyncStatusRead, SyncType, UserId,
};
use diesel::QueryableByName;
use diesel::sql_types::{BigInt, Bool, Integer, Nullable, Text, Timestamptz, Uuid as SqlUuid};
use diesel_async::RunQueryDsl;
use keys::Encrypted;
use store::security::PlanCacheMode;
use store::{Connection, Fault};
use uuid::Uuid;

use crate::column::{label, recorded, time};
use crate::page::{self, CursorTime, within_page};
use crate::query_context::QueryContext;
use crate::query_failure::QueryFailure;
use crate::secret::{self, Secret};
use crate::validated_query::{Answered, ValidatedQuery};

const SYNCS: &str = "cross_service_memory_sync";
const CHANGES: &str = "sync_changes";

#[derive(Debug)]
pub(crate) struct Status {
    query: SyncStatusRead,
    before: Option<(CursorTime, Uuid)>,
}

impl ValidatedQuery for Status {
    type Query = SyncStatusRead;

    fn validate(query: SyncStatusRead) -> Result<Self, Malformed> {
        Ok(Self { before: page::position(query.cursor.as_ref())?, query })
    }

    async fn answer(self, context: &mut QueryContext<'_>) -> Result<Answered<SyncPage>, QueryFailure> {
        let user = context.user;
        let page = context.read(PlanCacheMode::Auto, async |connection| self.page(connection, user).await);
        Ok(page.await?)
    }
}

#[derive(Debug)]
pub(crate) struct History {
    query: SyncHistory,
    before: Option<i64>,
}

impl ValidatedQuery for History {
    type Query = SyncHistory;

    fn validate(query: SyncHistory) -> Result<Self, Malformed> {
        Ok(Self { before: page::position(query.cursor.as_ref())?, query })
    }

    fn reveals(&self) -> bool {
        self.query.reveal
    }

    async fn answer(self, context: &mut QueryContext<'_>) -> Result<Answered<SyncHistoryPage>, QueryFailure> {
        let user = context.user;
        let page = context.read(PlanCacheMode::Auto, async |connection| self.page(connection, user).await);
        Ok(page.await?)
    }
}

const STATUS: &str = concat!(
    "WITH page AS (SELECT * FROM cross_service_memory_sync
    WHERE user_id = $1 AND ($2 IS NULL OR id = $2) AND ($3 IS NULL OR $3 IN (source_session_id, target_session_id))
        AND ($4 IS NULL OR sync_type = $4::sync_type) AND ($5 IS NULL OR sync_status = $5::sync_status)
        AND ($6 IS NULL OR (created_at, id) < ($6, $7))
    ORDER BY created_at DESC, id DESC LIMIT $8) ",
    within_page!(
        "id, source_session_id, target_session_id, sync_type::text AS sync_type, sync_status::text AS sync_status, end_reason,
        filter::text AS filter, crosses_private, service, expires_at, rounds, data_transferred::text AS data_transferred,
        created_at, updated_at, completed_at, undone_at",
        "octet_length(p.filter::text) + octet_length(p.data_transferred::text)",
        "p.created_at DESC, p.id DESC",
        "$9"
    )
);

#[derive(QueryableByName)]
struct SyncRow {
    #[diesel(sql_type = SqlUuid)]
    id: Uuid,
    #[diesel(sql_type = Text)]
    source_session_id: String,
    #[diesel(sql_type = Text)]
    target_session_id: String,
    #[diesel(sql_type = Text)]
    sync_type: String,
    #[diesel(sql_type = Text)]
    sync_status: String,
    #[diesel(sql_type = Nullable<Text>)]
    end_reason: Option<String>,
    #[diesel(sql_type = Text)]
    filter: String,
    #[diesel(sql_type = Bool)]
    crosses_private: bool,
    #[diesel(sql_type = Text)]
    service: String,
    #[diesel(sql_type = Nullable<Timestamptz>)]
    expires_at: Option<DateTime<Utc>>,
    #[diesel(sql_type = BigInt)]
    rounds: i64,
    #[diesel(sql_type = Text)]
    data_transferred: String,
    #[diesel(sql_type = Timestamptz)]
    created_at: DateTime<Utc>,
    #[diesel(sql_type = Timestamptz)]
    updated_at: DateTime<Utc>,
    #[diesel(sql_type = Nullable<Timestamptz>)]
    completed_at: Option<DateTime<Utc>>,
    #[diesel(sql_type = Nullable<Timestamptz>)]
    undone_at: Option<DateTime<Utc>>,
    #[diesel(sql_type = BigInt)]
    found: i64,
}

impl SyncRow {
    fn into_info(self) -> Result<SyncInfo, Fault> {
        Ok(SyncInfo {
            sync_id: self.id,
            source_session_id: self.source_session_id,
            target_session_id: self.target_session_id,
            sync_type: label(&self.sync_type)?,
            sync_status: label(&self.sync_status)?,
            end_reason: self.end_reason.as_deref().map(label).transpose()?,
            filter: recorded(&self.filter)?,
            crosses_private: self.crosses_private,
            service: self.service,
            expires_at: self.expires_at.map(time),
            rounds: self.rounds,
            transferred: recorded(&self.data_transferred)?,
            created_at: self.created_at,
            updated_at: self.updated_at,
            completed_at: self.completed_at,
            undone_at: self.undone_at,
        })
    }
}

impl Status {
    async fn page(&self, connection: &mut Connection, user: UserId) -> Result<Answered<SyncPage>, Fault> {
        let Self { query, before } = self;
        let limit = query.limit.get();
        let statement = diesel::sql_query(STATUS)
            .bind::<Integer, _>(user.get())
            .bind::<Nullable<SqlUuid>, _>(query.sync_id)
            .bind::<Nullable<Text>, _>(query.session_id.as_ref().map(SessionId::as_str))
            .bind::<Nullable<Text>, _>(query.sync_type.map(SyncType::as_str))
            .bind::<Nullable<Text>, _>(query.sync_status.map(SyncStatus::as_str))
            .bind::<Nullable<Timestamptz>, _>(before.as_ref().map(|(CursorTime(time), _)| *time))
            .bind::<Nullable<SqlUuid>, _>(before.as_ref().map(|(_, id)| *id))
            .bind::<BigInt, _>(page::one_more(limit))
            .bind::<BigInt, _>(page::PAGE_BYTES);
        let rows: Vec<SyncRow> = store::prepared(statement).load(connection).await?;
        let found = rows.as_slice().first().map_or(0, |row| row.found);
        let (rows, next_cursor) = page::cut(rows, limit, found, |row| (CursorTime(row.created_at), row.id));
        let syncs: Vec<SyncInfo> = rows.into_iter().map(SyncRow::into_info).collect::<Result<_, Fault>>()?;
        let read = syncs.len();
        Ok(Answered::new(SyncPage { syncs, next_cursor }, SYNCS, read))
    }
}

const HISTORY: &str = concat!(
    "WITH page AS (SELECT * FROM sync_changes
    WHERE user_id = $1 AND ($2 IS NULL OR sync_id = $2) AND ($3 IS NULL OR target_session_id = $3)
        AND ($4 IS NULL OR context_key = $4) AND ($5 IS NULL OR position < $5)
        AND (NOT $6 OR effect = 'failed' OR conflicts <> '[]' OR disputed <> '[]')
    ORDER BY position DESC LIMIT $7) ",
    within_page!(
        "id, sync_id, source_session_id, target_session_id, position, agent_id, memory_tier::text AS memory_tier, context_key,
        node_id, effect, reason, conflicts::text AS conflicts, disputed::text AS disputed, is_sensitive, changed_at, undone_at",
        "octet_length(p.conflicts::text) + octet_length(p.disputed::text) + coalesce(octet_length(to_json(p.reason)::text), 0)",
        "sync_changes",
        "p.position DESC",
        "$8",
        "$9"
    )
);

#[derive(QueryableByName)]
struct ChangeRow {
    #[diesel(sql_type = SqlUuid)]
    id: Uuid,
    #[diesel(sql_type = SqlUuid)]
    sync_id: Uuid,
    #[diesel(sql_type = Text)]
    source_session_id: String,
    #[diesel(sql_type = Text)]
    target_session_id: String,
    #[diesel(sql_type = BigInt)]
    position: i64,
    #[diesel(sql_type = Nullable<Text>)]
    agent_id: Option<String>,
    #[diesel(sql_type = Nullable<Text>)]
    memory_tier: Option<String>,
    #[diesel(sql_type = Text)]
    context_key: String,
    #[diesel(sql_type = Nullable<SqlUuid>)]
    node_id: Option<Uuid>,
    #[diesel(sql_type = Text)]
    effect: String,
    #[diesel(sql_type = Nullable<Text>)]
    reason: Option<String>,
    #[diesel(sql_type = Text)]
    conflicts: String,
    #[diesel(sql_type = Text)]
    disputed: String,
    #[diesel(sql_type = Bool)]
    is_sensitive: bool,
    #[diesel(sql_type = Timestamptz)]
    changed_at: DateTime<Utc>,
    #[diesel(sql_type = Nullable<Timestamptz>)]
    undone_at: Option<DateTime<Utc>>,
    #[diesel(sql_type = BigInt)]
    found: i64,
}

impl ChangeRow {
    fn into_info(self) -> Result<SyncChangeInfo, Fault> {
        Ok(SyncChangeInfo {
            sync_id: self.sync_id,
            source_session_id: self.source_session_id,
            target_session_id: self.target_session_id,
            position: self.position,
            context_key: self.context_key,
            agent_id: self.agent_id,
            memory_tier: self.memory_tier.as_deref().map(label).transpose()?,
            node_id: self.node_id,
            effect: label(&self.effect)?,
            reason: self.reason,
            conflicts: recorded(&self.conflicts)?,
            disputed: recorded(&self.disputed)?,
            sensitive: self.is_sensitive,
            changed_at: self.changed_at,
            undone_at: self.undone_at,
        })
    }
}

impl History {
    async fn page(
        &self,
        connection: &mut Connection,
        user: UserId,
    ) -> Result<Answered<SyncHistoryPage>, Fault> {
        let Self { query, before } = self;
        let limit = query.limit.get();
        let statement = diesel::sql_query(HISTORY)
            .bind::<Integer, _>(user.get())
            .bind::<Nullable<SqlUuid>, _>(query.sync_id)
            .bind::<Nullable<Text>, _>(query.session_id.as_ref().map(SessionId::as_str))
            .bind::<Nullable<Text>, _>(query.context_key.as_ref().map(Name::as_str))
            .bind::<Nullable<BigInt>, _>(*before)
            .bind::<Bool, _>(query.only_conflicts)
            .bind::<BigInt, _>(page::one_more(limit))
            .bind::<Bool, _>(query.reveal)
            .bind::<BigInt, _>(page::PAGE_BYTES);
        let rows: Vec<ChangeRow> = store::prepared(statement).load(connection).await?;
        let found = rows.as_slice().first().map_or(0, |row| row.found);
        let (rows, next_cursor) = page::cut(rows, limit, found, |row| row.position);
        let sensitive = rows.iter().map(|row| (row.is_sensitive, row.id));
        let encrypted = secret::load(connection, query.reveal, CHANGES, sensitive).await?;
        let ids: Vec<Uuid> = rows.iter().map(|row| row.id).collect();
        let changes = rows.into_iter().map(ChangeRow::into_info).collect::<Result<_, Fault>>()?;
        let secrets = encrypted.into_iter().filter_map(|field| secret_of(field, &ids));
        let page = SyncHistoryPage { changes, next_cursor };
        Ok(Answered::new(page, CHANGES, ids.len()).with_secrets(secrets))
    }
}

/// The place of an encrypted list of a change. The cell before it is encrypted beside them, and is in no answer.
fn secret_of(field: Encrypted, rows: &[Uuid]) -> Option<Secret<SyncHistoryPage>> {
    let index = rows.iter().position(|row| *row == field.row)?;
    match field.column.as_str() {
        "conflicts" => Some(Secret::new(field, move |page: &mut SyncHistoryPage, plain| {
            if let (Some(change), Ok(plain)) = (page.changes.get_mut(index), recorded(plain)) {
                change.conflicts = plain;
            }
        })),
        "disputed" => Some(Secret::new(field, move |page: &mut SyncHistoryPage, plain| {
            if let (Some(change), Ok(plain)) = (page.changes.get_mut(index), recorded(plain)) {
                change.disputed = plain;
            }
        })),
        _ => None,
    }
}
