//! Dead letters: complete copies of messages that cannot be processed, with the reason.

use async_nats::{HeaderMap, HeaderValue, Subject};
use bytes::Bytes;
use contract::{DeadLetterClass, DeadLetterSubject, RequestSubject, header, limit, printable_within};
use uuid::Uuid;

use crate::reason::Reason;

/// Why a message is dead-lettered.
#[derive(Clone, Debug)]
pub struct DeadLetterReason {
    /// The class.
    pub class: DeadLetterClass,
    /// Names the field or the condition.
    pub reason: Reason,
    /// How often it was tried.
    pub tries: u32,
}

/// A message to be dead-lettered, as the stream holds it.
#[derive(Clone, Copy, Debug)]
pub struct FailedMessage<'a> {
    /// The worker that dead-letters it.
    pub worker: &'a str,
    /// The namespace of the ids of the worker's dead letters. Only the worker knows it: whoever could guess an id could
    /// publish first under it, and the broker would drop the dead letter as a duplicate.
    pub id_namespace: Uuid,
    /// The stream that holds it.
    pub stream: &'a str,
    /// Its sequence number there.
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
    /// The message's headers without `Nats-*` and its token, and the headers that describe the dead letter.
    pub headers: HeaderMap,
    /// The body, byte for byte. Empty if it is too large.
    pub body: Bytes,
}

/// The part of a reason that shows that the body is not copied. The source of the message follows.
pub const STILL_AT: &str = "the message is still at";

/// Bytes reserved for the headers that describe a dead letter, when checking it against the server's `max_payload`.
const HEADER_RESERVE: usize = 16 * 1024;
/// Maximum size of a message's own headers in its dead letter. JetStream rejects more than 64 KiB of headers in all.
const MAX_CARRIED_BYTES: usize = 32 * 1024;
/// Maximum length of the copied request id, in characters. A UUID has 36; an invalid id may be longer.
const MAX_REQUEST_ID_CHARS: usize = 64;

impl DeadLetter {
    /// Creates the dead letter of a message. One that exceeds `max_payload`, the server's limit, stays in its
    /// stream, and the reason names its stream and sequence number.
    pub fn new(failed: &FailedMessage<'_>, cause: &DeadLetterReason, max_payload: usize) -> Self {
        Self::of(failed, cause, max_payload, true)
    }

    /// As [`DeadLetter::new`], without the body and the own headers of the message: a body that is left behind may come with
    /// headers as large as others' bodies.
    pub fn without_body(failed: &FailedMessage<'_>, cause: &DeadLetterReason, max_payload: usize) -> Self {
        Self::of(failed, cause, max_payload, false)
    }

    fn of(failed: &FailedMessage<'_>, cause: &DeadLetterReason, max_payload: usize, with_body: bool) -> Self {
        let source = format!("{}/{}", failed.stream, failed.sequence);
        let request_id = header::request_id(|name| failed.headers?.get(name).map(HeaderValue::as_str));
        let request_id = request_id.map(|(_, id)| id.chars().take(MAX_REQUEST_ID_CHARS).collect::<String>());
        let mut headers = if with_body { carried(failed.headers) } else { HeaderMap::new() };
        // A header value is one line.
        let mut reason = printable_within(&cause.reason.to_string(), limit::REASON_CHARS);
        if header_bytes(&headers) > MAX_CARRIED_BYTES {
            headers = HeaderMap::new();
            reason = format!("{reason}; its headers are too large to move, they are still at {source}");
        }
        let fits = failed.body.len() + header_bytes(&headers) + HEADER_RESERVE <= max_payload;
        if !fits {
            headers = HeaderMap::new();
            reason = format!("{reason}; too large to move, {STILL_AT} {source}");
        } else if !with_body {
            reason = format!("{reason}; beyond the share of its service, {STILL_AT} {source}");
        }
        // The id is deterministic, so that dead-lettering a request twice stores one dead letter. It depends on the whole
        // subject and the body: another service may use the same request id for the same user.
        let name = request_id.as_ref().unwrap_or(&source);
        let name = format!("{} {} {name} ", failed.worker, failed.subject);
        let id = Uuid::new_v5(&failed.id_namespace, &[name.as_bytes(), failed.body].concat());
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
        Self { subject, headers, body: if fits && with_body { failed.body.clone() } else { Bytes::new() } }
    }
}

/// The user in a subject, even if the subject is otherwise malformed.
fn user(subject: &str) -> Option<contract::UserId> {
    match subject.parse::<RequestSubject>() {
        Ok(subject) => Some(subject.user_id),
        Err(_) if !subject.starts_with(contract::REQUEST_ROOT) => None,
        Err(_) => subject.rsplit('.').next().and_then(|token| token.parse().ok()),
    }
}

