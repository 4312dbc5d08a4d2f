//! Connections to a database.

use std::path::Path;
use std::time::Duration;

use contract::take_password_file;
use diesel::{ConnectionError, ConnectionResult};
use diesel_async::AsyncPgConnection;
use diesel_async::pooled_connection::deadpool::{self, Object};
use diesel_async::pooled_connection::{
    AsyncDieselConnectionManager, ManagerConfig, PoolError as ManagerError, RecyclingMethod,
};
use futures::FutureExt;
use tokio::time::timeout;
use tokio_postgres::config::{Host, LoadBalanceHosts};
use tokio_postgres::{CancelToken, Config, NoTls};

use crate::fault::{Fault, FaultKind};

/// Connections to one database under one role.
pub type Pool = deadpool::Pool<AsyncPgConnection>;

/// A connection of a [`Pool`]. Dropping it returns it to the pool.
pub type Pooled = Object<AsyncPgConnection>;

/// Options of a pool.
#[derive(Clone, Copy, Debug)]
pub struct PoolOptions<'a> {
    /// The connections' `application_name`, after `memfleet `.
    pub name: &'a str,
    /// The maximum number of connections.
    pub size: usize,
    /// How long to wait for a connection: for a free one, and for a new one to be established.
    pub acquire_timeout: Duration,
    /// The server cancels a statement that runs longer. Zero: no limit.
    pub statement_timeout: Duration,
    /// The server cancels a statement that waits longer for one lock. Zero: no limit.
    pub lock_timeout: Duration,
}

/// Why there is no pool, or no connection.
#[derive(Debug, thiserror::Error)]
pub enum PoolError {
    /// The options or the URL are invalid.
    #[error("the PostgreSQL pool cannot be created: {0}")]
    Build(String),
    /// The server is unreachable or rejects the connection.
    #[error("PostgreSQL cannot be reached: {0}")]
    Connect(String),
}

impl From<PoolError> for Fault {
    fn from(error: PoolError) -> Self {
        Self { kind: FaultKind::Unavailable, reason: error.to_string() }
    }
}

/// The TCP user timeout: a peer that acknowledges nothing for this long counts as lost. By default a network that drops
/// packets would block a worker for about 15 minutes.
const TCP_TIMEOUT: Duration = Duration::from_secs(30);

/// The server ends a transaction that is idle for this long: its process is frozen or disconnected, and other replicas
/// wait for its locks.
const IDLE_TRANSACTION_TIMEOUT: Duration = Duration::from_secs(10);

