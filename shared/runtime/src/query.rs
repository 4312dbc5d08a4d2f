//! Queries over the NATS service API.
//!
//! A query is asked on `memory.ask.<noun>.<verb>.<service>`. The broker's permissions let nobody but that service publish
//! there, and the answer goes into its own inbox or nowhere.

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

/// A query as it came.
#[derive(Clone, Debug)]
pub struct IncomingQuery {
    /// Who asks.
    pub service: Service,
    /// The noun of its subject.
    pub noun: String,
    /// The verb of its subject.
    pub verb: String,
    /// Its headers.
    pub headers: Option<HeaderMap>,
    /// What is asked.
    pub body: Bytes,
}

impl IncomingQuery {
    /// Takes a query as it arrives.
    ///
    /// # Errors
    /// [`QueryRefusal::Silently`] for one whose subject names no service or whose answer would reach somebody else.
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
            return Err(QueryRefusal::Silently("its subject names no service"));
        };
        let service: Service =
            service.parse().map_err(|_| QueryRefusal::Silently("its subject names no service"))?;
        // Where services have an account of their own, the server hands their queries over with a reply subject that it has
        // made and that leads back to whoever asked. No client of this account may ask.
        if !reply.is_some_and(|reply| service.owns_inbox(reply) || reply.starts_with(HANDED_OVER)) {
            return Err(QueryRefusal::Silently("its reply subject is not in the service's inbox"));
        }
        Ok(Self { service, noun: noun.to_owned(), verb: verb.to_owned(), headers, body })
    }
}

/// What an answer may have beside its body, in bytes.
const HEADERS: usize = 1024;
/// How the server begins the reply subjects that it makes.
const HANDED_OVER: &str = "_R_.";

/// Why there is no answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum QueryRefusal {
    /// The answer would reach somebody else.
    Silently(&'static str),
    /// The asker is told.
    Told(QueryError),
}

impl QueryRefusal {
    /// A refusal that the asker is told.
    pub fn told(code: QueryErrorCode, message: &str, field: Option<&str>) -> Self {
        Self::Told(QueryError { code, message: message.to_owned(), field: field.map(str::to_owned) })
    }

    /// Something that is needed is away; the same query may be answered later.
    pub fn unavailable(message: &str) -> Self {
        Self::told(QueryErrorCode::Unavailable, message, None)
    }
}

impl From<Malformed> for QueryRefusal {
    fn from(malformed: Malformed) -> Self {
        Self::told(QueryErrorCode::Malformed, &malformed.to_string(), Some(&malformed.field))
    }
}

/// A service as the broker's tools show it.
#[derive(Clone, Copy, Debug)]
pub struct About {
    /// The worker.
    pub name: &'static str,
    /// Its version.
    pub version: &'static str,
    /// What it does.
    pub description: &'static str,
    /// The most queries that are answered at a time.
    pub at_a_time: usize,
    /// How long an answer may take, at the very most.
    pub within: Duration,
}

/// One kind of query that a service takes.
#[derive(Clone, Debug)]
pub struct Endpoint {
    /// Its name.
    pub name: String,
    /// The subjects on which it is asked.
    pub subject: String,
    /// What tools show about it, such as its schema.
    pub metadata: HashMap<String, String>,
}

/// Answers queries until `stop` is cancelled. Replicas share them.
///
/// # Errors
/// What the broker says if it ends the service.
pub async fn serve<F>(
    client: &Client,
    about: About,
    endpoints: Vec<Endpoint>,
    stop: &CancellationToken,
    answer: impl Fn(IncomingQuery) -> F + Clone + Send + Sync + 'static,
) -> Result<(), String>
where
    F: Future<Output = Result<Bytes, QueryRefusal>> + Send + 'static,
{
    let said = |error: async_nats::Error| error.to_string();
    let most = client.server_info().max_payload;
    let service = client.service_builder().description(about.description);
    let service = service.start(about.name, about.version).await.map_err(said)?;
    let mut queries = Vec::with_capacity(endpoints.len());
    for Endpoint { name, subject, metadata } in endpoints {
        let endpoint =
            service.endpoint_builder().name(name).metadata(metadata).add(subject).await.map_err(said)?;
        queries.push(endpoint);
    }
    tracing::info!(worker = about.name, "started");
    stream::select_all(queries)
        .take_until(stop.cancelled())
        .for_each_concurrent(about.at_a_time, |request| {
            // Each in a task of its own: to write a large answer takes long.
            let settling = tokio::spawn(settle(about, most, request, answer.clone()));
            async move {
                if let Err(error) = settling.await {
                    tracing::error!(worker = about.name, %error, "a query broke down");
                }
            }
        })
        .await;
    if !stop.is_cancelled() {
        return Err("its queries ended".to_owned());
    }
    if let Err(error) = service.stop().await {
        tracing::debug!(worker = about.name, %error, "the service did not end in order");
    }
    tracing::info!(worker = about.name, "stopped");
    Ok(())
}

/// Answers one query, in at most as many bytes as the broker takes.
async fn settle<F>(about: About, most: usize, request: Request, answer: impl Fn(IncomingQuery) -> F)
where
    F: Future<Output = Result<Bytes, QueryRefusal>>,
{
    let message = &request.message;
    let reply = message.reply.as_ref().map(async_nats::Subject::as_str);
    let asked = IncomingQuery::new(&message.subject, reply, message.headers.clone(), message.payload.clone());
    let answered = async { answer(asked?).await };
    let late =
        || QueryRefusal::told(QueryErrorCode::Deadline, "there was no answer in time; ask again", None);
    let answered = timeout(about.within, answered).await.unwrap_or_else(|_| Err(late()));
    let answered = answered.and_then(|body| match body.len() + HEADERS <= most {
        true => Ok(body),
        false => Err(QueryRefusal::told(
            QueryErrorCode::TooLarge,
            "the answer is larger than a message; ask for less",
            None,
        )),
    });
    let sent = match answered {
        Ok(body) => request.respond(Ok(body)).await,
        Err(QueryRefusal::Silently(reason)) => {
            // Whoever is meant by the reply subject has not asked.
            tracing::warn!(worker = about.name, reason, "a query is not answered");
            return;
        }
        Err(QueryRefusal::Told(error)) => {
            tracing::debug!(worker = about.name, code = %error.code, error.message, "refused");
            // The client's own way of saying an error has no room for its fields. The message may repeat what the asker
            // wrote, which no header can hold whatever it is; so the header has the code.
            let mut headers = HeaderMap::new();
            headers.insert(NATS_SERVICE_ERROR, error.code.as_str());
            headers.insert(NATS_SERVICE_ERROR_CODE, error.code.status().to_string());
            let body = serde_json::to_vec(&error).unwrap_or_default();
            request.respond_with_headers(Ok(body.into()), headers).await
        }
    };
    if let Err(error) = sent {
        tracing::debug!(worker = about.name, %error, "an answer was not sent");
    }
}
