//! A conversation and its messages.

use chrono::{DateTime, Utc};
use contract::{ConversationPage, ConversationRead, Malformed, MessageInfo, UserId};
use diesel::QueryableByName;
use diesel::sql_types::{BigInt, Bool, Integer, Nullable, Text, Timestamptz, Uuid as SqlUuid};
use diesel_async::RunQueryDsl;
use store::{Connection, Fault};
use uuid::Uuid;

use super::{Answer, Found, json, label, one_more, secret_rows};
use crate::page;

pub(crate) const HISTORY: &str = "chat_history";
pub(crate) const MESSAGES: &str = "chat_messages";

#[derive(Debug)]
pub(crate) struct Read {
    pub(crate) asked: ConversationRead,
    after: Option<(DateTime<Utc>, Uuid)>,
}

impl Read {
    pub(crate) fn new(asked: ConversationRead) -> Result<Self, Malformed> {
        Ok(Self { after: page::position(asked.cursor.as_ref())?, asked })
    }
}

const FIND: &str = "
    SELECT id, summary, metadata::text AS metadata, is_sensitive FROM chat_history
    WHERE user_id = $1 AND conversation_id = $2";

/// A text takes more bytes in JSON than by itself.
const READ: &str = concat!(
    r#"WITH page AS (
        SELECT * FROM chat_messages
        WHERE user_id = $1 AND history_id = $2 AND ($3 IS NULL OR ("timestamp", id) > ($3, $4))
        ORDER BY "timestamp", id LIMIT $5) "#,
    within_page!(
        r#"id, role::text AS role, content, is_sensitive, "timestamp" AS sent_at"#,
        "octet_length(to_json(p.content)::text)",
        "chat_messages",
        r#"p."timestamp", p.id"#,
        "$6",
        "$7"
    )
);

#[derive(QueryableByName)]
struct History {
    #[diesel(sql_type = SqlUuid)]
    id: Uuid,
    #[diesel(sql_type = Nullable<Text>)]
    summary: Option<String>,
    #[diesel(sql_type = Text)]
    metadata: String,
    #[diesel(sql_type = Bool)]
    is_sensitive: bool,
}

#[derive(QueryableByName)]
struct Message {
    #[diesel(sql_type = SqlUuid)]
    id: Uuid,
    #[diesel(sql_type = Text)]
    role: String,
    #[diesel(sql_type = Text)]
    content: String,
    #[diesel(sql_type = Bool)]
    is_sensitive: bool,
    #[diesel(sql_type = Timestamptz)]
    sent_at: DateTime<Utc>,
    #[diesel(sql_type = BigInt)]
    found: i64,
}

impl Message {
    fn into_info(self) -> Result<MessageInfo, Fault> {
        Ok(MessageInfo {
            message_id: self.id,
            role: label(&self.role)?,
            content: self.content,
            sensitive: self.is_sensitive,
            sent_at: self.sent_at,
        })
    }
}

pub(crate) async fn read(connection: &mut Connection, user: UserId, read: &Read) -> Result<Found, Fault> {
    let Read { asked, after } = read;
    let limit = asked.limit.get();
    let query = diesel::sql_query(FIND)
        .bind::<Integer, _>(user.get())
        .bind::<Text, _>(asked.conversation_id.as_str());
    let histories: Vec<History> = store::prepared(query).load(connection).await?;
    let Some(history) = histories.into_iter().next() else {
        return Ok(Answer::Nothing("conversation_id").into());
    };
    let query = diesel::sql_query(READ)
        .bind::<Integer, _>(user.get())
        .bind::<SqlUuid, _>(history.id)
        .bind::<Nullable<Timestamptz>, _>(after.map(|(sent_at, _)| sent_at))
        .bind::<Nullable<SqlUuid>, _>(after.map(|(_, id)| id))
        .bind::<BigInt, _>(one_more(limit))
        .bind::<Bool, _>(asked.reveal)
        .bind::<BigInt, _>(page::PAGE_BYTES);
    let messages: Vec<Message> = store::prepared(query).load(connection).await?;
    let found = messages.as_slice().first().map_or(0, |message| message.found);
    let (messages, next_cursor) = page::cut(messages, limit, found, |message| (message.sent_at, message.id));
    let secrets =
        secret_rows(asked.reveal, messages.iter().map(|message| (message.is_sensitive, message.id)));
    let own = secret_rows(asked.reveal, [(history.is_sensitive, history.id)].into_iter());
    let page = ConversationPage {
        summary: history.summary,
        metadata: json(history.metadata)?,
        sensitive: history.is_sensitive,
        messages: messages.into_iter().map(Message::into_info).collect::<Result<_, Fault>>()?,
        next_cursor,
    };
    let found = Found::from(Answer::Conversation(page, history.id));
    found.with_secrets(connection, HISTORY, &own).await?.with_secrets(connection, MESSAGES, &secrets).await
}
