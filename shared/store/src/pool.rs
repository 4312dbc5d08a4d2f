//! Connections to the database.

use std::time::Duration;

use diesel::{ConnectionError, ConnectionResult};
use diesel_async::AsyncPgConnection;
use diesel_async::pooled_connection::deadpool::{self, Object};
use diesel_async::pooled_connection::{
    AsyncDieselConnectionManager, ManagerConfig, PoolError as ManagerError, RecyclingMethod,
};
use futures::FutureExt;
use tokio_postgres::{CancelToken, Config, NoTls};

use crate::fault::{Fault, FaultKind};

/// Connections to one database under one role.
pub type Pool = deadpool::Pool<AsyncPgConnection>;

/// A connection acquired by a [`Pool`]; dropped, it goes back.
pub type Pooled = Object<AsyncPgConnection>;

/// What a pool is like.
#[derive(Clone, Copy, Debug)]
pub struct PoolOptions<'a> {
    /// What the connections are called in `pg_stat_activity`, after `memfleet `.
    pub name: &'a str,
    /// The most connections.
    pub size: usize,
    /// How long whoever asks for a connection waits.
    pub acquire_timeout: Duration,
    /// How long a statement may run before the server ends it. Zero: as long as it takes.
    pub statement_timeout: Duration,
}

/// No pool, or no connection out of it.
#[derive(Debug, thiserror::Error)]
pub enum PoolError {
    /// The pool cannot be made as asked for.
    #[error("the PostgreSQL pool cannot be made: {0}")]
    Build(String),
    /// The server cannot be reached, or refuses us.
    #[error("PostgreSQL cannot be reached: {0}")]
    Connect(String),
}

impl From<PoolError> for Fault {
    fn from(error: PoolError) -> Self {
        Self { kind: FaultKind::Unavailable, reason: error.to_string() }
    }
}

/// A peer that acknowledges nothing for so long is taken for gone. Without it, a network that swallows packets would
/// hold a worker for as long as TCP tries, a quarter of an hour.
const SILENCE: Duration = Duration::from_secs(30);

/// A transaction that does nothing for so long belongs to a process that is frozen or cut off. The server ends it, since
/// other replicas wait for what it has locked.
const IDLE_TRANSACTION: Duration = Duration::from_secs(10);

/// Makes a pool. It connects when a connection is first asked for.
///
/// # Errors
/// [`PoolError::Build`] if the URL cannot be read or the pool cannot be made.
pub fn open_pool(url: &str, options: &PoolOptions<'_>) -> Result<Pool, PoolError> {
    let config = configure(url, options)?;
    let mut manager = ManagerConfig::default();
    manager.custom_setup = Box::new(move |_| establish(config.clone()).boxed());
    // A connection that died unnoticed fails the transaction, which is then tried on another one; asking each
    // time would cost every batch a round trip.
    manager.recycling_method = RecyclingMethod::Fast;
    Pool::builder(AsyncDieselConnectionManager::new_with_config(url, manager))
        .max_size(options.size)
        .wait_timeout(Some(options.acquire_timeout))
        .create_timeout(Some(options.acquire_timeout))
        .recycle_timeout(Some(options.acquire_timeout))
        .runtime(::deadpool::Runtime::Tokio1)
        .build()
        .map_err(|error| PoolError::Build(error.to_string()))
}

/// What the URL says, and what it says nothing about.
fn configure(url: &str, options: &PoolOptions<'_>) -> Result<Config, PoolError> {
    let mut config: Config = url.parse().map_err(|error| PoolError::Build(format!("its URL: {error}")))?;
    if config.get_application_name().is_none() {
        config.application_name(format!("memfleet {}", options.name));
    }
    if config.get_tcp_user_timeout().is_none() {
        config.tcp_user_timeout(SILENCE);
    }
    let timeout = options.statement_timeout.as_millis();
    // What the URL asks for comes later and wins.
    let idle = IDLE_TRANSACTION.as_millis();
    let own = format!("-c statement_timeout={timeout} -c idle_in_transaction_session_timeout={idle}");
    let asked = config.get_options().unwrap_or_default().to_owned();
    config.options(format!("{own} {asked}").trim_end());
    config.connect_timeout(options.acquire_timeout).keepalives_idle(SILENCE).keepalives_interval(SILENCE / 3);
    Ok(config)
}

