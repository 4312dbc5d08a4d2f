//! What an effect adds to the event stream.

use std::borrow::Cow;

use contract::{Performative, RouterRequest, ToolPhase};
use runtime::{Effect, Message, Payload, Verdict};

use crate::Redacted;
use crate::store::Done;

pub(crate) fn verdict(message: &Message<Redacted>, done: Done) -> Verdict {
    let session_id = match &message.request.request {
        RouterRequest::DecisionLog(log) => &log.session_id,
        RouterRequest::ToolReport(report) => &report.session_id,
    };
    match done {
        Done::Applied => Verdict::Applied(effect(&message.request, session_id.to_string())),
        Done::There => Verdict::Unchanged("a decision with this decision_id is there"),
        Done::Missing => {
            let user = message.subject.user_id;
            Verdict::MissingPrerequisite(format!(
                "session_id: user {user} has opened no session {session_id}"
            ))
        }
    }
}

fn effect(redacted: &Redacted, session_id: String) -> Effect {
    let (performative, target_agent_id) = match &redacted.request {
        RouterRequest::DecisionLog(_) => (Performative::Inform, None),
        RouterRequest::ToolReport(report) => {
            let performative = match report.phase {
                ToolPhase::Requested => Performative::Request,
                ToolPhase::Succeeded => Performative::Inform,
                ToolPhase::Failed => Performative::Failure,
            };
            (performative, Some(report.tool.to_string()))
        }
    };
    Effect {
        event_type: redacted.request.kind().event,
        performative,
        source_agent_id: None,
        target_agent_id,
        session_id: Cow::Owned(session_id),
        payload: match redacted.secrets.is_empty() {
            true => Payload::Body,
            // A request always has a JSON text; if it had none, nothing is told rather than the body.
            false => Payload::Redacted(
                serde_json::to_string(&redacted.request).unwrap_or_else(|_| "{}".to_owned()),
            ),
        },
    }
}
