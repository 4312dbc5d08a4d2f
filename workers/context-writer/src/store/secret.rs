//! The secrets of a batch, written once it is known which rows they belong to.

use std::collections::HashMap;

use contract::ContextRequest as Request;
use keys::{DataKeys, Field};
use store::{Connection, Fault};
use uuid::Uuid;

use super::Done;
use crate::Redacted;
use runtime::Message;

/// Encrypts and writes what the rows that were written hold no more. Of several messages of one row, the last one counts,
/// whether it has secrets or not: the row is as that one left it.
pub(super) async fn write(
    connection: &mut Connection,
    batch: &[&Message<Redacted>],
    done: &[Done],
    keys: &DataKeys,
) -> Result<(), Fault> {
    if batch.iter().all(|message| message.request.secrets.is_empty()) {
        return Ok(());
    }
    let mut last: HashMap<(&str, i32, Uuid), &Message<Redacted>> = HashMap::new();
    for (&message, done) in batch.iter().zip(done) {
        if let (Some(table), Done::Applied(row)) = (table(&message.request.request), done) {
            last.insert((table, message.subject.user_id.get(), *row), message);
        }
    }
    let mut secrets = Vec::new();
    for ((table, _, row), message) in last {
        for secret in &message.request.secrets {
            let field = Field {
                user: message.subject.user_id,
                table,
                column: secret.field,
                row,
                request_id: message.request_id,
                stored_at: message.stored_at,
            };
            secrets.push((field, &secret.value));
        }
    }
    keys::encrypt_fields(connection, &secrets, keys).await
}

/// The table of the row that a request writes, if it may hold a secret.
fn table(request: &Request) -> Option<&'static str> {
    match request {
        Request::UserPut(_) => Some("users"),
        Request::SettingPut(_) | Request::SettingRemove(_) => Some("system_settings"),
        Request::SecondFactorPut(_) | Request::SecondFactorRemove(_) => Some("user_two_factor_auth"),
        Request::PasskeyPut(_) | Request::PasskeyRemove(_) => Some("passkey_credentials"),
        Request::ContextPut(_) | Request::ContextRemove(_) => Some("simple_chat_context"),
        Request::SummaryPut(_) => Some("chat_session_summary"),
        Request::ConversationPut(_) => Some("chat_history"),
        Request::MessageAdd(_) => Some("chat_messages"),
        Request::FeedbackPut(_) => Some("message_feedback"),
        Request::AgentContextPut(_) | Request::AgentContextRemove(_) => Some("agent_context_states"),
        Request::ProfilePut(_)
        | Request::DevicePut(_)
        | Request::DeviceRemove(_)
        | Request::SessionOpen(_)
        | Request::SessionClose(_) => None,
    }
}
