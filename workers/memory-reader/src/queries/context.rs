//! `context.list` and `context.get`: contexts of a session.

use chrono::{DateTime, Utc};
use contract::{ContextAnswer, ContextGet, ContextInfo, ContextList, ContextPage, Malformed, Name, UserId};
use diesel::QueryableByName;
use diesel::sql_types::{BigInt, Bool, Integer, Nullable, Text, Timestamptz, Uuid as SqlUuid};
use diesel_async::RunQueryDsl;
use store::security::PlanCacheMode;
use store::{Connection, Fault};
use uuid::Uuid;

use crate::column::{json, label, time};
use crate::page::{self, ciphertext_bytes, fits, within_page};
use crate::query_context::QueryContext;
use crate::query_failure::QueryFailure;
use crate::secret;
use crate::validated_query::{Answered, ValidatedQuery};

const TABLE: &str = "simple_chat_context";

#[derive(Debug)]
pub(crate) struct List {
    query: ContextList,
    after: Option<String>,
}

impl ValidatedQuery for List {
    type Query = ContextList;

    fn validate(query: ContextList) -> Result<Self, Malformed> {
        Ok(Self { after: page::position(query.cursor.as_ref())?, query })
    }

    fn reveals(&self) -> bool {
        self.query.reveal
    }

    async fn answer(self, context: &mut QueryContext<'_>) -> Result<Answered<ContextPage>, QueryFailure> {
        let user = context.user;
        let page = context.read(PlanCacheMode::Auto, async |connection| self.page(connection, user).await);
        Ok(page.await?)
    }
}

#[derive(Debug)]
pub(crate) struct Get(ContextGet);

impl ValidatedQuery for Get {
    type Query = ContextGet;

    fn validate(query: ContextGet) -> Result<Self, Malformed> {
        Ok(Self(query))
    }

    fn reveals(&self) -> bool {
        self.0.reveal
    }

    async fn answer(self, context: &mut QueryContext<'_>) -> Result<Answered<ContextAnswer>, QueryFailure> {
        let user = context.user;
        let found = context.read(PlanCacheMode::Auto, async |connection| self.find(connection, user).await);
        Ok(found.await?)
    }
}

macro_rules! columns {
    () => {
        "id, context_key, context_value::text AS context_value, context_type::text AS context_type,
        access_level::text AS access_level, priority, version, expires_at, is_persistent, is_sensitive, updated_at"
    };
}

const LIST: &str = concat!(
    "WITH page AS (SELECT * FROM simple_chat_context
    WHERE user_id = $1 AND session_id = $2 AND removed_at IS NULL AND ($3 IS NULL OR context_type = $3::context_type)
        AND ($4 IS NULL OR access_level = $4::access_level) AND ($5 IS NULL OR starts_with(context_key, $5))
        AND (expires_at IS NULL OR expires_at > now()) AND ($6 IS NULL OR context_key > $6)
    ORDER BY context_key LIMIT $7) ",
    within_page!(columns!(), "octet_length(p.context_value::text)", "simple_chat_context", "p.context_key", "$8", "$9")
);

/// An expired context is not found.
const GET: &str = concat!(
    "SELECT ",
    columns!(),
    ", 1::bigint AS found FROM (
        SELECT c.*, octet_length(c.context_value::text) + ",
    ciphertext_bytes!("c", "simple_chat_context", "$4"),
    " AS bytes FROM simple_chat_context c
        WHERE c.user_id = $1 AND c.session_id = $2 AND c.context_key = $3 AND c.removed_at IS NULL
            AND (c.expires_at IS NULL OR c.expires_at > now()) OFFSET 0
    ) AS c WHERE ",
    fits!("true", "true")
);

