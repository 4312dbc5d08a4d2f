use std::time::Duration;

use contract::QueryError;
use trust::{CipherError, KeyError};
use uuid::Uuid;

/// Why the client could not do what it was asked for. No message holds a body, a token or a key.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// The broker cannot be connected to, or the connection does not work.
    #[error("NATS at {url}: {problem}")]
    Connection {
        /// Its address.
        url: String,
        /// What went wrong.
        problem: String,
    },
    /// A file that the options name cannot be read.
    #[error("{path} cannot be read: {source}")]
    File {
        /// The file.
        path: String,
        /// What the system says.
        source: std::io::Error,
    },
    /// The payload keys cannot be read.
    #[error("the payload keys: {0}")]
    PayloadKeys(#[from] KeyError),
    /// A body is encrypted under a key that is not in the ring.
    #[error("the payload keys have no key {0}")]
    UnknownPayloadKey(String),
    /// A body cannot be encrypted or decrypted.
    #[error("the body {0}")]
    Cipher(#[from] CipherError),
    /// No user has this id.
    #[error("{0} is no user id: it must be from 0 to 2147483647")]
    UserId(i32),
    /// A request or a query cannot be written as JSON.
    #[error("{name} cannot be written as JSON: {source}")]
    Encode {
        /// Its noun and verb.
        name: String,
        /// What is wrong with it.
        source: serde_json::Error,
    },
    /// There is no service token for this user.
    #[error("no service token: {0}")]
    Token(String),
    /// JetStream has not stored a request.
    #[error("{0}")]
    NotStored(String),
    /// A worker has rejected a request; it is in the dead-letter stream.
    #[error("request {request_id} was rejected: {reason}")]
    Rejected {
        /// The request.
        request_id: Uuid,
        /// Why.
        reason: String,
    },
    /// A request is stored, but its outcome did not arrive in time. It may still take effect.
    #[error("no outcome of request {request_id} within {} s (timed out); is the worker running?", .waited.as_secs_f64())]
    NoOutcome {
        /// The request.
        request_id: Uuid,
        /// How long was waited.
        waited: Duration,
    },
    /// Nobody has answered a query.
    #[error(
        "{name} has no answer ({problem}); `memfleet run memory-reader` answers queries, and nats/services.json lists which \
         queries {service} may ask"
    )]
    NoAnswer {
        /// Its noun and verb.
        name: String,
        /// Who asked.
        service: String,
        /// What the broker reports.
        problem: String,
    },
    /// A query was refused.
    #[error("{}: {}", .0.code, .0.message)]
    Refused(QueryError),
    /// An answer is not what the contract says.
    #[error("the answer to {name} cannot be read: {source}")]
    Answer {
        /// The noun and verb of the query.
        name: String,
        /// What is wrong with it.
        source: serde_json::Error,
    },
}
