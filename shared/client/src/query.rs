//! Queries over request/reply.

use std::time::Duration;

use async_nats::{HeaderMap, Request};
use bytes::Bytes;
use contract::{QueryError, QueryKind, Service, header, limit};
use serde::de::DeserializeOwned;
use uuid::Uuid;

use crate::error::ClientError;

/// How long to wait for an answer after the deadline of memory-reader.
const GRACE: Duration = Duration::from_secs(3);

/// Options of a query.
#[derive(Clone, Copy, Debug)]
pub struct QueryOptions {
    /// The id of the query in `audit.data_access_log`.
    pub id: Uuid,
    /// The deadline, enforced by memory-reader, in milliseconds.
    pub deadline_ms: u64,
}

impl Default for QueryOptions {
    fn default() -> Self {
        Self { id: Uuid::now_v7(), deadline_ms: limit::DEADLINE_MS_DEFAULT }
    }
}

/// The headers of a query.
pub fn query_headers(token: &str, options: &QueryOptions) -> HeaderMap {
    let mut headers = HeaderMap::new();
    headers.insert(header::MESSAGE_ID, options.id.to_string());
    headers.insert(header::AUTHORIZATION, header::bearer(token));
    headers.insert(header::DEADLINE_MS, options.deadline_ms.to_string());
    headers
}

/// Sends a query with a JSON body and returns its answer.
///
/// # Errors
/// [`ClientError::Refused`] if the query is rejected; another error if no worker answers or the answer is not a `T`.
pub async fn ask<T: DeserializeOwned>(
    connection: &async_nats::Client,
    service: &Service,
    kind: &QueryKind,
    token: &str,
    options: &QueryOptions,
    body: Bytes,
) -> Result<T, ClientError> {
    let within = Duration::from_millis(options.deadline_ms) + GRACE;
    let message = Request::new().headers(query_headers(token, options)).payload(body).timeout(Some(within));
    request(connection, kind.subject(service.as_str()), message, &kind.name(), service).await
}

/// Sends a message and decodes the reply, which is an answer or a [`QueryError`](contract::QueryError).
pub(crate) async fn request<T: DeserializeOwned>(
    connection: &async_nats::Client,
    subject: String,
    message: Request,
    name: &str,
    service: &Service,
) -> Result<T, ClientError> {
    let reply = connection.send_request(subject, message).await.map_err(|error| ClientError::NoAnswer {
        name: name.to_owned(),
        service: service.to_string(),
        problem: error.to_string(),
    })?;
    let unreadable = |source| ClientError::Answer { name: name.to_owned(), source };
    if reply.headers.is_some_and(|headers| headers.get(header::REFUSED).is_some()) {
        let refusal: QueryError = serde_json::from_slice(&reply.payload).map_err(unreadable)?;
        return Err(ClientError::Refused(refusal));
    }
    serde_json::from_slice(&reply.payload).map_err(unreadable)
}
