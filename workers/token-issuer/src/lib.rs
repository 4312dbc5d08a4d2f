//! Issues service tokens over request/reply to services that are authenticated to NATS.
//!
//! A service publishes a query on `memory.ask.token.issue.<service>`. The broker's permissions let no other client
//! publish there or receive the answer, which is sent to the service's own inbox, or not at all. The registry of
//! services determines which scopes a token may have.
//!
//! It is the only worker that holds the keys that sign tokens. In the database it may only register them.

mod handler;
mod keys;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use config::Settings;
use contract::TOKEN_ISSUE;
use runtime::query::{self, Endpoint, ServiceInfo};
use runtime::readiness::probe;
use runtime::{Dependency, NotReady, Phase, Readiness, StartupDeadline, broker};
use store::{Pool, PoolOptions};
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;
use trust::{TokenIssuer, worker_role};

use handler::QueryHandler;

pub use keys::{IssuerKeyError, issuer};

/// The name of the worker, its NATS connection and its database role.
pub const NAME: &str = contract::TOKEN_ISSUER.name;
/// The maximum number of queries that it processes concurrently.
const MAX_CONCURRENT: usize = 16;
/// The size of its connection pool.
const POOL_SIZE: usize = 4;
/// The maximum time to answer a query.
const QUERY_TIMEOUT: Duration = Duration::from_secs(5);

/// Why it cannot start or continue.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// The connection pool cannot be created.
    #[error(transparent)]
    Pool(#[from] store::PoolError),
    /// A dependency was not ready in time.
    #[error(transparent)]
    Startup(#[from] NotReady),
    /// The broker ended the service.
    #[error("token-issuer: the NATS service ended: {0}")]
    ServiceEnded(String),
}

/// Answers queries until `stop` is cancelled.
///
/// # Errors
/// [`RunError`] if it cannot start or NATS ends the subscription. Being stopped is not an error.
pub async fn run(
    issuer: TokenIssuer,
    settings: &Settings,
    readiness: Readiness,
    stop: CancellationToken,
) -> Result<(), RunError> {
    let pool = store::open_pool(
        &settings.postgres.url_of(&worker_role(NAME)),
        &PoolOptions {
            name: NAME,
            size: POOL_SIZE,
            acquire_timeout: Duration::from_millis(settings.postgres.connect_timeout_ms),
            statement_timeout: QUERY_TIMEOUT,
            lock_timeout: Duration::ZERO,
        },
    )?;
    let Some(client) = start(settings, &readiness, &pool, &stop).await? else { return Ok(()) };
    readiness.reached(Phase::Running);
    let probed = pool.clone();
    let probe_all = move || {
        let pool = probed.clone();
        async move { vec![probe(Dependency::Postgres, runtime::check_database(&pool, NAME)).await] }
    };
    let probing = readiness.follow(client.clone(), probe_all, stop.clone());
    let _probing = AbortOnDropHandle::new(tokio::spawn(probing));
    let info = ServiceInfo {
        name: NAME,
        version: env!("CARGO_PKG_VERSION"),
        description: "Issues service tokens",
        max_concurrent: MAX_CONCURRENT,
        timeout: QUERY_TIMEOUT,
    };
    let endpoint = Endpoint {
        name: "token-issue".to_owned(),
        subject: format!("{TOKEN_ISSUE}.*"),
        metadata: HashMap::new(),
    };
    let handler = Arc::new(QueryHandler::new(issuer, pool));
    let handle = move |incoming| {
        let handler = Arc::clone(&handler);
        async move { handler.handle(incoming).await }
    };
    query::serve(&client, info, vec![endpoint], &stop, handle).await.map_err(RunError::ServiceEnded)
}

/// Waits for the database, its schema and NATS. `None` if it is stopped first.
async fn start(
    settings: &Settings,
    readiness: &Readiness,
    pool: &Pool,
    stop: &CancellationToken,
) -> Result<Option<async_nats::Client>, RunError> {
    let wait = StartupDeadline::new(readiness, settings);
    let ready = async {
        wait.wait_for(Dependency::Postgres, || runtime::check_database(pool, NAME)).await?;
        wait.wait_for(Dependency::Nats, || broker::connect(&settings.nats, NAME)).await
    };
    tokio::select! {
        () = stop.cancelled() => Ok(None),
        client = ready => Ok(Some(client?)),
    }
}