/// The headers of a message that its dead letter carries. `Nats-*` headers are left out because the broker would act on them
/// again, `Memfleet-Dead-*` because a publisher must not describe its own dead letter. The token is left out because it stays
/// valid for a while, and others than its service read dead letters.
pub fn carried(headers: Option<&HeaderMap>) -> HeaderMap {
    let mut carried = HeaderMap::new();
    for (name, values) in headers.into_iter().flat_map(HeaderMap::iter) {
        let lower = name.to_string().to_ascii_lowercase();
        let is_left_out = lower.starts_with("nats-") || lower.starts_with("memfleet-dead-");
        if !is_left_out && lower != header::AUTHORIZATION.to_ascii_lowercase() {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_same_request_has_the_same_dead_letter() {
        let cause = DeadLetterReason {
            class: DeadLetterClass::Permanent,
            reason: Reason::new("no reason"),
            tries: 1,
        };
        let mut headers = HeaderMap::new();
        headers.insert(header::REQUEST_ID, "0192f0c4-7b1e-7c3a-9d7e-5a1f0c2b3d4f");
        headers.insert("X-Large", "x".repeat(10_000));
        let letter_in = |id_namespace: Uuid, service: &str, body: &'static [u8]| {
            let failed = FailedMessage {
                worker: "context-writer",
                id_namespace,
                stream: "CONTEXT",
                sequence: 7,
                subject: &format!("memory.req.{service}.context.put.42"),
                headers: Some(&headers),
                body: &Bytes::from_static(body),
            };
            DeadLetter::without_body(&failed, &cause, 1 << 20)
        };
        let letter = |service: &str, body| letter_in(Uuid::NAMESPACE_OID, service, body);
        let id_of = |letter: DeadLetter| letter.headers.get(header::MESSAGE_ID).map(ToString::to_string);
        let id = |service, body| id_of(letter(service, body));
        assert_eq!(id("first", b"{}"), id("first", b"{}"));
        assert_ne!(
            id("first", b"{}"),
            id_of(letter_in(Uuid::NAMESPACE_DNS, "first", b"{}")),
            "another worker"
        );
        assert_ne!(id("first", b"{}"), id("first", b"[]"), "another body");
        assert_ne!(id("first", b"{}"), id("other", b"{}"), "another service");
        assert!(
            letter("first", b"{}").headers.get("X-Large").is_none(),
            "they are left behind with the body"
        );
        assert_eq!(
            letter("first", b"{}").headers.get(header::DEAD_REQUEST_ID).map(HeaderValue::as_str),
            Some("0192f0c4-7b1e-7c3a-9d7e-5a1f0c2b3d4f")
        );
    }

    #[test]
    fn neither_the_token_nor_what_the_broker_acts_on_is_carried() {
        let mut headers = HeaderMap::new();
        for name in [
            "Nats-Msg-Id",
            "Nats-TTL",
            "nats-expected-stream",
            "NATS-Rollup",
            "authorization",
            "Memfleet-Dead-Count",
            "memfleet-dead-class",
        ] {
            headers.insert(name, "1");
        }
        headers.insert(header::AUTHORIZATION, "Bearer x");
        headers.insert(header::TRACEPARENT, "00-1-2-01");
        headers.append("X-Nats-Like", "first");
        headers.append("X-Nats-Like", "second");
        let failed = FailedMessage {
            worker: "context-writer",
            id_namespace: Uuid::NAMESPACE_OID,
            stream: "CONTEXT",
            sequence: 7,
            subject: "memory.req.simple-chat.context.put.42",
            headers: Some(&headers),
            body: &Bytes::from_static(b"{}"),
        };
        let cause = DeadLetterReason {
            class: DeadLetterClass::Permanent,
            reason: Reason::new("no\nreason"),
            tries: 1,
        };
        let letter = DeadLetter::new(&failed, &cause, 1 << 20);
        let mut names: Vec<String> = letter.headers.iter().map(|(name, _)| name.to_string()).collect();
        names.sort();
        let mut expected = [
            header::MESSAGE_ID,
            header::DEAD_CLASS,
            header::DEAD_REASON,
            header::DEAD_REQUEST_ID,
            header::DEAD_SOURCE,
            header::DEAD_SUBJECT,
            header::DEAD_TRIES,
            header::TRACEPARENT,
            "X-Nats-Like",
        ];
        expected.sort_unstable();
        assert_eq!(names, expected);
        assert_eq!(letter.headers.get_all("X-Nats-Like").count(), 2);
        let value = |name: &str| letter.headers.get(name).map(HeaderValue::as_str);
        // An id of the dead letter's own, and that of the request beside it.
        assert_ne!(value(header::MESSAGE_ID), Some("1"));
        assert_eq!(value(header::DEAD_REQUEST_ID), Some("1"));
        assert_eq!(value(header::DEAD_REASON), Some("no\\u{a}reason"));
    }

    #[test]
    fn a_header_takes_its_name_its_value_and_four_bytes() {
        let mut headers = HeaderMap::new();
        headers.append("Abc", "12345");
        assert_eq!(header_bytes(&headers), "Abc: 12345\r\n".len());
        headers.append("Abc", "");
        headers.append("De", "1");
        assert_eq!(header_bytes(&headers), "Abc: 12345\r\nAbc: \r\nDe: 1\r\n".len());
    }
}
