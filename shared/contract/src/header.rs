//! Names of the headers of requests, events and dead letters.

/// The request id, a UUID. The inbox table recognizes a duplicate by the user and this id. Absent: [`MESSAGE_ID`].
pub const REQUEST_ID: &str = "Memfleet-Request-Id";

/// The id by which JetStream drops a duplicate within its duplicate window. All services share a stream and thereby its
/// ids, so a request with a [`REQUEST_ID`] should have one here that no other service can know, or none. On a request
/// without a [`REQUEST_ID`], it is the request id; on an event or a dead letter, its own id.
pub const MESSAGE_ID: &str = "Nats-Msg-Id";

/// The header of these that holds the request id, and its value.
pub fn request_id<'a>(value_of: impl Fn(&str) -> Option<&'a str>) -> Option<(&'static str, &'a str)> {
    [REQUEST_ID, MESSAGE_ID].into_iter().find_map(|name| Some((name, value_of(name)?)))
}

/// `Bearer <service token>`.
pub const AUTHORIZATION: &str = "Authorization";

/// The value of [`AUTHORIZATION`] for a service token (RFC 6750, section 2.1).
pub fn bearer(token: &str) -> String {
    format!("Bearer {token}")
}

/// W3C trace context of the publisher.
pub const TRACEPARENT: &str = "traceparent";

/// The subject to which the [`Outcome`](crate::Outcome) is published after the commit, below `_INBOX.<service>.`.
pub const REPLY_TO: &str = "Memfleet-Reply-To";

/// The version of the message contract that the body follows. Absent: [`CONTRACT_VERSION`].
pub const CONTRACT: &str = "Memfleet-Contract";

/// The only version of the message contract.
pub const CONTRACT_VERSION: &str = "1";

/// The key that encrypts the body, `<service>.<version>`. Absent: the body is plain JSON.
pub const ENCRYPTION: &str = "Memfleet-Encryption";

/// The id of the blackboard event that caused this request, a UUID.
pub const PARENT_EVENT: &str = "Memfleet-Parent-Event";

/// On a query: its deadline in milliseconds, from [`DEADLINE_MS_MIN`](crate::limit::DEADLINE_MS_MIN) to
/// [`DEADLINE_MS_MAX`](crate::limit::DEADLINE_MS_MAX). A query that takes longer is cancelled in the database too.
pub const DEADLINE_MS: &str = "Memfleet-Deadline-Ms";

/// On the reply to a rejected query: an HTTP status code. The header is that of the NATS service API.
pub const REFUSED: &str = "Nats-Service-Error-Code";

/// On a received message whose headers or subject cannot be read: what is wrong with them. Such a message is malformed.
pub const UNREADABLE: &str = "Memfleet-Unreadable";

/// On a dead letter: its [`DeadLetterClass`](crate::DeadLetterClass).
pub const DEAD_CLASS: &str = "Memfleet-Dead-Class";

/// On a dead letter: the reason, one sentence that names the field or the condition.
pub const DEAD_REASON: &str = "Memfleet-Dead-Reason";

/// On a dead letter: the subject of the original message.
pub const DEAD_SUBJECT: &str = "Memfleet-Dead-Subject";

/// On a dead letter: `STREAM/sequence` of the original message.
pub const DEAD_SOURCE: &str = "Memfleet-Dead-Source";

/// On a dead letter: the number of attempts.
pub const DEAD_TRIES: &str = "Memfleet-Dead-Tries";

/// On a dead letter: the request id of the original message, if it had one. [`MESSAGE_ID`] is the dead letter's own id.
pub const DEAD_REQUEST_ID: &str = "Memfleet-Dead-Request-Id";

/// On a dead letter that lists many messages: their number. Its body is a
/// [`DeadLetterSummary`](crate::DeadLetterSummary).
pub const DEAD_COUNT: &str = "Memfleet-Dead-Count";

/// On a tick that an event has caused, and no schedule: its id, a UUID. It is in the stream
/// [`WAKES`](crate::WAKES_STREAM), where only the worker of the job publishes.
pub const WOKEN: &str = "Memfleet-Woken";

/// In the place of the schedule of a job that an operator has paused: how often it runs otherwise.
pub const PAUSED: &str = "Memfleet-Paused-Schedule";

/// On a tick: the subject of the schedule that published it. The server sets it.
pub const SCHEDULER: &str = "Nats-Scheduler";

/// On a tick: when the schedule publishes the next one, in RFC 3339, or `purge` for its last one. The server sets it.
pub const SCHEDULE_NEXT: &str = "Nats-Schedule-Next";
