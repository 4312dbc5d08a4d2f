//! Issues service tokens over request/reply to services that are authenticated to the broker.
//!
//! A service asks on `memory.ask.token.issue.<service>`. The broker's permissions let nobody else publish there, and nobody
//! else hear the answer: it goes into the service's own inbox or nowhere. What the service may have, the registry says.
//!
//! It is the only worker that holds the keys that tokens are made with, and can do nothing in the database but register them.

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
use trust::{TokenIssuer, role_of};

use answer::Desk;

/// The name of its crate, its connection and its database role.
pub const NAME: &str = contract::TOKEN_ISSUER.name;
/// The most queries that it answers at a time.
const AT_A_TIME: usize = 16;
/// Connections to the database.
const POOL: usize = 4;
/// How long a query may take before its asker is told to try again.
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
pub async fn run(
    issuer: TokenIssuer,
    settings: &Settings,
    readiness: Readiness,
    stop: CancellationToken,
) -> Result<(), RunError> {
    let pool = store::open_pool(
        &settings.postgres.url_of(&role_of(NAME)),
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

/// Waits for the database, its schema and the broker. None if it is stopped first.
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