/// Creates a pool. The URL may name several hosts (`postgres://h1,h2/d?target_session_attrs=read-write`): each new
/// connection is to the first one that accepts it. It may name a file with the password (`?password_file=/p`), which is
/// read for each new connection. It connects when a connection is first acquired.
///
/// # Errors
/// [`PoolError::Build`] if the URL is invalid or the pool cannot be created.
pub fn open_pool(url: &str, options: &PoolOptions<'_>) -> Result<Pool, PoolError> {
    let (url, password_file) = take_password_file(url);
    let config = configure(&url, options)?;
    let mut manager = ManagerConfig::default();
    manager.custom_setup = Box::new(move |_| log_in(config.clone(), password_file.clone()).boxed());
    // A connection that was lost unnoticed fails the transaction, which is then retried on another one. Testing it each
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

/// The URL's options, and defaults for those that it does not set.
fn configure(url: &str, options: &PoolOptions<'_>) -> Result<Config, PoolError> {
    let mut config: Config = url.parse().map_err(|error| PoolError::Build(format!("its URL: {error}")))?;
    if config.get_application_name().is_none() {
        config.application_name(format!("memfleet {}", options.name));
    }
    if config.get_tcp_user_timeout().is_none() {
        config.tcp_user_timeout(TCP_TIMEOUT);
    }
    let (timeout, lock_timeout) = (options.statement_timeout.as_millis(), options.lock_timeout.as_millis());
    // Options of the URL come later and take precedence.
    let idle = IDLE_TRANSACTION_TIMEOUT.as_millis();
    let defaults = format!(
        "-c statement_timeout={timeout} -c lock_timeout={lock_timeout} -c idle_in_transaction_session_timeout={idle}"
    );
    let asked = config.get_options().unwrap_or_default().to_owned();
    config.options(format!("{defaults} {asked}").trim_end());
    config
        .connect_timeout(options.acquire_timeout)
        .keepalives_idle(TCP_TIMEOUT)
        .keepalives_interval(TCP_TIMEOUT / 3);
    Ok(config)
}

/// As [`establish`], with the password in the file, if there is one.
async fn log_in(mut config: Config, password_file: Option<String>) -> ConnectionResult<AsyncPgConnection> {
    if let Some(file) = password_file {
        let password = trust::text::secret_content(Path::new(&file))
            .map_err(|error| ConnectionError::BadConnection(error.to_string()))?;
        config.password(password.trim_end_matches(['\r', '\n']));
    }
    establish(config).await
}

/// Connects to the first host of the URL that the URL's `target_session_attrs` accepts. Each host has an equal share of
/// the time: one that accepts connections and then answers nothing must not take the time of the others.
async fn establish(config: Config) -> ConnectionResult<AsyncPgConnection> {
    let mut hosts = single_hosts(&config);
    if config.get_load_balance_hosts() == LoadBalanceHosts::Random {
        fastrand::shuffle(&mut hosts);
    }
    let time = config.get_connect_timeout().copied().unwrap_or(CONNECT_TIMEOUT);
    let share = time / u32::try_from(hosts.len()).unwrap_or(u32::MAX).max(1);
    let mut problems = Vec::new();
    for (name, host) in &hosts {
        let problem = match timeout(share, host.connect(NoTls)).await {
            Ok(Ok((client, connection))) => {
                return AsyncPgConnection::try_from_client_and_connection(client, connection).await;
            }
            Ok(Err(error)) => problem(&error),
            Err(_) => format!("no answer within {} ms", share.as_millis()),
        };
        problems.push(if hosts.len() > 1 { format!("{name}: {problem}") } else { problem });
    }
    Err(ConnectionError::BadConnection(problems.join("; ")))
}

/// The configuration of each host alone, with its name.
fn single_hosts(config: &Config) -> Vec<(String, Config)> {
    let count = config.get_hosts().len().max(config.get_hostaddrs().len());
    if count < 2 {
        return vec![(String::new(), config.clone())];
    }
    (0..count).map(|place| single_host(config, place)).collect()
}

fn single_host(config: &Config, place: usize) -> (String, Config) {
    let mut single = Config::new();
    let mut name = String::new();
    if let Some(address) = config.get_hostaddrs().get(place) {
        single.hostaddr(*address);
        name = address.to_string();
    }
    match config.get_hosts().get(place) {
        Some(Host::Tcp(host)) => {
            single.host(host);
            name.clone_from(host);
        }
        #[cfg(unix)]
        Some(Host::Unix(path)) => {
            single.host_path(path);
            name = path.display().to_string();
        }
        None => {}
    }
    let ports = config.get_ports();
    if let Some(port) = ports.get(place).or_else(|| ports.first()) {
        single.port(*port);
        name = format!("{name}:{port}");
    }
    config.get_user().map(|user| single.user(user));
    config.get_password().map(|password| single.password(password));
    config.get_dbname().map(|database| single.dbname(database));
    config.get_options().map(|options| single.options(options));
    config.get_application_name().map(|name| single.application_name(name));
    config.get_connect_timeout().map(|limit| single.connect_timeout(*limit));
    config.get_tcp_user_timeout().map(|limit| single.tcp_user_timeout(*limit));
    config.get_keepalives_interval().map(|interval| single.keepalives_interval(interval));
    config.get_keepalives_retries().map(|retries| single.keepalives_retries(retries));
    single
        .keepalives(config.get_keepalives())
        .keepalives_idle(config.get_keepalives_idle())
        .ssl_mode(config.get_ssl_mode())
        .ssl_negotiation(config.get_ssl_negotiation())
        .channel_binding(config.get_channel_binding())
        .target_session_attrs(config.get_target_session_attrs());
    (name, single)
}

/// The message of the server, or else of the client with its cause, such as "connection refused".
fn problem(error: &tokio_postgres::Error) -> String {
    match (error.as_db_error(), std::error::Error::source(error)) {
        (Some(server), _) => server.message().to_owned(),
        (None, Some(cause)) => format!("{error}: {cause}"),
        (None, None) => error.to_string(),
    }
}

/// Acquires a connection.
///
/// # Errors
/// [`PoolError::Connect`] if none is available in time, with the error of the server or the network.
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

/// Asks the server to cancel the statement that a connection is running.
///
/// # Errors
/// [`PoolError::Connect`] if the server cannot be reached.
pub async fn cancel(token: &CancelToken) -> Result<(), PoolError> {
    token.cancel_query(NoTls).await.map_err(|error| PoolError::Connect(error.to_string()))
}

/// Closes a connection instead of returning it to its pool.
pub fn discard(connection: Pooled) {
    drop(Object::take(connection));
}

/// Closes a connection on which an operation found the server unavailable or the connection lost, and returns any other
/// to its pool. The next connection may reach another server.
pub fn discard_if_unusable<T>(connection: Pooled, outcome: &Result<T, Fault>) {
    if outcome.as_ref().is_err_and(|fault| fault.kind.is_outage()) {
        discard(connection);
    }
}

/// The timeout of [`connect`].
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// Opens a single connection without a pool and without timeouts of statements and locks.
///
/// # Errors
/// [`PoolError::Build`] for an invalid URL, [`PoolError::Connect`] with the error of the server or the network.
pub async fn connect(url: &str) -> Result<AsyncPgConnection, PoolError> {
    let options = PoolOptions {
        name: "command",
        size: 1,
        acquire_timeout: CONNECT_TIMEOUT,
        statement_timeout: Duration::ZERO,
        lock_timeout: Duration::ZERO,
    };
    let (url, password_file) = take_password_file(url);
    log_in(configure(&url, &options)?, password_file)
        .await
        .map_err(|error| PoolError::Connect(error.to_string()))
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
        lock_timeout: Duration::from_millis(300),
    };

    #[test]
    fn options_missing_in_the_url_have_defaults() {
        let config = configure("postgres://h/d", &OPTIONS).expect("a URL");
        assert_eq!(config.get_application_name(), Some("memfleet some-worker"));
        assert_eq!(config.get_tcp_user_timeout(), Some(&TCP_TIMEOUT));
        assert_eq!(
            config.get_options(),
            Some(
                "-c statement_timeout=7000 -c lock_timeout=300 -c idle_in_transaction_session_timeout=10000"
            )
        );
    }

    #[test]
    fn each_of_several_hosts_has_all_other_options() {
        let url = "postgres://u:p@h1:1,h2:2/d?target_session_attrs=read-write&tcp_user_timeout=5&keepalives_retries=3";
        let config = configure(url, &OPTIONS).expect("a URL");
        let hosts = single_hosts(&config);
        let names: Vec<&str> = hosts.iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!(names, ["h1:1", "h2:2"]);
        for (place, (_, host)) in hosts.iter().enumerate() {
            let one = url.replace("h1:1,h2:2", ["h1:1", "h2:2"][place]);
            assert_eq!(host, &configure(&one, &OPTIONS).expect("a URL"));
        }
    }

    #[test]
    fn options_in_the_url_take_precedence() {
        let url = "postgres://h/d?application_name=mine&tcp_user_timeout=5&options=-c%20statement_timeout=1";
        let config = configure(url, &OPTIONS).expect("a URL");
        assert_eq!(config.get_application_name(), Some("mine"));
        assert_eq!(config.get_tcp_user_timeout(), Some(&Duration::from_secs(5)));
        assert!(config.get_options().is_some_and(|options| options.ends_with("0 -c statement_timeout=1")));
        let error = configure("postgres//h", &OPTIONS).expect_err("no URL");
        assert!(error.to_string().contains("URL"), "{error}");
    }
}
