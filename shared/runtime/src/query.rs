//! Serves queries through the NATS service API.
//!
//! A service publishes a query on `memory.ask.<noun>.<verb>.<service>`. The broker permits no other service to publish
//! there. The answer is sent to the inbox of that service, or not at all.

use std::collections::HashMap;
use std::future::Future;
use std::time::Duration;

use async_nats::service::{NATS_SERVICE_ERROR, NATS_SERVICE_ERROR_CODE, Request, ServiceExt};
use async_nats::{Client, HeaderMap};
use bytes::Bytes;
use contract::{Malformed, QUERY_ROOT, QueryError, QueryErrorCode, Service};
use futures::{StreamExt, stream};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

/// A query as received.
#[derive(Clone, Debug)]
pub struct IncomingQuery {
    /// The service that sent it.
    pub service: Service,
    /// The noun of its subject.
    pub noun: String,
    /// The verb of its subject.
    pub verb: String,
    /// Its headers.
    pub headers: Option<HeaderMap>,
    /// Its payload.
    pub body: Bytes,
}

impl IncomingQuery {
    /// Reads the subject and checks the reply subject of a query.
    ///
    /// # Errors
    /// [`QueryRefusal::Dropped`] if the subject names no service, or if the reply would reach another client.
    pub fn new(
        subject: &str,
        reply: Option<&str>,
        headers: Option<HeaderMap>,
        body: Bytes,
    ) -> Result<Self, QueryRefusal> {
        let mut tokens = subject
            .strip_prefix(QUERY_ROOT)
            .and_then(|rest| rest.strip_prefix('.'))
            .unwrap_or_default()
            .split('.');
        let (Some(noun), Some(verb), Some(service), None) =
            (tokens.next(), tokens.next(), tokens.next(), tokens.next())
        else {
            return Err(QueryRefusal::Dropped("its subject names no service"));
        };
        let service: Service =
            service.parse().map_err(|_| QueryRefusal::Dropped("its subject names no service"))?;
        // Where services have an account of their own, the server imports their queries with a generated reply subject
        // that routes back to the sender. No client of this account may publish queries.
        if !reply.is_some_and(|reply| service.owns_inbox(reply) || reply.starts_with(IMPORTED_REPLY_PREFIX)) {
            return Err(QueryRefusal::Dropped("its reply subject is not in the inbox of its service"));
        }
        if let Some(problem) = broker::unreadable(headers.as_ref()) {
            return Err(Malformed::new("headers", problem).into());
        }
        Ok(Self { service, noun: noun.to_owned(), verb: verb.to_owned(), headers, body })
    }
}

/// The bytes reserved for the headers of a reply.
const REPLY_HEADER_BYTES: usize = 1024;
/// The prefix of the reply subjects that the server generates for imported services.
const IMPORTED_REPLY_PREFIX: &str = "_R_.";

/// Why a query is not answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum QueryRefusal {
    /// Nothing is sent, since a reply would reach another client. The reason is logged.
    Dropped(&'static str),
    /// The sender receives this error.
    Replied(QueryError),
}

impl QueryRefusal {
    /// A refusal that the sender receives.
    pub fn new(code: QueryErrorCode, message: &str, field: Option<&str>) -> Self {
        Self::Replied(QueryError { code, message: message.to_owned(), field: field.map(str::to_owned) })
    }

    /// A dependency is unreachable; the same query may succeed later.
    pub fn unavailable(message: &str) -> Self {
        Self::new(QueryErrorCode::Unavailable, message, None)
    }

    /// An error that the sender cannot fix. Its cause belongs in the log.
    pub fn internal() -> Self {
        Self::new(QueryErrorCode::Failed, "internal error; contact the operator", None)
    }
}

impl From<Malformed> for QueryRefusal {
    fn from(malformed: Malformed) -> Self {
        Self::new(QueryErrorCode::Malformed, &malformed.to_string(), Some(&malformed.field))
    }
}

/// The description of a service for `nats micro`, and its limits.
#[derive(Clone, Copy, Debug)]
pub struct ServiceInfo {
    /// Its name, which is the name of the worker.
    pub name: &'static str,
    /// Its version.
    pub version: &'static str,
    /// What it does.
    pub description: &'static str,
    /// The maximum number of queries that a replica processes concurrently.
    pub max_concurrent: usize,
    /// The maximum time to process one query.
    pub timeout: Duration,
}

