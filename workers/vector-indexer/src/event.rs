//! What an effect adds to the event stream.

use std::borrow::Cow;

use contract::{Event, Performative, VectorRequest};
use runtime::{Effect, Message, Payload, Verdict};

use crate::Redacted;
use crate::store::Done;

pub(crate) fn verdict(message: &Message<Redacted>, done: Done) -> Verdict {
    match done {
        Done::Applied => Verdict::Applied(effect(&message.request)),
        Done::Late => Verdict::Unchanged("a later request has written or removed it"),
        Done::MissingPrerequisite(reason) => Verdict::MissingPrerequisite(reason),
        Done::Refused(reason) => Verdict::Refused(reason),
    }
}

fn effect(redacted: &Redacted) -> Effect {
    let session = redacted.session_id.as_ref();
    Effect {
        event_type: redacted.request.kind().event,
        performative: Performative::Inform,
        source_agent_id: None,
        target_agent_id: None,
        session_id: session
            .map_or(Cow::Borrowed(Event::ACCOUNT_SESSION), |session| Cow::Owned(session.to_string())),
        payload: payload(&redacted.request),
    }
}

/// Vectors are in the vector store, and stand in no event; nor does what was said before, which has events of its own.
fn payload(request: &VectorRequest) -> Payload {
    match request {
        VectorRequest::VectorIndex(index) => {
            let mut index = index.clone();
            for memory in index.memories.as_mut_slice() {
                (memory.embedding, memory.preceding_text) = (None, None);
            }
            // A request always has a JSON text; if it had none, nothing is told rather than the vectors.
            Payload::Redacted(serde_json::to_string(&index).unwrap_or_else(|_| "{}".to_owned()))
        }
        VectorRequest::VectorRemove(_) => Payload::Body,
    }
}
