//! `session.list`: the reference document's "Cross-service session lookup".

use chrono::{DateTime, Utc};
use contract::{Malformed, SessionInfo, SessionList, SessionPage, UserId};
use diesel::QueryableByName;
use diesel::sql_types::{BigInt, Bool, Integer, Nullable, Text, Timestamptz};
use diesel_async::RunQueryDsl;
use store::security::PlanCacheMode;
use store::{Connection, Fault};

use crate::column::label;
use crate::page::{self, CursorTime};
use crate::query_context::QueryContext;
use crate::query_failure::QueryFailure;
use crate::validated_query::{Answered, ValidatedQuery};

const TABLE: &str = "chat_mode_sessions";

#[derive(Debug)]
pub(crate) struct List {
    query: SessionList,
    before: Option<(CursorTime, String)>,
}

impl ValidatedQuery for List {
    type Query = SessionList;

    fn validate(query: SessionList) -> Result<Self, Malformed> {
        Ok(Self { before: page::position(query.cursor.as_ref())?, query })
    }

    async fn answer(self, context: &mut QueryContext<'_>) -> Result<Answered<SessionPage>, QueryFailure> {
        let user = context.user;
        let page = context.read(PlanCacheMode::Auto, async |connection| self.page(connection, user).await);
        Ok(page.await?)
    }
}

/// Counts contexts only of the sessions of the page.
const LIST: &str = "
    WITH page AS MATERIALIZED (
        SELECT session_id, chat_mode, is_active, parent_session_id, created_at, ended_at FROM chat_mode_sessions
        WHERE user_id = $1 AND ($2 IS NULL OR is_active = $2) AND ($3 IS NULL OR chat_mode = $3::chat_mode)
            AND ($4 IS NULL OR (created_at, session_id) < ($4, $5))
        ORDER BY created_at DESC, session_id DESC LIMIT $6
    )
    SELECT p.session_id, p.chat_mode::text AS chat_mode, p.is_active, p.parent_session_id, p.created_at, p.ended_at,
        c.context_count
    FROM page p CROSS JOIN LATERAL (
        SELECT count(*) AS context_count FROM simple_chat_context c
        WHERE c.user_id = $1 AND c.session_id = p.session_id AND c.removed_at IS NULL
            AND (c.expires_at IS NULL OR c.expires_at > now())) AS c
    ORDER BY p.created_at DESC, p.session_id DESC";

#[derive(QueryableByName)]
struct Row {
    #[diesel(sql_type = Text)]
    session_id: String,
    #[diesel(sql_type = Text)]
    chat_mode: String,
    #[diesel(sql_type = Bool)]
    is_active: bool,
    #[diesel(sql_type = Nullable<Text>)]
    parent_session_id: Option<String>,
    #[diesel(sql_type = Timestamptz)]
    created_at: DateTime<Utc>,
    #[diesel(sql_type = Nullable<Timestamptz>)]
    ended_at: Option<DateTime<Utc>>,
    #[diesel(sql_type = BigInt)]
    context_count: i64,
}

impl List {
    async fn page(&self, connection: &mut Connection, user: UserId) -> Result<Answered<SessionPage>, Fault> {
        let Self { query, before } = self;
        let limit = query.limit.get();
        let statement = diesel::sql_query(LIST)
            .bind::<Integer, _>(user.get())
            .bind::<Nullable<Bool>, _>(query.active)
            .bind::<Nullable<Text>, _>(query.chat_mode.map(contract::ChatMode::as_str))
            .bind::<Nullable<Timestamptz>, _>(before.as_ref().map(|(CursorTime(created_at), _)| *created_at))
            .bind::<Nullable<Text>, _>(before.as_ref().map(|(_, session_id)| session_id.as_str()))
            .bind::<BigInt, _>(page::one_more(limit));
        let rows: Vec<Row> = store::prepared(statement).load(connection).await?;
        let found = i64::try_from(rows.len()).unwrap_or(i64::MAX);
        let (rows, next_cursor) =
            page::cut(rows, limit, found, |row| (CursorTime(row.created_at), row.session_id.clone()));
        let sessions: Vec<SessionInfo> =
            rows.into_iter().map(Row::into_info).collect::<Result<_, Fault>>()?;
        let read = sessions.len();
        Ok(Answered::new(SessionPage { sessions, next_cursor }, TABLE, read))
    }
}

impl Row {
    fn into_info(self) -> Result<SessionInfo, Fault> {
        Ok(SessionInfo {
            session_id: self.session_id,
            chat_mode: label(&self.chat_mode)?,
            is_active: self.is_active,
            parent_session_id: self.parent_session_id,
            created_at: self.created_at,
            ended_at: self.ended_at,
            context_count: self.context_count,
        })
    }
}
