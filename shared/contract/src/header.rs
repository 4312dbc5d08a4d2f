//! Names of the headers of requests, events and dead letters.

/// The request id, a UUID. JetStream refuses a repeat within its duplicate window, and the inbox one that
/// comes later.
pub const MESSAGE_ID: &str = "Nats-Msg-Id";

/// `Bearer <service token>`.
pub const AUTHORIZATION: &str = "Authorization";

/// What [`AUTHORIZATION`] holds for a service token (RFC 6750, section 2.1).
pub fn bearer(token: &str) -> String {
    format!("Bearer {token}")
}

/// W3C trace context of the publisher.
pub const TRACEPARENT: &str = "traceparent";

/// A subject below `_INBOX.<service>.` that gets the [`Outcome`](crate::Outcome) once the effect is committed.
pub const REPLY_TO: &str = "Memfleet-Reply-To";

/// The version of the contract that the body follows. Absent means [`CONTRACT_VERSION`].
pub const CONTRACT: &str = "Memfleet-Contract";

/// The only version of the contract so far.
pub const CONTRACT_VERSION: &str = "1";

/// The key that the body is encrypted with, `<service>.<version>`; the body is then a ciphertext in the place of JSON.
/// Absent: it is JSON.
pub const ENCRYPTION: &str = "Memfleet-Encryption";

/// The id of the blackboard event that caused this request, a UUID.
pub const PARENT_EVENT: &str = "Memfleet-Parent-Event";

/// On a query: how many milliseconds it may take, within the bounds of [`limit`](crate::limit::DEADLINE_MS_MIN). What takes
/// longer is ended in the database, too.
pub const DEADLINE_MS: &str = "Memfleet-Deadline-Ms";

/// On a refusal in the place of an answer: a code as of HTTP. The NATS service API names it.
pub const REFUSED: &str = "Nats-Service-Error-Code";

/// On a dead letter: its [`DeadLetterClass`](crate::DeadLetterClass).
pub const DEAD_CLASS: &str = "Memfleet-Dead-Class";

/// On a dead letter: why, in one sentence that names the field or the condition.
pub const DEAD_REASON: &str = "Memfleet-Dead-Reason";

/// On a dead letter: the subject the message was published on.
pub const DEAD_SUBJECT: &str = "Memfleet-Dead-Subject";

/// On a dead letter: `STREAM/sequence` of the message.
pub const DEAD_SOURCE: &str = "Memfleet-Dead-Source";

/// On a dead letter: how often the worker tried.
pub const DEAD_TRIES: &str = "Memfleet-Dead-Tries";

/// On a dead letter: the request id of the message, if it had one. It is not in [`MESSAGE_ID`], which is the
/// dead letter's own.
pub const DEAD_REQUEST_ID: &str = "Memfleet-Dead-Request-Id";
