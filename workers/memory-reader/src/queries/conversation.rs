//! `conversation.read`: a conversation and its messages.

use chrono::{DateTime, Utc};
use contract::{ConversationPage, ConversationRead, Malformed, MessageInfo, UserId};
use diesel::QueryableByName;
use diesel::sql_types::{BigInt, Bool, Integer, Nullable, Text, Timestamptz, Uuid as SqlUuid};
use diesel_async::RunQueryDsl;
use keys::Encrypted;
use store::security::PlanCacheMode;
use store::{Connection, Fault};
use uuid::Uuid;

use crate::column::{json, label, time};
use crate::page::{self, CursorTime, ciphertext_bytes, fits, within_page};
use crate::query_context::QueryContext;
use crate::query_failure::QueryFailure;
use crate::secret::{self, Secret};
use crate::validated_query::{Answered, ValidatedQuery};

const HISTORY: &str = "chat_history";
const MESSAGES: &str = "chat_messages";

#[derive(Debug)]
pub(crate) struct Read {
    query: ConversationRead,
    after: Option<(CursorTime, i64, Uuid)>,
}

impl ValidatedQuery for Read {
    type Query = ConversationRead;

    fn validate(query: ConversationRead) -> Result<Self, Malformed> {
        Ok(Self { after: page::position(query.cursor.as_ref())?, query })
    }

    fn reveals(&self) -> bool {
        self.query.reveal
    }

    async fn answer(
        self,
        context: &mut QueryContext<'_>,
    ) -> Result<Answered<ConversationPage>, QueryFailure> {
        let user = context.user;
        let page = context.read(PlanCacheMode::Auto, async |connection| self.page(connection, user).await);
        Ok(page.await?)
    }
}

const FIND: &str = concat!(
    "SELECT id, summary, metadata::text AS metadata, is_sensitive FROM (
        SELECT h.*, coalesce(octet_length(to_json(h.summary)::text), 0) + octet_length(h.metadata::text) + ",
    ciphertext_bytes!("h", "chat_history", "$3"),
    " AS bytes FROM chat_history h WHERE h.user_id = $1 AND h.conversation_id = $2 OFFSET 0
    ) AS h WHERE ",
    fits!("true", "true")
);

/// The size is measured as JSON, whose escapes make a text larger.
const READ: &str = concat!(
    r#"WITH page AS (
        SELECT * FROM chat_messages
        WHERE user_id = $1 AND history_id = $2 AND ($3 IS NULL OR ("timestamp", stored_sequence, id) > ($3, $4, $5))
        ORDER BY "timestamp", stored_sequence, id LIMIT $6) "#,
    within_page!(
        r#"id, role::text AS role, content, is_sensitive, "timestamp" AS sent_at, stored_sequence"#,
        "octet_length(to_json(p.content)::text)",
        "chat_messages",
        r#"p."timestamp", p.stored_sequence, p.id"#,
        "$7",
        "$8"
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
    stored_sequence: i64,
    #[diesel(sql_type = BigInt)]
    found: i64,
}

impl Message {
    /// Messages of one time are in the order in which they were stored.
    fn position(&self) -> (CursorTime, i64, Uuid) {
        (CursorTime(self.sent_at), self.stored_sequence, self.id)
    }

    fn into_info(self) -> Result<MessageInfo, Fault> {
        Ok(MessageInfo {
            message_id: self.id,
            role: label(&self.role)?,
            content: self.content,
            sensitive: self.is_sensitive,
            sent_at: time(self.sent_at),
        })
    }
}

impl Read {
    async fn page(
        &self,
        connection: &mut Connection,
        user: UserId,
    ) -> Result<Answered<ConversationPage>, Fault> {
        let Self { query, after } = self;
        let (conversation, limit) = (query.conversation_id.as_str(), query.limit.get());
        let statement = diesel::sql_query(FIND)
            .bind::<Integer, _>(user.get())
            .bind::<Text, _>(conversation)
            .bind::<Bool, _>(query.reveal);
        let histories: Vec<History> = store::prepared(statement).load(connection).await?;
        let Some(history) = histories.into_iter().next() else {
            let what = format!("conversation {conversation:?}");
            return Ok(Answered::not_found(HISTORY, "conversation_id", &what, user));
        };
        let statement = diesel::sql_query(READ)
            .bind::<Integer, _>(user.get())
            .bind::<SqlUuid, _>(history.id)
            .bind::<Nullable<Timestamptz>, _>(after.map(|(CursorTime(sent_at), ..)| sent_at))
            .bind::<Nullable<BigInt>, _>(after.map(|(_, stored_sequence, _)| stored_sequence))
            .bind::<Nullable<SqlUuid>, _>(after.map(|(.., id)| id))
            .bind::<BigInt, _>(page::one_more(limit))
            .bind::<Bool, _>(query.reveal)
            .bind::<BigInt, _>(page::PAGE_BYTES);
        let messages: Vec<Message> = store::prepared(statement).load(connection).await?;
        let found = messages.as_slice().first().map_or(0, |message| message.found);
        let (messages, next_cursor) = page::cut(messages, limit, found, Message::position);
        let own = [(history.is_sensitive, history.id)];
        let mut encrypted = secret::load(connection, query.reveal, HISTORY, own).await?;
        let sensitive = messages.iter().map(|message| (message.is_sensitive, message.id));
        encrypted.extend(secret::load(connection, query.reveal, MESSAGES, sensitive).await?);
        let page = ConversationPage {
            summary: history.summary,
            metadata: json(history.metadata)?,
            sensitive: history.is_sensitive,
            messages: messages.into_iter().map(Message::into_info).collect::<Result<_, Fault>>()?,
            next_cursor,
        };
        let read = page.messages.len();
        Ok(Answered::new(page, HISTORY, 1)
            .and_read(MESSAGES, read)
            .with_secrets(encrypted.into_iter().map(secret_of)))
    }
}

/// The place of an encrypted field of the conversation or of one of its messages.
fn secret_of(field: Encrypted) -> Secret<ConversationPage> {
    let (column, row) = (field.column.clone(), field.row);
    Secret::new(field, move |page: &mut ConversationPage, plain| match column.as_str() {
        "content" => {
            if let Some(message) = page.messages.iter_mut().find(|message| message.message_id == row) {
                plain.clone_into(&mut message.content);
            }
        }
        "summary" => page.summary = Some(plain.to_owned()),
        "metadata" => secret::replace_json(&mut page.metadata, plain),
        _ => {}
    })
}