async fn establish(config: Config) -> ConnectionResult<AsyncPgConnection> {
    let (client, connection) = config.connect(NoTls).await.map_err(said)?;
    AsyncPgConnection::try_from_client_and_connection(client, connection).await
}

/// What the server said, or else the client with the cause, such as "connection refused".
fn said(error: tokio_postgres::Error) -> ConnectionError {
    let cause = std::error::Error::source(&error);
    ConnectionError::BadConnection(match (error.as_db_error(), cause) {
        (Some(server), _) => server.message().to_owned(),
        (None, Some(cause)) => format!("{error}: {cause}"),
        (None, None) => error.to_string(),
    })
}

/// Lends a connection.
///
/// # Errors
/// [`PoolError::Connect`] if none comes in time, with what the server or the network says.
pub async fn acquire(pool: &Pool) -> Result<Pooled, PoolError> {
    pool.get().await.map_err(|error| {
        let reason = if let deadpool::PoolError::Backend(ManagerError::ConnectionError(error)) = error {
            error.to_string()
        } else {
            error.to_string()
        };
        PoolError::Connect(reason)
    })
}

/// Asks the server to end what a connection is busy with.
///
/// # Errors
/// [`PoolError::Connect`] if it cannot be asked.
pub async fn cancel(token: &CancelToken) -> Result<(), PoolError> {
    token.cancel_query(NoTls).await.map_err(|error| PoolError::Connect(error.to_string()))
}

/// Closes a connection instead of giving it back.
pub fn discard(connection: Pooled) {
    drop(Object::take(connection));
}

/// How long [`connect`] waits.
const CONNECT_WITHIN: Duration = Duration::from_secs(10);

/// Opens a single connection outside of any pool, whose statements may take as long as they need.
///
/// # Errors
/// [`PoolError::Build`] for a URL that cannot be read, [`PoolError::Connect`] with what the server or the network says.
pub async fn connect(url: &str) -> Result<AsyncPgConnection, PoolError> {
    let options = PoolOptions {
        name: "command",
        size: 1,
        acquire_timeout: CONNECT_WITHIN,
        statement_timeout: Duration::ZERO,
    };
    establish(configure(url, &options)?).await.map_err(|error| PoolError::Connect(error.to_string()))
}

#[cfg(test)]
#[allow(clippy::expect_used, reason = "a test fails by panicking")]
mod tests {
    use super::*;

    const OPTIONS: PoolOptions<'static> = PoolOptions {
        name: "some-worker",
        size: 1,
        acquire_timeout: Duration::from_secs(1),
        statement_timeout: Duration::from_secs(7),
    };

    #[test]
    fn what_the_url_says_nothing_about_is_bounded() {
        let config = configure("postgres://h/d", &OPTIONS).expect("a URL");
        assert_eq!(config.get_application_name(), Some("memfleet some-worker"));
        assert_eq!(config.get_tcp_user_timeout(), Some(&SILENCE));
        assert_eq!(
            config.get_options(),
            Some("-c statement_timeout=7000 -c idle_in_transaction_session_timeout=10000")
        );
    }

    #[test]
    fn what_the_url_says_wins() {
        let url = "postgres://h/d?application_name=mine&tcp_user_timeout=5&options=-c%20statement_timeout=1";
        let config = configure(url, &OPTIONS).expect("a URL");
        assert_eq!(config.get_application_name(), Some("mine"));
        assert_eq!(config.get_tcp_user_timeout(), Some(&Duration::from_secs(5)));
        assert!(config.get_options().is_some_and(|options| options.ends_with("0 -c statement_timeout=1")));
        let error = configure("postgres//h", &OPTIONS).expect_err("no URL");
        assert!(error.to_string().contains("URL"), "{error}");
    }
}