#[derive(QueryableByName)]
struct Row {
    #[diesel(sql_type = SqlUuid)]
    id: Uuid,
    #[diesel(sql_type = Text)]
    context_key: String,
    #[diesel(sql_type = Text)]
    context_value: String,
    #[diesel(sql_type = Text)]
    context_type: String,
    #[diesel(sql_type = Text)]
    access_level: String,
    #[diesel(sql_type = Integer)]
    priority: i32,
    #[diesel(sql_type = BigInt)]
    version: i64,
    #[diesel(sql_type = Nullable<Timestamptz>)]
    expires_at: Option<DateTime<Utc>>,
    #[diesel(sql_type = Bool)]
    is_persistent: bool,
    #[diesel(sql_type = Bool)]
    is_sensitive: bool,
    #[diesel(sql_type = Timestamptz)]
    updated_at: DateTime<Utc>,
    #[diesel(sql_type = BigInt)]
    found: i64,
}

impl Row {
    fn into_info(self) -> Result<ContextInfo, Fault> {
        Ok(ContextInfo {
            context_key: self.context_key,
            context_value: json(self.context_value)?,
            context_type: label(&self.context_type)?,
            access_level: label(&self.access_level)?,
            priority: self.priority,
            version: self.version,
            expires_at: self.expires_at.map(time),
            is_persistent: self.is_persistent,
            sensitive: self.is_sensitive,
            updated_at: self.updated_at,
        })
    }
}

impl List {
    async fn page(&self, connection: &mut Connection, user: UserId) -> Result<Answered<ContextPage>, Fault> {
        let Self { query, after } = self;
        let limit = query.limit.get();
        let statement = diesel::sql_query(LIST)
            .bind::<Integer, _>(user.get())
            .bind::<Text, _>(query.session_id.as_str())
            .bind::<Nullable<Text>, _>(query.context_type.map(contract::ContextType::as_str))
            .bind::<Nullable<Text>, _>(query.access_level.map(contract::AccessLevel::as_str))
            .bind::<Nullable<Text>, _>(query.key_prefix.as_ref().map(Name::as_str))
            .bind::<Nullable<Text>, _>(after.as_deref())
            .bind::<BigInt, _>(page::one_more(limit))
            .bind::<Bool, _>(query.reveal)
            .bind::<BigInt, _>(page::PAGE_BYTES);
        let rows: Vec<Row> = store::prepared(statement).load(connection).await?;
        let found = rows.as_slice().first().map_or(0, |row| row.found);
        let (rows, next_cursor) = page::cut(rows, limit, found, |row| row.context_key.clone());
        let sensitive = rows.iter().map(|row| (row.is_sensitive, row.id));
        let encrypted = secret::load(connection, query.reveal, TABLE, sensitive).await?;
        let ids: Vec<Uuid> = rows.iter().map(|row| row.id).collect();
        let secrets = secret::of_json(encrypted, &ids, |page: &mut ContextPage, index| {
            page.contexts.get_mut(index).map(|context| &mut context.context_value)
        });
        let contexts = rows.into_iter().map(Row::into_info).collect::<Result<_, Fault>>()?;
        Ok(Answered::new(ContextPage { contexts, next_cursor }, TABLE, ids.len()).with_secrets(secrets))
    }
}

impl Get {
    async fn find(
        &self,
        connection: &mut Connection,
        user: UserId,
    ) -> Result<Answered<ContextAnswer>, Fault> {
        let Self(query) = self;
        let (session, key) = (query.session_id.as_str(), query.context_key.as_str());
        let statement = diesel::sql_query(GET)
            .bind::<Integer, _>(user.get())
            .bind::<Text, _>(session)
            .bind::<Text, _>(key)
            .bind::<Bool, _>(query.reveal);
        let rows: Vec<Row> = store::prepared(statement).load(connection).await?;
        let Some(row) = rows.into_iter().next() else {
            let what = format!("context {key:?} in session {session:?}");
            return Ok(Answered::not_found(TABLE, "context_key", &what, user));
        };
        let sensitive = [(row.is_sensitive, row.id)];
        let encrypted = secret::load(connection, query.reveal, TABLE, sensitive).await?;
        let secrets = secret::of_json(encrypted, &[row.id], |answer: &mut ContextAnswer, _| {
            Some(&mut answer.context.context_value)
        });
        let answer = ContextAnswer { context: row.into_info()? };
        Ok(Answered::new(answer, TABLE, 1).with_secrets(secrets))
    }
}
