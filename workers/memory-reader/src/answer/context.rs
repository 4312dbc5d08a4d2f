//! Contexts of a session.

use chrono::{DateTime, Utc};
use contract::{ContextAnswer, ContextGet, ContextInfo, ContextList, ContextPage, Malformed, Name, UserId};
use diesel::QueryableByName;
use diesel::sql_types::{BigInt, Bool, Integer, Nullable, Text, Timestamptz, Uuid as SqlUuid};
use diesel_async::RunQueryDsl;
use store::{Connection, Fault};
use uuid::Uuid;

use super::{Answer, Found, json, label, one_more, secret_rows};
use crate::page;

pub(crate) const TABLE: &str = "simple_chat_context";

#[derive(Debug)]
pub(crate) struct List {
    pub(crate) asked: ContextList,
    after: Option<String>,
}

impl List {
    pub(crate) fn new(asked: ContextList) -> Result<Self, Malformed> {
        Ok(Self { after: page::position(asked.cursor.as_ref())?, asked })
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
        AND ($6 OR expires_at IS NULL OR expires_at > now()) AND ($7 IS NULL OR context_key > $7)
    ORDER BY context_key LIMIT $8) ",
    within_page!(columns!(), "octet_length(p.context_value::text)", "simple_chat_context", "p.context_key", "$9", "$10")
);

/// One that has expired is not there.
const GET: &str = concat!(
    "SELECT ",
    columns!(),
    ", 1::bigint AS found FROM simple_chat_context
    WHERE user_id = $1 AND session_id = $2 AND context_key = $3 AND removed_at IS NULL
        AND (expires_at IS NULL OR expires_at > now())"
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
            expires_at: self.expires_at,
            is_persistent: self.is_persistent,
            sensitive: self.is_sensitive,
            updated_at: self.updated_at,
        })
    }
}

pub(crate) async fn list(connection: &mut Connection, user: UserId, list: &List) -> Result<Found, Fault> {
    let List { asked, after } = list;
    let limit = asked.limit.get();
    let query = diesel::sql_query(LIST)
        .bind::<Integer, _>(user.get())
        .bind::<Text, _>(asked.session_id.as_str())
        .bind::<Nullable<Text>, _>(asked.context_type.map(contract::ContextType::as_str))
        .bind::<Nullable<Text>, _>(asked.access_level.map(contract::AccessLevel::as_str))
        .bind::<Nullable<Text>, _>(asked.key_prefix.as_ref().map(Name::as_str))
        .bind::<Bool, _>(asked.include_expired)
        .bind::<Nullable<Text>, _>(after.as_deref())
        .bind::<BigInt, _>(one_more(limit))
        .bind::<Bool, _>(asked.reveal)
        .bind::<BigInt, _>(page::PAGE_BYTES);
    let rows: Vec<Row> = store::prepared(query).load(connection).await?;
    let found = rows.as_slice().first().map_or(0, |row| row.found);
    let (rows, next_cursor) = page::cut(rows, limit, found, |row| row.context_key.clone());
    let secrets = secret_rows(asked.reveal, rows.iter().map(|row| (row.is_sensitive, row.id)));
    let ids = rows.iter().map(|row| row.id).collect();
    let contexts = rows.into_iter().map(Row::into_info).collect::<Result<_, Fault>>()?;
    let found = Found::from(Answer::Contexts(ContextPage { contexts, next_cursor }, ids));
    found.with_secrets(connection, TABLE, &secrets).await
}

pub(crate) async fn get(connection: &mut Connection, user: UserId, get: &ContextGet) -> Result<Found, Fault> {
    let query = diesel::sql_query(GET)
        .bind::<Integer, _>(user.get())
        .bind::<Text, _>(get.session_id.as_str())
        .bind::<Text, _>(get.context_key.as_str());
    let rows: Vec<Row> = store::prepared(query).load(connection).await?;
    let Some(row) = rows.into_iter().next() else { return Ok(Answer::Nothing("context_key").into()) };
    let secrets = secret_rows(get.reveal, [(row.is_sensitive, row.id)].into_iter());
    let found = Found::from(Answer::Context(ContextAnswer { context: row.into_info()? }));
    found.with_secrets(connection, TABLE, &secrets).await
}
