//! Conversations, their messages, and feedback on them.

use std::sync::LazyLock;

use chrono::{DateTime, Utc};
use contract::{ContextRequest as Request, ConversationPut, MessageAdd, SessionId, UserId};
use diesel_async::RunQueryDsl;
use store::unnest::{UnnestRow, with_rows};
use store::{Connection, Fault};
use uuid::Uuid;

use super::table::{Change, Table, Writer};
use super::{Done, Item, record, rounds};

pub(crate) static CONVERSATIONS: Table = Table { name: "chat_history", writer: Writer::Conversations };
pub(crate) static MESSAGES: Table = Table { name: "chat_messages", writer: Writer::Messages };
pub(crate) static FEEDBACK: Table = Table {
    name: "message_feedback",
    writer: Writer::Records { put: WRITE_FEEDBACK, remove: WRITE_FEEDBACK },
};

/// The id of a conversation's row. It is the same whichever of the conversation's requests arrives first.
fn history_id(user_id: UserId, conversation_id: &SessionId) -> Uuid {
    Uuid::new_v5(&Uuid::NAMESPACE_OID, format!("chat_history {user_id} {conversation_id}").as_bytes())
}

const WRITE_CONVERSATIONS: &str = "
    WITH input AS (
        SELECT i.* FROM jsonb_to_recordset($1::jsonb) AS i (ordinal integer, history_id uuid, user_id integer,
            request_id uuid, stored_at timestamptz, conversation_id text, summary text, metadata jsonb,
            sensitive boolean)
        JOIN users u ON u.id = i.user_id
    ), written AS (
        INSERT INTO chat_history AS t (id, user_id, conversation_id, summary, metadata, is_sensitive, request_id, created_at, updated_at)
        SELECT history_id, user_id, conversation_id, summary, metadata, coalesce(sensitive, false), request_id, stored_at, stored_at
        FROM input ORDER BY user_id, conversation_id
        ON CONFLICT (user_id, conversation_id) DO UPDATE SET summary = excluded.summary,
            metadata = excluded.metadata, is_sensitive = excluded.is_sensitive, request_id = excluded.request_id, updated_at = excluded.updated_at
        WHERE excluded.updated_at >= t.updated_at
        RETURNING user_id, id, conversation_id
    )
    SELECT i.ordinal, w.id AS row_id
    FROM input i LEFT JOIN written w ON w.user_id = i.user_id AND w.conversation_id = i.conversation_id";

store::unnest_row! {
    /// A row of [`WRITE_MESSAGES`].
    struct Row<'a> {
        id: Uuid,
        user_id: i32,
        history_id: Uuid,
        conversation_id: &'a str,
        role: &'a str,
        content: &'a str,
        sent_at: DateTime<Utc>,
        stored_at: DateTime<Utc>,
        stored_sequence: i64,
        request_id: Uuid,
        is_sensitive: bool,
    }
}

impl<'a> Row<'a> {
    fn new(item: &Item<'a, &'a MessageAdd>) -> Self {
        let Item { message, request, .. } = *item;
        Self {
            id: request.message_id,
            user_id: message.user_id().get(),
            history_id: history_id(message.user_id(), &request.conversation_id),
            conversation_id: request.conversation_id.as_str(),
            role: request.role.as_str(),
            content: request.content.as_str(),
            // At most the time when it was stored: the publisher's clock may be ahead.
            sent_at: request.sent_at.map_or(message.stored_at, |sent_at| sent_at.min(message.stored_at)),
            stored_at: message.stored_at,
            stored_sequence: i64::try_from(message.sequence).unwrap_or(i64::MAX),
            request_id: message.request_id,
            is_sensitive: request.sensitive,
        }
    }
}

