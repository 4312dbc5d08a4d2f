//! Issues service tokens over request/reply to services that are authenticated to the broker.
//!
//! A service asks on `memory.ask.token.issue.<service>`. The broker's permissions let nobody else publish there, and nobody
//! else hear the answer: it goes into the service's own inbox or nowhere. What the service may have, the registry says.
//!
//! It is the only worker that holds the keys that tokens are made with, and can do nothing in the database but register them.

mod answer;

use std::time::Duration;

use async_nats::HeaderMap;
use async_nats::service::{NATS_SERVICE_ERROR, NATS_SERVICE_ERROR_CODE, Request, ServiceExt};
use contract::TOKEN_ISSUE;
use futures::StreamExt;
use runtime::{NotReady, Patience, Settings, broker};
use store::{Pool, PoolOptions};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use trust::{TokenIssuer, role_of};

use answer::Desk;

/// The name of its crate, its connection and its database role.
pub const NAME: &str = "token-issuer";
/// The most questions that it answers at a time.
const AT_A_TIME: usize = 16;
/// Connections to the database.
const POOL: usize = 4;
/// How long a question may take before its asker is told to try again.
const ANSWER_WITHIN: Duration = Duration::from_secs(5);

/// It cannot start, or broke down.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// The pool cannot be made.
    #[error(transparent)]
    Pool(#[from] store::PoolError),
    /// Something it needs did not appear in time.
    #[error(transparent)]
    Startup(#[from] NotReady),
    /// The broker ended the service.
    #[error("token-issuer broke down: {0}")]
    BrokeDown(String),
}

/// Answers until `stop` is cancelled.
///
/// # Errors
/// [`RunError`] if it cannot start or the broker ends it. Being stopped is no error.
pub async fn run(issuer: TokenIssuer, settings: &Settings, stop: CancellationToken) -> Result<(), RunError> {
    let pool = store::open_pool(
        &settings.postgres.url_of(&role_of(NAME)),
        &PoolOptions {
            name: NAME,
            size: POOL,
            patience: Duration::from_millis(settings.postgres.connect_timeout_ms),
            statement_timeout: ANSWER_WITHIN,
        },
    )?;
    let Some(client) = start(settings, &pool, &stop).await? else { return Ok(()) };
    let broken = |error: async_nats::Error| RunError::BrokeDown(error.to_string());
    let service = client
        .service_builder()
        .description("Issues service tokens")
        .start(NAME, env!("CARGO_PKG_VERSION"))
        .await
        .map_err(broken)?;
    let endpoint = service
        .endpoint_builder()
        .name("token-issue")
        .add(format!("{TOKEN_ISSUE}.*"))
        .await
        .map_err(broken)?;
    tracing::info!(worker = NAME, "started");
    let desk = Desk::new(issuer, pool);
    endpoint
        .take_until(stop.cancelled())
        .for_each_concurrent(AT_A_TIME, |request| {
            let desk = &desk;
            async move { answer(desk, &request).await }
        })
        .await;
    if !stop.is_cancelled() {
        return Err(RunError::BrokeDown("its questions ended".to_owned()));
    }
    if let Err(error) = service.stop().await {
        tracing::debug!(worker = NAME, %error, "the service did not end in order");
    }
    tracing::info!(worker = NAME, "stopped");
    Ok(())
}

async fn answer(desk: &Desk, request: &Request) {
    let message = &request.message;
    let reply = message.reply.as_ref().map(async_nats::Subject::as_str);
    let answered = timeout(ANSWER_WITHIN, desk.answer(&message.subject, reply, &message.payload)).await;
    let answered = answered.unwrap_or_else(|_| Err(answer::unavailable()));
    let sent = match answered {
        Ok(body) => request.respond(Ok(body)).await,
        Err(answer::Refused::Silently(reason)) => {
            // Whoever is meant by the reply subject has not asked.
            tracing::warn!(worker = NAME, reason, "a question is not answered");
            return;
        }
        Err(answer::Refused::Told(code, error)) => {
            tracing::debug!(worker = NAME, code, error.message, "refused");
            // The client's own way of saying an error has no room for its fields. The message may repeat what the asker
            // wrote, which no header can hold whatever it is; so the header has the code.
            let mut headers = HeaderMap::new();
            headers.insert(NATS_SERVICE_ERROR, error.code.as_str());
            headers.insert(NATS_SERVICE_ERROR_CODE, code.to_string());
            let body = serde_json::to_vec(&error).unwrap_or_default();
            request.respond_with_headers(Ok(body.into()), headers).await
        }
    };
    if let Err(error) = sent {
        tracing::debug!(worker = NAME, %error, "an answer was not sent");
    }
}

/// Waits for the database, its schema and the broker. None if it is stopped first.
async fn start(
    settings: &Settings,
    pool: &Pool,
    stop: &CancellationToken,
) -> Result<Option<async_nats::Client>, RunError> {
    let wait = Patience::new(NAME, settings);
    let ready = async {
        wait.for_it(|| runtime::check_database(pool, NAME)).await?;
        wait.for_it(|| broker::connect(&settings.nats, NAME)).await
    };
    tokio::select! {
        () = stop.cancelled() => Ok(None),
        client = ready => Ok(Some(client?)),
    }
}
