//! Answers queries to the memory over request/reply.
//!
//! A service asks on `memory.ask.<noun>.<verb>.<service>` with its token, and is answered about the token's user under that
//! user's security context: the database itself shows nothing of anybody else. Reading is done on connections of its own, which
//! may lead to a replica (`postgres.read_url`). Before an answer leaves, it is noted in `audit.data_access_log`, on the primary.
//!
//! What is in one place here: [`Desk`] goes through a query from its token to its answer, `answer/` has the SQL of each
//! query, `access.rs` notes what was read, `page.rs` says where a page begins.

mod access;
mod answer;
mod desk;
mod page;
mod searcher;
mod share;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use config::Settings;
use contract::{QUERIES, QUERY_ROOT, QueryKind};
use runtime::query::{self, About, Endpoint};
use runtime::{Dependency, NotReady, Phase, Readiness, StartupDeadline, broker, trust_refresh};
use schemars::generate::SchemaSettings;
use store::{Pool, PoolOptions};
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;
use trust::role_of;

use searcher::Searcher;
use share::Shares;

pub use desk::{Desk, LONGEST_DEADLINE};

/// The name of its crate, its connection and its database role.
pub const NAME: &str = contract::MEMORY_READER.name;
/// The most queries that a replica answers at a time. More of them wait.
const AT_A_TIME: usize = 256;
/// What an answer may take beyond its deadline, which PostgreSQL keeps, before it is given up.
const GRACE: Duration = Duration::from_secs(5);

/// It cannot start, or broke down.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// A pool cannot be made.
    #[error(transparent)]
    Pool(#[from] store::PoolError),
    /// The key store or the key provider cannot be used as configured.
    #[error(transparent)]
    Keys(#[from] keys::KeyError),
    /// Something it needs did not appear in time.
    #[error(transparent)]
    Startup(#[from] NotReady),
    /// The vector store or an embedder cannot be used as configured.
    #[error("memory-reader cannot start: {0}")]
    Search(String),
    /// The broker ended the service.
    #[error("memory-reader broke down: {0}")]
    BrokeDown(String),
}

/// Answers until `stop` is cancelled.
///
/// # Errors
/// [`RunError`] if it cannot start or the broker ends it. Being stopped is no error.
pub async fn run(settings: &Settings, readiness: Readiness, stop: CancellationToken) -> Result<(), RunError> {
    let Some((desk, client)) = start(settings, &readiness, &stop).await? else { return Ok(()) };
    let about = About {
        name: NAME,
        version: env!("CARGO_PKG_VERSION"),
        description: "Answers queries to the memory",
        at_a_time: AT_A_TIME,
        within: LONGEST_DEADLINE + GRACE,
    };
    let desk = Arc::new(desk);
    readiness.reached(Phase::Running);
    let following = trust_refresh::follow(readiness.clone(), desk.authorizer(), desk.primary(), stop.clone());
    let _following = AbortOnDropHandle::new(tokio::spawn(following));
    let looked_at = Arc::clone(&desk);
    let look = move || {
        let desk = Arc::clone(&looked_at);
        async move { desk.look_around().await }
    };
    let looking = readiness.clone().follow(client.clone(), look, stop.clone());
    let _looking = AbortOnDropHandle::new(tokio::spawn(looking));
    let endpoints = QUERIES.iter().map(|kind| endpoint(kind)).collect();
    let answer = move |asked| {
        let desk = Arc::clone(&desk);
        async move { desk.answer(asked).await }
    };
    query::serve(&client, about, endpoints, &stop, answer).await.map_err(RunError::BrokeDown)
}

fn endpoint(kind: &QueryKind) -> Endpoint {
    let schema = |make: fn(schemars::SchemaGenerator) -> schemars::Schema| {
        make(SchemaSettings::draft07().into_generator()).to_value().to_string()
    };
    Endpoint {
        name: format!("{}-{}", kind.noun, kind.verb),
        subject: format!("{QUERY_ROOT}.{}.{}.*", kind.noun, kind.verb),
        metadata: HashMap::from([
            ("description".to_owned(), kind.description.to_owned()),
            ("query".to_owned(), schema(kind.query)),
            ("answer".to_owned(), schema(kind.answer)),
        ]),
    }
}

/// Makes what answers queries, and waits for the databases. None if it is stopped first.
async fn start(
    settings: &Settings,
    readiness: &Readiness,
    stop: &CancellationToken,
) -> Result<Option<(Desk, async_nats::Client)>, RunError> {
    let wait = StartupDeadline::new(readiness, settings);
    let ready = async {
        let desk = open(settings, &wait).await?;
        let client = wait.wait_for(Dependency::Nats, || broker::connect(&settings.nats, NAME)).await?;
        Ok((desk, client))
    };
    tokio::select! {
        () = stop.cancelled() => Ok(None),
        ready = ready => ready.map(Some),
    }
}

/// A desk that answers without a broker, for measuring what the broker adds.
///
/// # Errors
/// [`RunError`] if a database is not ready in time.
pub async fn open(settings: &Settings, wait: &StartupDeadline) -> Result<Desk, RunError> {
    let role = role_of(NAME);
    let patience = Duration::from_millis(settings.postgres.connect_timeout_ms);
    let pool = |url: &str, name: &str, size: usize, statement_timeout: Duration| {
        store::open_pool(url, &PoolOptions { name, size, patience, statement_timeout })
    };
    let read = pool(
        &settings.postgres.read_url_of(&role),
        NAME,
        settings.postgres.read_pool_size,
        LONGEST_DEADLINE,
    )?;
    let primary = pool(
        &settings.postgres.url_of(&role),
        "memory-reader access",
        ACCESS_CONNECTIONS,
        Duration::from_millis(settings.postgres.statement_timeout_ms),
    )?;
    let shares = Shares::new(AT_A_TIME / 4, settings.postgres.read_pool_size / 2);
    let keys = keys::Keys::open(&settings.keys, &role, NAME, patience)?;
    wait.wait_for(Dependency::Postgres, || runtime::check_database(&primary, NAME)).await?;
    wait.wait_for(Dependency::ReadDatabase, || readable(&read)).await?;
    let state = wait.wait_for(Dependency::Postgres, || trust_refresh::read(&primary)).await?;
    let authorizer = runtime::authorize::Authorizer::new(&settings.trust, NAME, state);
    let searcher = Searcher::open(settings).await.map_err(RunError::Search)?;
    Ok(Desk::new(authorizer, shares, read, primary, keys, searcher))
}

/// Connections for noting what was read, and for the registry.
const ACCESS_CONNECTIONS: usize = 3;

/// Whether the database for reading, which may be a replica that lags behind, has the schema.
async fn readable(pool: &Pool) -> Result<(), String> {
    runtime::check_database(pool, NAME).await.map_err(|problem| format!("postgres.read_url: {problem}"))
}
