//! `agent-context.list`: the contexts of agents in one tier.

use chrono::{DateTime, Utc};
use contract::{AgentContextInfo, AgentContextList, AgentContextPage, Malformed, Name, SessionId, UserId};
use diesel::QueryableByName;
use diesel::sql_types::{BigInt, Bool, Integer, Nullable, Text, Timestamptz, Uuid as SqlUuid};
use diesel_async::RunQueryDsl;
use store::security::PlanCacheMode;
use store::{Connection, Fault};
use uuid::Uuid;

use crate::column::{json, time};
use crate::page::{self, within_page};
use crate::query_context::QueryContext;
use crate::query_failure::QueryFailure;
use crate::secret;
use crate::validated_query::{Answered, ValidatedQuery};

const TABLE: &str = "agent_context_states";

/// Session, agent and key.
type Key = (String, String, String);

#[derive(Debug)]
pub(crate) struct List {
    query: AgentContextList,
    after: Option<Key>,
}

impl ValidatedQuery for List {
    type Query = AgentContextList;

    fn validate(query: AgentContextList) -> Result<Self, Malformed> {
        Ok(Self { after: page::position(query.cursor.as_ref())?, query })
    }

    fn reveals(&self) -> bool {
        self.query.reveal
    }

    async fn answer(
        self,
        context: &mut QueryContext<'_>,
    ) -> Result<Answered<AgentContextPage>, QueryFailure> {
        let user = context.user;
        let page = context.read(PlanCacheMode::Auto, async |connection| self.page(connection, user).await);
        Ok(page.await?)
    }
}

const LIST: &str = concat!(
    "WITH page AS (SELECT * FROM agent_context_states
    WHERE user_id = $1 AND memory_tier = $2::memorytier AND removed_at IS NULL AND ($3 IS NULL OR session_id = $3)
        AND ($4 IS NULL OR agent_id = $4) AND ($5 IS NULL OR starts_with(context_key, $5))
        AND (expires_at IS NULL OR expires_at > now())
        AND ($6 IS NULL OR (session_id, agent_id, context_key) > ($6, $7, $8))
    ORDER BY session_id, agent_id, context_key LIMIT $9) ",
    within_page!(
        "id, session_id, agent_id, context_key, context_value::text AS context_value, is_shareable, version, expires_at,
        is_sensitive, updated_at",
        "octet_length(p.context_value::text)",
        "agent_context_states",
        "p.session_id, p.agent_id, p.context_key",
        "$10",
        "$11"
    )
);

#[derive(QueryableByName)]
struct Row {
    #[diesel(sql_type = SqlUuid)]
    id: Uuid,
    #[diesel(sql_type = Text)]
    session_id: String,
    #[diesel(sql_type = Text)]
    agent_id: String,
    #[diesel(sql_type = Text)]
    context_key: String,
    #[diesel(sql_type = Text)]
    context_value: String,
    #[diesel(sql_type = Bool)]
    is_shareable: bool,
    #[diesel(sql_type = BigInt)]
    version: i64,
    #[diesel(sql_type = Nullable<Timestamptz>)]
    expires_at: Option<DateTime<Utc>>,
    #[diesel(sql_type = Bool)]
    is_sensitive: bool,
    #[diesel(sql_type = Timestamptz)]
    updated_at: DateTime<Utc>,
    #[diesel(sql_type = BigInt)]
    found: i64,
}

impl Row {
    fn key(&self) -> Key {
        (self.session_id.clone(), self.agent_id.clone(), self.context_key.clone())
    }

    fn into_info(self) -> Result<AgentContextInfo, Fault> {
        Ok(AgentContextInfo {
            session_id: self.session_id,
            agent_id: self.agent_id,
            context_key: self.context_key,
            context_value: json(self.context_value)?,
            is_shareable: self.is_shareable,
            version: self.version,
            expires_at: self.expires_at.map(time),
            sensitive: self.is_sensitive,
            updated_at: self.updated_at,
        })
    }
}

impl List {
    async fn page(
        &self,
        connection: &mut Connection,
        user: UserId,
    ) -> Result<Answered<AgentContextPage>, Fault> {
        let Self { query, after } = self;
        let limit = query.limit.get();
        let statement = diesel::sql_query(LIST)
            .bind::<Integer, _>(user.get())
            .bind::<Text, _>(query.memory_tier.as_str())
            .bind::<Nullable<Text>, _>(query.session_id.as_ref().map(SessionId::as_str))
            .bind::<Nullable<Text>, _>(query.agent_id.as_ref().map(SessionId::as_str))
            .bind::<Nullable<Text>, _>(query.key_prefix.as_ref().map(Name::as_str))
            .bind::<Nullable<Text>, _>(after.as_ref().map(|key| key.0.as_str()))
            .bind::<Nullable<Text>, _>(after.as_ref().map(|key| key.1.as_str()))
            .bind::<Nullable<Text>, _>(after.as_ref().map(|key| key.2.as_str()))
            .bind::<BigInt, _>(page::one_more(limit))
            .bind::<Bool, _>(query.reveal)
            .bind::<BigInt, _>(page::PAGE_BYTES);
        let rows: Vec<Row> = store::prepared(statement).load(connection).await?;
        let found = rows.as_slice().first().map_or(0, |row| row.found);
        let (rows, next_cursor) = page::cut(rows, limit, found, Row::key);
        let sensitive = rows.iter().map(|row| (row.is_sensitive, row.id));
        let encrypted = secret::load(connection, query.reveal, TABLE, sensitive).await?;
        let ids: Vec<Uuid> = rows.iter().map(|row| row.id).collect();
        let secrets = secret::of_json(encrypted, &ids, |page: &mut AgentContextPage, index| {
            page.contexts.get_mut(index).map(|context| &mut context.context_value)
        });
        let contexts = rows.into_iter().map(Row::into_info).collect::<Result<_, Fault>>()?;
        let page = AgentContextPage { contexts, next_cursor };
        Ok(Answered::new(page, TABLE, ids.len()).with_secrets(secrets))
    }
}
