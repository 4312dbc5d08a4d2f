//! What an effect adds to the event stream.

use std::borrow::Cow;

use contract::{ContextRequest as Request, Event, Performative};
use runtime::{Effect, Message, Payload, Verdict};

use crate::Redacted;
use crate::store::Done;

pub(crate) fn verdict(message: &Message<Redacted>, done: Done) -> Verdict {
    match done {
        Done::Applied(_) => Verdict::Applied(effect(message)),
        Done::Stale => Verdict::Unchanged(stale(&message.request.request)),
        Done::Missing => Verdict::MissingPrerequisite(missing(message)),
    }
}

fn effect(message: &Message<Redacted>) -> Effect {
    let request = &message.request.request;
    Effect {
        event_type: request.kind().event,
        performative: Performative::Inform,
        source_agent_id: agent(request),
        target_agent_id: None,
        session_id: session(request),
        payload: payload(&message.request),
    }
}

fn agent(request: &Request) -> Option<String> {
    match request {
        Request::AgentContextPut(put) => Some(put.agent_id.to_string()),
        Request::AgentContextRemove(remove) => Some(remove.agent_id.to_string()),
        Request::UserPut(_)
        | Request::ProfilePut(_)
        | Request::SettingPut(_)
        | Request::SettingRemove(_)
        | Request::DevicePut(_)
        | Request::DeviceRemove(_)
        | Request::SecondFactorPut(_)
        | Request::SecondFactorRemove(_)
        | Request::PasskeyPut(_)
        | Request::PasskeyRemove(_)
        | Request::SessionOpen(_)
        | Request::SessionClose(_)
        | Request::ContextPut(_)
        | Request::ContextRemove(_)
        | Request::ConversationPut(_)
        | Request::MessageAdd(_)
        | Request::SummaryPut(_)
        | Request::FeedbackPut(_) => None,
    }
}

/// The session of an event. Events of a conversation go under its identifier.
fn session(request: &Request) -> Cow<'static, str> {
    let id = match request {
        Request::SessionOpen(open) => &open.session_id,
        Request::SessionClose(close) => &close.session_id,
        Request::ContextPut(put) => &put.session_id,
        Request::ContextRemove(remove) => &remove.session_id,
        Request::SummaryPut(put) => &put.session_id,
        Request::AgentContextPut(put) => &put.session_id,
        Request::AgentContextRemove(remove) => &remove.session_id,
        Request::ConversationPut(put) => &put.conversation_id,
        Request::MessageAdd(add) => &add.conversation_id,
        Request::UserPut(_)
        | Request::ProfilePut(_)
        | Request::SettingPut(_)
        | Request::SettingRemove(_)
        | Request::DevicePut(_)
        | Request::DeviceRemove(_)
        | Request::SecondFactorPut(_)
        | Request::SecondFactorRemove(_)
        | Request::PasskeyPut(_)
        | Request::PasskeyRemove(_)
        | Request::FeedbackPut(_) => return Cow::Borrowed(Event::ACCOUNT_SESSION),
    };
    Cow::Owned(id.to_string())
}

/// The request itself, but never a secret: events are read by whoever may see the user's memory.
fn payload(redacted: &Redacted) -> Payload {
    if redacted.secrets.is_empty() {
        return Payload::Body;
    }
    // A request always has a JSON text; if it had none, nothing is told rather than the body.
    Payload::Redacted(serde_json::to_string(&redacted.request).unwrap_or_else(|_| "{}".to_owned()))
}

fn stale(request: &Request) -> &'static str {
    match request {
        Request::ContextPut(_)
        | Request::ContextRemove(_)
        | Request::AgentContextPut(_)
        | Request::AgentContextRemove(_) => "this version or a newer one is there",
        Request::MessageAdd(_) => "a message with this message_id is there",
        Request::UserPut(_)
        | Request::ProfilePut(_)
        | Request::SettingPut(_)
        | Request::SettingRemove(_)
        | Request::DevicePut(_)
        | Request::DeviceRemove(_)
        | Request::SecondFactorPut(_)
        | Request::SecondFactorRemove(_)
        | Request::PasskeyPut(_)
        | Request::PasskeyRemove(_)
        | Request::SessionOpen(_)
        | Request::SessionClose(_)
        | Request::ConversationPut(_)
        | Request::SummaryPut(_)
        | Request::FeedbackPut(_) => "a newer record is there",
    }
}

/// What a request needs and did not find.
fn missing(message: &Message<Redacted>) -> String {
    let user = message.subject.user_id;
    match &message.request.request {
        Request::SessionClose(close) => not_open(&close.session_id, user),
        Request::ContextPut(put) => not_open(&put.session_id, user),
        Request::ContextRemove(remove) => not_open(&remove.session_id, user),
        Request::SummaryPut(put) => not_open(&put.session_id, user),
        Request::FeedbackPut(put) => format!("message_id: user {user} has no message {}", put.message_id),
        Request::UserPut(_)
        | Request::ProfilePut(_)
        | Request::SettingPut(_)
        | Request::SettingRemove(_)
        | Request::DevicePut(_)
        | Request::DeviceRemove(_)
        | Request::SecondFactorPut(_)
        | Request::SecondFactorRemove(_)
        | Request::PasskeyPut(_)
        | Request::PasskeyRemove(_)
        | Request::SessionOpen(_)
        | Request::ConversationPut(_)
        | Request::MessageAdd(_)
        | Request::AgentContextPut(_)
        | Request::AgentContextRemove(_) => format!("subject: user {user} is not known"),
    }
}

fn not_open(session_id: &contract::SessionId, user: contract::UserId) -> String {
    format!("session_id: user {user} has opened no session {session_id}")
}