/// An endpoint of a service: one type of query.
#[derive(Clone, Debug)]
pub struct Endpoint {
    /// Its name.
    pub name: String,
    /// The subject it subscribes to, which may have wildcards.
    pub subject: String,
    /// What `nats micro info` shows about it, such as its schemas.
    pub metadata: HashMap<String, String>,
}

/// Passes queries to `handler` and sends its answers, until `stop` is cancelled. Replicas share the queries in a queue
/// group.
///
/// # Errors
/// The broker's reason if it ends the service.
pub async fn serve<F>(
    client: &Client,
    info: ServiceInfo,
    endpoints: Vec<Endpoint>,
    stop: &CancellationToken,
    handler: impl Fn(IncomingQuery) -> F + Clone + Send + Sync + 'static,
) -> Result<(), String>
where
    F: Future<Output = Result<Bytes, QueryRefusal>> + Send + 'static,
{
    let reason = |error: async_nats::Error| error.to_string();
    let max_payload = client.server_info().max_payload;
    let service = client.service_builder().description(info.description);
    let service = service.start(info.name, info.version).await.map_err(reason)?;
    let mut queries = Vec::with_capacity(endpoints.len());
    for Endpoint { name, subject, metadata } in endpoints {
        let endpoint =
            service.endpoint_builder().name(name).metadata(metadata).add(subject).await.map_err(reason)?;
        queries.push(endpoint);
    }
    tracing::info!(worker = info.name, "started");
    stream::select_all(queries)
        .take_until(stop.cancelled())
        .for_each_concurrent(info.max_concurrent, |request| {
            // Each query has its own task: serializing a large answer would delay the others.
            let responding = tokio::spawn(respond(info, max_payload, request, handler.clone()));
            async move {
                if let Err(error) = responding.await {
                    tracing::error!(worker = info.name, %error, "query handler panicked");
                }
            }
        })
        .await;
    if !stop.is_cancelled() {
        return Err("the subscriptions to its queries ended".to_owned());
    }
    if let Err(error) = service.stop().await {
        tracing::debug!(worker = info.name, %error, "cannot deregister the service");
    }
    tracing::info!(worker = info.name, "stopped");
    Ok(())
}

/// Processes one query and sends the answer, which must fit into one message, or the error.
async fn respond<F>(
    info: ServiceInfo,
    max_payload: usize,
    mut request: Request,
    handler: impl Fn(IncomingQuery) -> F,
) where
    F: Future<Output = Result<Bytes, QueryRefusal>>,
{
    let headers = request.message.headers.take();
    let message = &request.message;
    let reply = message.reply.as_ref().map(async_nats::Subject::as_str);
    let query = IncomingQuery::new(&message.subject, reply, headers, message.payload.clone());
    let answer = timeout(info.timeout, async { handler(query?).await }).await.unwrap_or_else(|_| {
        Err(QueryRefusal::new(QueryErrorCode::Deadline, "the query timed out; retry later", None))
    });
    let answer = answer.and_then(|body| match body.len() + REPLY_HEADER_BYTES <= max_payload {
        true => Ok(body),
        false => Err(QueryRefusal::new(
            QueryErrorCode::TooLarge,
            "the answer is larger than a NATS message may be; lower the limit of the query",
            None,
        )),
    });
    let sent = match answer {
        Ok(body) => request.respond(Ok(body)).await,
        Err(QueryRefusal::Dropped(reason)) => {
            tracing::warn!(worker = info.name, reason, "query dropped");
            return;
        }
        Err(QueryRefusal::Replied(error)) => {
            tracing::debug!(worker = info.name, code = %error.code, error.message, "query refused");
            // The client library's error reply cannot carry the fields. The message may quote characters of the query
            // that are not allowed in a header, so the header carries only the code.
            let mut headers = HeaderMap::new();
            headers.insert(NATS_SERVICE_ERROR, error.code.as_str());
            headers.insert(NATS_SERVICE_ERROR_CODE, error.code.status().to_string());
            let body = serde_json::to_vec(&error).unwrap_or_default();
            request.respond_with_headers(Ok(body.into()), headers).await
        }
    };
    if let Err(error) = sent {
        tracing::debug!(worker = info.name, %error, "cannot send the answer");
    }
}
