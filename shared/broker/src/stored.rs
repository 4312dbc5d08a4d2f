//! A stored message by its sequence number, whatever its headers.

use std::time::Duration;

use async_nats::jetstream::{self, ErrorCode};
use async_nats::{HeaderMap, HeaderName};
use bytes::Bytes;
use chrono::{DateTime, Utc};
use serde::Deserialize;
use tokio::time::timeout;

use crate::header_block::{self, Status};

/// A message as its stream holds it.
#[derive(Clone, Debug)]
pub struct StoredMessage {
    /// The subject that it was published on. Bytes that are not UTF-8 are replaced.
    pub subject: String,
    /// Its headers. If they are not readable, the valid ones and [`UNREADABLE`](contract::header::UNREADABLE).
    pub headers: HeaderMap,
    /// Its body.
    pub body: Bytes,
    /// When it was stored.
    pub stored_at: DateTime<Utc>,
}

/// A stored message cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum StoredMessageError {
    /// The stream does not hold it any more, or never did.
    #[error("the stream {stream} has no message {sequence}")]
    NotFound {
        /// The stream.
        stream: String,
        /// The sequence number.
        sequence: u64,
    },
    /// The server does not answer, or refuses.
    #[error("cannot read message {sequence} of the stream {stream}: {problem}")]
    Failed {
        /// The stream.
        stream: String,
        /// The sequence number.
        sequence: u64,
        /// The reason.
        problem: String,
    },
}

/// The server's answer (`io.nats.jetstream.api.v1.stream_msg_get_response`).
#[derive(Deserialize)]
struct Response {
    message: Option<Message>,
    error: Option<jetstream::Error>,
}

#[derive(Deserialize)]
struct Message {
    subject: String,
    #[serde(default)]
    hdrs: String,
    #[serde(default)]
    data: String,
    time: DateTime<Utc>,
}

const REQUEST_TIMEOUT: Duration = Duration::from_secs(5);

/// Reads a stored message. The server's answer is JSON with the headers in base64, which the client library reads
/// whatever they are.
///
/// # Errors
/// [`StoredMessageError`].
pub async fn stored_message(
    jetstream: &jetstream::Context,
    stream: &str,
    sequence: u64,
) -> Result<StoredMessage, StoredMessageError> {
    let failed =
        |problem: String| StoredMessageError::Failed { stream: stream.to_owned(), sequence, problem };
    let subject = format!("STREAM.MSG.GET.{stream}");
    let body = serde_json::json!({ "seq": sequence });
    let request = jetstream.request(subject, &body);
    let response: Response = timeout(REQUEST_TIMEOUT, request)
        .await
        .map_err(|_| failed(format!("no answer within {} s", REQUEST_TIMEOUT.as_secs())))?
        .map_err(|error| failed(error.to_string()))?;
    match (response.message, response.error) {
        (Some(message), _) => message.decoded().map_err(failed),
        (None, Some(error)) if error.error_code() == ErrorCode::NO_MESSAGE_FOUND => {
            Err(StoredMessageError::NotFound { stream: stream.to_owned(), sequence })
        }
        (None, Some(error)) => Err(failed(error.to_string())),
        (None, None) => Err(failed("the answer is empty".to_owned())),
    }
}

impl Message {
    fn decoded(self) -> Result<StoredMessage, String> {
        let decode = |text: &str| {
            let decoded = data_encoding::BASE64.decode(text.as_bytes());
            decoded.map_err(|error| format!("the answer is not base64: {error}"))
        };
        let block = decode(&self.hdrs)?;
        let headers = if self.hdrs.is_empty() { HeaderMap::new() } else { readable(&block) };
        let body = decode(&self.data)?.into();
        Ok(StoredMessage { subject: self.subject, headers, body, stored_at: self.time })
    }
}

/// The headers of a block. If it is not readable, the valid ones and what is wrong.
fn readable(block: &[u8]) -> HeaderMap {
    let replaced = match header_block::check(block, Status::Forbidden) {
        Ok(()) => None,
        Err(problem) => Some(header_block::replacement(block, &problem)),
    };
    let mut headers = HeaderMap::new();
    for (name, value) in header_block::headers(replaced.as_deref().unwrap_or(block)) {
        if let (Ok(name), Ok(value)) = (HeaderName::try_from(name), value.parse::<async_nats::HeaderValue>())
        {
            headers.append(name, value);
        }
    }
    headers
}
