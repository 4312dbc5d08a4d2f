//! Answers queries to the memory over NATS request/reply.
//!
//! A service publishes a query on `memory.ask.<noun>.<verb>.<service>` with its token. The answer is read under the
//! security context of the token's user, so that row-level security hides the rows of all other users. Reads use a
//! connection pool of their own, which may point to a replica (`postgres.read_url`). Before an answer is sent, the
//! access is logged in `audit.data_access_log` on the primary.
//!
//! [`QueryHandler`] processes every query. `queries/` has one file for the queries of one noun; each implements
//! `ValidatedQuery` and uses what a `QueryContext` offers.

mod access_log;
mod column;
mod handler;
mod page;
mod queries;
mod query_context;
mod query_failure;
mod refusal_log;
mod secret;
mod service_limits;
mod validated_query;
mod vector_search;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use config::Settings;
use contract::{QUERIES, QUERY_ROOT, QueryKind};
use runtime::query::{self, Endpoint, ServiceInfo};
use runtime::{Dependency, NotReady, Phase, Readiness, StartupDeadline, broker, trust_refresh};
use schemars::generate::SchemaSettings;
use store::{Pool, PoolOptions};
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;
use trust::worker_role;

use service_limits::ServiceLimits;
use vector_search::VectorSearch;

pub use handler::{MAX_DEADLINE, QueryHandler};

/// The name of its crate, its connection and its database role.
pub const NAME: &str = contract::MEMORY_READER.name;
/// The maximum number of queries that a replica processes concurrently. More of them wait.
const MAX_CONCURRENT: usize = 256;
/// How long a query may take beyond its deadline, for what is not a read, before it is aborted.
const TIMEOUT_GRACE: Duration = Duration::from_secs(5);
/// The connections that write the access log and read the registry of services.
const PRIMARY_POOL_SIZE: usize = 3;

/// Why it cannot start or continue.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// A connection pool cannot be created.
    #[error(transparent)]
    Pool(#[from] store::PoolError),
    /// The key store or the KEK provider cannot be used as configured.
    #[error(transparent)]
    Keys(#[from] keys::KeyError),
    /// A dependency was not ready in time.
    #[error(transparent)]
    Startup(#[from] NotReady),
    /// The vector store or an embedder cannot be used as configured.
    #[error("memory-reader cannot start: {0}")]
    Search(String),
    /// The broker ended the service.
    #[error("memory-reader: the NATS service ended: {0}")]
    ServiceEnded(String),
}

/// Answers queries until `stop` is cancelled.
///
/// # Errors
/// [`RunError`] if it cannot start or the broker ends it. Being stopped is not an error.
pub async fn run(settings: &Settings, readiness: Readiness, stop: CancellationToken) -> Result<(), RunError> {
    let Some((handler, client)) = start(settings, &readiness, &stop).await? else { return Ok(()) };
    let info = ServiceInfo {
        name: NAME,
        version: env!("CARGO_PKG_VERSION"),
        description: "Answers queries to the memory",
        max_concurrent: MAX_CONCURRENT,
        timeout: MAX_DEADLINE + TIMEOUT_GRACE,
    };
    let handler = Arc::new(handler);
    readiness.reached(Phase::Running);
    let refreshing = trust_refresh::follow(
        readiness.clone(),
        handler.authorizer(),
        handler.primary(),
        Some(handler.key_store()),
        stop.clone(),
    );
    let _refreshing = AbortOnDropHandle::new(tokio::spawn(refreshing));
    let probed = Arc::clone(&handler);
    let probe = move || {
        let handler = Arc::clone(&probed);
        async move { handler.probe().await }
    };
    let probing = readiness.clone().follow(client.clone(), probe, stop.clone());
    let _probing = AbortOnDropHandle::new(tokio::spawn(probing));
    let endpoints = QUERIES.iter().map(|kind| endpoint(kind)).collect();
    let handle = move |incoming| {
        let handler = Arc::clone(&handler);
        async move { handler.handle(incoming).await }
    };
    query::serve(&client, info, endpoints, &stop, handle).await.map_err(RunError::ServiceEnded)
}

fn endpoint(kind: &QueryKind) -> Endpoint {
    let schema = |create: fn(schemars::SchemaGenerator) -> schemars::Schema| {
        create(SchemaSettings::draft07().into_generator()).to_value().to_string()
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

/// Opens the query handler and waits for the databases and the broker. `None` if it is stopped first.
async fn start(
    settings: &Settings,
    readiness: &Readiness,
    stop: &CancellationToken,
) -> Result<Option<(QueryHandler, async_nats::Client)>, RunError> {
    let wait = StartupDeadline::new(readiness, settings);
    let ready = async {
        let handler = open(settings, &wait).await?;
        let client = wait.wait_for(Dependency::Nats, || broker::connect(&settings.nats, NAME)).await?;
        Ok((handler, client))
    };
    tokio::select! {
        () = stop.cancelled() => Ok(None),
        ready = ready => ready.map(Some),
    }
}

/// Opens a query handler, which needs no broker. Benchmarks call it directly.
///
/// # Errors
/// [`RunError`] if a database is not ready in time.
pub async fn open(settings: &Settings, wait: &StartupDeadline) -> Result<QueryHandler, RunError> {
    let role = worker_role(NAME);
    let acquire_timeout = Duration::from_millis(settings.postgres.connect_timeout_ms);
    let pool = |url: &str, name: &str, size: usize, statement_timeout: Duration| {
        let lock_timeout = Duration::ZERO;
        store::open_pool(url, &PoolOptions { name, size, acquire_timeout, statement_timeout, lock_timeout })
    };
    let read =
        pool(&settings.postgres.read_url_of(&role), NAME, settings.postgres.read_pool_size, MAX_DEADLINE)?;
    let primary = pool(
        &settings.postgres.url_of(&role),
        "memory-reader access",
        PRIMARY_POOL_SIZE,
        Duration::from_millis(settings.postgres.statement_timeout_ms),
    )?;
    let limits = ServiceLimits::new(MAX_CONCURRENT / 4, settings.postgres.read_pool_size / 2);
    let keys = keys::Keys::open(&settings.keys, &role, NAME, acquire_timeout)?;
    wait.wait_for(Dependency::Postgres, || runtime::check_database(&primary, NAME)).await?;
    wait.wait_for(Dependency::ReadDatabase, || check_read_database(&read)).await?;
    let state = wait.wait_for(Dependency::Postgres, || trust_refresh::read(&primary)).await?;
    let authorizer = runtime::authorize::Authorizer::new(&settings.trust, NAME, state);
    let vector_search = VectorSearch::open(settings).await.map_err(RunError::Search)?;
    Ok(QueryHandler::new(authorizer, limits, read, primary, keys, vector_search))
}

/// Checks that the database for reads, which may be a replica that lags behind, has the current schema.
async fn check_read_database(pool: &Pool) -> Result<(), String> {
    runtime::check_database(pool, NAME).await.map_err(|problem| format!("postgres.read_url: {problem}"))
}
