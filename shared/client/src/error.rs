use std::time::Duration;

use contract::QueryError;
use trust::{CipherError, KeyError};
use uuid::Uuid;

/// An error of the client. No message contains a body, a token or a key.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// The connection to the broker failed.
    #[error("NATS at {url}: {problem}")]
    Connection {
        /// The URL of the broker, without its credentials.
        url: String,
        /// What went wrong.
        problem: String,
    },
    /// A file named in the options cannot be read.
    #[error("{path} cannot be read: {source}")]
    File {
        /// The file.
        path: String,
        /// The error of the operating system.
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
    /// The number is not a user id.
    #[error("{0} is not a user id: it must be from 0 to 2147483647")]
    UserId(i32),
    /// A request or a query cannot be encoded as JSON.
    #[error("{name} cannot be encoded as JSON: {source}")]
    Encode {
        /// Its noun and verb.
        name: String,
        /// The error of the encoder.
        source: serde_json::Error,
    },
    /// There is no service token for this user.
    #[error("no service token: {0}")]
    Token(String),
    /// JetStream did not store a request.
    #[error("{0}")]
    NotStored(String),
    /// A worker rejected a request; it is in the dead-letter stream.
    #[error("request {request_id} was rejected: {reason}")]
    Rejected {
        /// The request.
        request_id: Uuid,
        /// The reason.
        reason: String,
    },
    /// A request is stored, but its outcome did not arrive in time. It may still take effect.
    #[error("no outcome of request {request_id} within {} s (timed out); is the worker running?", .waited.as_secs_f64())]
    NoOutcome {
        /// The request.
        request_id: Uuid,
        /// How long the client waited.
        waited: Duration,
    },
    /// No worker answered a query.
    #[error(
        "{name} has no answer ({problem}); `memfleet run memory-reader` answers queries, and nats/services.json lists which \
         queries {service} may ask"
    )]
    NoAnswer {
        /// Its noun and verb.
        name: String,
        /// The querying service.
        service: String,
        /// The error of the broker.
        problem: String,
    },
    /// A query was rejected.
    #[error("{}: {}", .0.code, .0.message)]
    Refused(QueryError),
    /// An answer does not follow the contract.
    #[error("the answer to {name} cannot be read: {source}")]
    Answer {
        /// The noun and verb of the query.
        name: String,
        /// The error of the decoder.
        source: serde_json::Error,
    },
}
