//! Issues service tokens over request/reply to services that are authenticated to NATS.
//!
//! A service sends its query to `memory.ask.token.issue.<service>`. NATS permissions allow nobody else to publish there or to read
//! the reply, which is sent to the service's own inbox only. The service registry decides which scopes the service may have.
//!
//! It is the only worker with the signing key and the grant key, and its database role can only register tokens.

mod answer;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use config::Settings;
use contract::TOKEN_ISSUE;
use runtime::query::{self, About, Endpoint};
use runtime::readiness::probe;
use runtime::{Dependency, NotReady, Phase, Readiness, StartupDeadline, broker};
use store::{Pool, PoolOptions};
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;
use trust::{TokenIssuer, worker_role};

use answer::Desk;

/// The name of the worker, its NATS connection and its database role.
pub const NAME: &str = "token-issuer";
/// The most concurrent queries.
const AT_A_TIME: usize = 16;
/// Connections to the database.
const POOL: usize = 4;
/// The timeout of a query, after which the service is told to retry.
const ANSWER_WITHIN: Duration = Duration::from_secs(5);

/// Why it could not start or failed.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// The connection pool cannot be created.
    #[error(transparent)]
    Pool(#[from] store::PoolError),
    /// A dependency did not become available in time.
    #[error(transparent)]
    Startup(#[from] NotReady),
    /// NATS ended the subscription.
    #[error("token-issuer failed: {0}")]
    BrokeDown(String),
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
            size: POOL,
            patience: Duration::from_millis(settings.postgres.connect_timeout_ms),
            statement_timeout: ANSWER_WITHIN,
        },
    )?;
    let Some(client) = start(settings, &readiness, &pool, &stop).await? else { return Ok(()) };
    readiness.reached(Phase::Running);
    let looked_at = pool.clone();
    let look = move || {
        let pool = looked_at.clone();
        async move { vec![probe(Dependency::Postgres, runtime::check_database(&pool, NAME)).await] }
    };
    let _looking = AbortOnDropHandle::new(tokio::spawn(readiness.follow(client.clone(), look, stop.clone())));
    let about = About {
        name: NAME,
        version: env!("CARGO_PKG_VERSION"),
        description: "Issues service tokens",
        at_a_time: AT_A_TIME,
        within: ANSWER_WITHIN,
    };
    let endpoint = Endpoint {
        name: "token-issue".to_owned(),
        subject: format!("{TOKEN_ISSUE}.*"),
        metadata: HashMap::new(),
    };
    let desk = Arc::new(Desk::new(issuer, pool));
    let answer = move |asked| {
        let desk = Arc::clone(&desk);
        async move { desk.answer(asked).await }
    };
    query::serve(&client, about, vec![endpoint], &stop, answer).await.map_err(RunError::BrokeDown)
}

/// Waits for the database, its schema and NATS. None if it is stopped first.
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