/// A message that exists already creates no conversation: the row of the conversation follows from the rows that were
/// written. Its foreign key is checked at the end of the statement.
///
/// A conversation created by a message gets the epoch as `updated_at`, so that the request that describes it counts as
/// newer whenever it arrives.
static WRITE_MESSAGES: LazyLock<String> = LazyLock::new(|| {
    let (arrays, names) = (Row::arrays(1), Row::names());
    format!(
        "WITH input AS (
        SELECT (i.ordinal - 1)::integer AS ordinal, i.id, i.user_id, i.history_id, i.conversation_id, i.role,
            i.content, i.is_sensitive, i.sent_at, i.stored_at, i.stored_sequence, i.request_id
        FROM unnest({arrays}) WITH ORDINALITY AS i ({names}, ordinal)
        JOIN users u ON u.id = i.user_id
    ), written AS (
        INSERT INTO chat_messages (id, user_id, history_id, role, content, is_sensitive, \"timestamp\", stored_sequence, request_id)
        SELECT id, user_id, history_id, role::message_role, content, is_sensitive, sent_at, stored_sequence, request_id
        FROM input ORDER BY user_id, id
        ON CONFLICT DO NOTHING
        RETURNING user_id, id
    ), history AS (
        INSERT INTO chat_history (id, user_id, conversation_id, request_id, created_at, updated_at)
        SELECT DISTINCT ON (i.user_id, i.conversation_id) i.history_id, i.user_id, i.conversation_id, i.request_id,
            i.stored_at, 'epoch'
        FROM input i JOIN written w ON w.user_id = i.user_id AND w.id = i.id
        ORDER BY i.user_id, i.conversation_id, i.stored_sequence
        ON CONFLICT DO NOTHING
    )
    SELECT i.ordinal, w.id AS row_id
    FROM input i LEFT JOIN written w ON w.user_id = i.user_id AND w.id = i.id"
    )
});

const WRITE_FEEDBACK: &str = "
    WITH input AS (
        SELECT i.* FROM jsonb_to_recordset($1::jsonb) AS i (ordinal integer, id uuid, user_id integer,
            request_id uuid, stored_at timestamptz, message_id uuid, feedback_type feedback_type, rating integer, comment text,
            sensitive boolean)
        JOIN chat_messages m ON m.user_id = i.user_id AND m.id = i.message_id
    ), written AS (
        INSERT INTO message_feedback AS t (id, user_id, message_id, feedback_type, rating, comment, is_sensitive, request_id, created_at,
            updated_at)
        SELECT id, user_id, message_id, feedback_type, rating, comment, coalesce(sensitive, false), request_id, stored_at, stored_at
        FROM input ORDER BY user_id, message_id, feedback_type
        ON CONFLICT (user_id, message_id, feedback_type) DO UPDATE SET rating = excluded.rating,
            comment = excluded.comment, is_sensitive = excluded.is_sensitive, request_id = excluded.request_id, updated_at = excluded.updated_at
        WHERE excluded.updated_at >= t.updated_at
        RETURNING user_id, id, message_id, feedback_type
    )
    SELECT i.ordinal, w.id AS row_id
    FROM input i LEFT JOIN written w
        ON w.user_id = i.user_id AND w.message_id = i.message_id AND w.feedback_type = i.feedback_type";

/// The description of a conversation, and the id of its row.
#[derive(serde::Serialize)]
struct Description<'a> {
    history_id: Uuid,
    #[serde(flatten)]
    put: &'a ConversationPut,
}

pub(crate) async fn write(
    connection: &mut Connection,
    items: Vec<Item<'_, &Change>>,
    done: &mut [Done],
) -> Result<(), Fault> {
    let conversations: Vec<Item<'_, &ConversationPut>> = items
        .into_iter()
        .filter_map(|Item { index, message, .. }| {
            let Request::ConversationPut(request) = &message.request else { return None };
            Some(Item { index, message, request })
        })
        .collect();
    for round in rounds(conversations, |item| (item.message.user_id(), &item.request.conversation_id)) {
        let described: Vec<_> = round
            .iter()
            .map(|&Item { index, message, request: put }| {
                let history_id = history_id(message.user_id(), &put.conversation_id);
                Item { index, message, request: Description { history_id, put } }
            })
            .collect();
        record::write_as(connection, WRITE_CONVERSATIONS, &described, done).await?;
    }
    Ok(())
}

pub(crate) async fn write_messages(
    connection: &mut Connection,
    items: Vec<Item<'_, &Change>>,
    done: &mut [Done],
) -> Result<(), Fault> {
    let messages: Vec<Item<'_, &MessageAdd>> = items
        .into_iter()
        .filter_map(|Item { index, message, .. }| {
            let Request::MessageAdd(request) = &message.request else { return None };
            Some(Item { index, message, request })
        })
        .collect();
    for round in rounds(messages, |item| (item.message.user_id(), item.request.message_id)) {
        let rows = round.iter().map(Row::new).collect();
        let answers = with_rows(&WRITE_MESSAGES, rows).load(connection).await?;
        record::mark_items(answers, &round, done);
    }
    Ok(())
}
