//! Dead letters: a message that is given up, whole, with the reason.

use async_nats::{HeaderMap, Subject};
use bytes::Bytes;
use contract::{DeadLetterClass, DeadLetterSubject, RequestSubject, header, limit};
use uuid::Uuid;

/// Why a message is given up.
#[derive(Clone, Debug)]
pub struct DeadLetterReason {
    /// The class.
    pub class: DeadLetterClass,
    /// One sentence that names the field or the condition.
    pub reason: String,
    /// How often it was tried.
    pub tries: u32,
}

/// A message that is given up, as the stream holds it.
#[derive(Clone, Copy, Debug)]
pub struct FailedMessage<'a> {
    /// The worker that gives it up.
    pub worker: &'a str,
    /// The stream that holds it.
    pub stream: &'a str,
    /// Its place there.
    pub sequence: u64,
    /// The subject it was published on.
    pub subject: &'a str,
    /// Its headers.
    pub headers: Option<&'a HeaderMap>,
    /// Its body.
    pub body: &'a Bytes,
}

/// A dead letter ready to be published.
#[derive(Clone, Debug)]
pub struct DeadLetter {
    /// `memory.dead.<worker>.<user_id>`.
    pub subject: Subject,
    /// The message's own headers without the broker's, and ours.
    pub headers: HeaderMap,
    /// The body, byte for byte.
    pub body: Bytes,
}

/// The room for our own headers beside a body, when a dead letter must fit what the server takes.
const HEADER_ROOM: usize = 16 * 1024;
/// The most that a message's own headers may take in its dead letter. JetStream refuses more than 64 KiB in all.
const CARRIED_BYTES: usize = 32 * 1024;
/// The longest request id that goes along, in characters. A UUID has 36; anything else is no id but may be long.
const REQUEST_ID_CHARS: usize = 64;

impl DeadLetter {
    /// Makes the dead letter of a message. `max_payload` is what the server takes: a body that does not fit stays
    /// behind in its stream, and the reason says where.
    pub fn new(failed: &FailedMessage<'_>, cause: &DeadLetterReason, max_payload: usize) -> Self {
        let source = format!("{}/{}", failed.stream, failed.sequence);
        let request_id = failed.headers.and_then(|headers| headers.get(header::MESSAGE_ID));
        let request_id = request_id.map(|id| id.as_str().chars().take(REQUEST_ID_CHARS).collect::<String>());
        let mut headers = carried(failed.headers);
        let mut reason = printable(&cause.reason);
        if header_bytes(&headers) > CARRIED_BYTES {
            headers = HeaderMap::new();
            reason = format!("{reason}; its headers are too large to move, they are still at {source}");
        }
        let fits = failed.body.len() + header_bytes(&headers) + HEADER_ROOM <= max_payload;
        if !fits {
            headers = HeaderMap::new();
            reason = format!("{reason}; too large to move, the message is still at {source}");
        }
        // The same request given up twice is one dead letter. Another user's request is another one, and so is another
        // body under the same id.
        let name = request_id.as_ref().unwrap_or(&source);
        let name = format!("{} {:?} {name} ", failed.worker, user(failed.subject));
        let id = Uuid::new_v5(&Uuid::NAMESPACE_OID, &[name.as_bytes(), failed.body].concat());
        headers.insert(header::MESSAGE_ID, id.to_string());
        headers.insert(header::DEAD_CLASS, cause.class.as_str());
        headers.insert(header::DEAD_REASON, reason);
        headers.insert(header::DEAD_SUBJECT, failed.subject);
        headers.insert(header::DEAD_SOURCE, source);
        headers.insert(header::DEAD_TRIES, cause.tries.to_string());
        if let Some(request_id) = request_id {
            headers.insert(header::DEAD_REQUEST_ID, request_id);
        }
        let user_id = user(failed.subject);
        let subject = DeadLetterSubject { worker: failed.worker, user_id }.to_string().into();
        Self { subject, headers, body: if fits { failed.body.clone() } else { Bytes::new() } }
    }
}

/// The user of a subject, also of one that is otherwise malformed.
fn user(subject: &str) -> Option<contract::UserId> {
    match subject.parse::<RequestSubject>() {
        Ok(subject) => Some(subject.user_id),
        Err(_) => subject.rsplit('.').next().and_then(|token| token.parse().ok()),
    }
}

/// The headers that go along. `Nats-` ones are orders to the broker and would be carried out again; a service token stays
/// good for a while, and dead letters are read by others than its service.
fn carried(headers: Option<&HeaderMap>) -> HeaderMap {
    let mut carried = HeaderMap::new();
    for (name, values) in headers.into_iter().flat_map(HeaderMap::iter) {
        let lower = name.to_string().to_ascii_lowercase();
        if !lower.starts_with("nats-") && lower != header::AUTHORIZATION.to_ascii_lowercase() {
            for value in values {
                carried.append(name.clone(), value.clone());
            }
        }
    }
    carried
}

fn header_bytes(headers: &HeaderMap) -> usize {
    headers
        .iter()
        .map(|(name, values)| {
            values.iter().map(|value| name.to_string().len() + value.as_str().len() + 4).sum::<usize>()
        })
        .sum()
}

/// One line without control characters, as a header must be.
fn printable(reason: &str) -> String {
    reason
        .chars()
        .map(|character| if character.is_control() { ' ' } else { character })
        .take(limit::REASON_CHARS)
        .collect()
}
