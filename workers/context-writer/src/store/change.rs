//! The worker's tables, and which request changes which table.

use contract::ContextRequest as Request;

use super::table::{Change, Table};
use super::{account, agent_context, context, conversation, session};

/// The tables in the order in which a batch writes them: referenced tables first.
pub(crate) static TABLES: [&Table; 13] = [
    &account::USERS,
    &account::PROFILES,
    &account::SETTINGS,
    &account::DEVICES,
    &account::SECOND_FACTORS,
    &account::PASSKEYS,
    &session::SESSIONS,
    &context::CONTEXTS,
    &session::SUMMARIES,
    &conversation::CONVERSATIONS,
    &conversation::MESSAGES,
    &conversation::FEEDBACK,
    &agent_context::AGENT_CONTEXTS,
];

impl Change {
    /// The change that a request makes. This is the only mapping from requests to tables.
    pub(crate) fn of(request: &Request) -> Self {
        match request {
            Request::UserPut(_) => put(&account::USERS, ""),
            Request::ProfilePut(_) => put(&account::PROFILES, ""),
            Request::SettingPut(one) => put(&account::SETTINGS, one.setting_key.as_str()),
            Request::SettingRemove(one) => remove(&account::SETTINGS, one.setting_key.as_str()),
            Request::DevicePut(one) => put(&account::DEVICES, one.device_id),
            Request::DeviceRemove(one) => remove(&account::DEVICES, one.device_id),
            Request::SecondFactorPut(one) => put(&account::SECOND_FACTORS, one.method.as_str()),
            Request::SecondFactorRemove(one) => remove(&account::SECOND_FACTORS, one.method.as_str()),
            Request::PasskeyPut(one) => put(&account::PASSKEYS, one.credential_id.as_str()),
            Request::PasskeyRemove(one) => remove(&account::PASSKEYS, one.credential_id.as_str()),
            Request::SessionOpen(one) => put(&session::SESSIONS, one.session_id.as_str()),
            Request::SessionClose(one) => remove(&session::SESSIONS, one.session_id.as_str()),
            Request::SummaryPut(one) => put(&session::SUMMARIES, one.session_id.as_str()),
            Request::ConversationPut(_) => put(&conversation::CONVERSATIONS, ""),
            Request::MessageAdd(_) => put(&conversation::MESSAGES, ""),
            Request::FeedbackPut(one) => {
                let key = format!("{} {}", one.message_id, one.feedback_type.as_str());
                put(&conversation::FEEDBACK, key)
            }
            Request::ContextPut(_) => put(&context::CONTEXTS, ""),
            Request::ContextRemove(_) => remove(&context::CONTEXTS, ""),
            Request::AgentContextPut(_) => put(&agent_context::AGENT_CONTEXTS, ""),
            Request::AgentContextRemove(_) => remove(&agent_context::AGENT_CONTEXTS, ""),
        }
    }
}

fn put(table: &'static Table, key: impl ToString) -> Change {
    Change { table, key: key.to_string(), removes: false }
}

fn remove(table: &'static Table, key: impl ToString) -> Change {
    Change { table, key: key.to_string(), removes: true }
}
