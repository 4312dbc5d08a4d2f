//! A private PostgreSQL.

mod cluster;
mod relocate;
mod standby;

use std::ffi::OsString;
use std::fs;
use std::net::{Ipv4Addr, TcpListener};
use std::path::Path;
use std::time::Duration;

use crate::error::StackError;
use crate::files::{self, Log};
use crate::programs::Programs;
use crate::server::process::ProcessSpec;
use crate::server::{Server, ServerKind};
use cluster::Cluster;

const NAME: &str = "PostgreSQL";
const USER: &str = "memfleet";
/// The database that exists from the first start.
const DATABASE: &str = "memfleet";
/// How long one attempt to connect, and one statement, may take.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);

/// How a private PostgreSQL runs.
#[derive(Debug, Clone)]
pub struct PostgresOptions {
    /// Whether a commit waits for the disk. If not, a power failure can corrupt all data; a crash of the server alone
    /// loses nothing either way.
    pub fsync: bool,
    /// Further settings, name and value, which override the defaults.
    pub settings: Vec<(String, String)>,
    /// The maximum number of connections.
    pub max_connections: u16,
}

impl Default for PostgresOptions {
    fn default() -> Self {
        Self { fsync: true, settings: Vec::new(), max_connections: 200 }
    }
}

/// A PostgreSQL that this process runs. Dropping it ends it; prefer [`Server::stop`].
pub type Postgres = Server<PostgresServer>;

/// The PostgreSQL specifics of a [`Server`].
#[derive(Debug)]
pub struct PostgresServer {
    cluster: Cluster,
    settings: Vec<(String, String)>,
}

impl Postgres {
    /// Starts the server on a free port of 127.0.0.1 and waits until it answers, at most 60 seconds. Its data are in
    /// `dir`, which is initialized first where it is empty. Its superuser is `memfleet`, and so is an empty database.
    ///
    /// # Errors
    /// The folder is in use, cannot be written or holds data of another version, or the server does not start; the
    /// error carries the end of its log.
    pub async fn start(
        programs: &Programs,
        dir: &Path,
        options: PostgresOptions,
    ) -> Result<Self, StackError> {
        let dir = files::prepare(dir)?;
        let (cluster, lock) = Cluster::open(programs, &dir).await?;
        let mut log = Log::begin(dir.join("prepare.log"));
        cluster.initialize(&mut log).await?;
        let mut settings = settings(&options);
        if cluster.accepts("wal_compression", "lz4", &mut log).await? {
            settings.push(("wal_compression".to_owned(), "lz4".to_owned()));
        }
        settings.extend(options.settings);
        let log = Log::begin(dir.join("postgres.log"));
        let server = Self::launch(PostgresServer { cluster, settings }, log, lock).await?;
        server.kind.create_database(server.port()).await?;
        Ok(server)
    }

    /// The URL for clients, with user and password: `postgres://memfleet:PASSWORD@127.0.0.1:PORT/DATABASE`. It stays
    /// the same over [`Server::kill`] and [`Server::resume`]. The name of the database goes in as it is: one with
    /// other characters than letters, digits, `-` and `_` must be percent-encoded first.
    #[must_use]
    pub fn url(&self, database: &str) -> String {
        self.kind.url(self.port(), database)
    }
}

impl PostgresServer {
    fn url(&self, port: u16, database: &str) -> String {
        format!("postgres://{USER}:{}@127.0.0.1:{port}/{database}", self.cluster.password)
    }

    async fn connect(
        &self,
        port: u16,
        database: &str,
    ) -> Result<tokio_postgres::Client, tokio_postgres::Error> {
        let mut config: tokio_postgres::Config = self.url(port, database).parse()?;
        config.connect_timeout(ANSWER_TIMEOUT);
        config.options(format!("-c statement_timeout={}", ANSWER_TIMEOUT.as_millis()));
        let (client, connection) = config.connect(tokio_postgres::NoTls).await?;
        // Ends when the client is dropped.
        tokio::spawn(connection);
        Ok(client)
    }

    /// Creates the database if it is missing, and closes the others to roles that are no superusers. Runs at every start, because an earlier start may have been interrupted
    /// between the initialization of the folder and this step.
    async fn create_database(&self, port: u16) -> Result<(), StackError> {
        let failed = |source| StackError::Database { action: "creating the database memfleet", source };
        let client = self.connect(port, "postgres").await.map_err(failed)?;
        let existing = client.query_opt("SELECT 1 FROM pg_database WHERE datname = $1", &[&DATABASE]).await;
        if existing.map_err(failed)?.is_none() {
            client.batch_execute(&format!("CREATE DATABASE {DATABASE}")).await.map_err(failed)?;
        }
        // The server is memfleet's alone: nobody but its superuser has business in these.
        let close = "REVOKE CONNECT, TEMPORARY ON DATABASE postgres, template1 FROM PUBLIC";
        client.batch_execute(close).await.map_err(failed)
    }
}

impl ServerKind for PostgresServer {
    const NAME: &'static str = NAME;
    const READY_TIMEOUT: Duration = Duration::from_secs(60);

    fn process(&self, port: u16) -> ProcessSpec<'_> {
        let mut arguments = vec![OsString::from("-D"), self.cluster.data.clone().into_os_string()];
        let port = ("port".to_owned(), port.to_string());
        for (name, value) in self.settings.iter().chain([&port]) {
            arguments.extend(["-c".into(), format!("{name}={value}").into()]);
        }
        self.cluster.process(NAME, "postgres", arguments)
    }

    /// PostgreSQL chooses no port itself. Another process can take this one before the server does; then the start is
    /// tried again with another one.
    fn first_port(&self) -> Result<u16, StackError> {
        let bound = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).and_then(|listener| listener.local_addr());
        bound
            .map(|address| address.port())
            .map_err(|source| StackError::file("find a free port on", Path::new("127.0.0.1"), source))
    }

    async fn probe(&self, pid: u32, port: u16) -> Option<u16> {
        let is_ready = reports_ready(&self.cluster.data, pid) && self.connect(port, "postgres").await.is_ok();
        is_ready.then_some(port)
    }

    /// The port is taken, or some processes of a killed server still run.
    fn is_transient(&self, log_tail: &str) -> bool {
        log_tail.contains("Address already in use") || log_tail.contains("is still in use")
    }
}

/// Settings for a small machine that runs other programs too.
fn settings(options: &PostgresOptions) -> Vec<(String, String)> {
    let connections = options.max_connections.to_string();
    let mut settings = vec![
        ("listen_addresses", "127.0.0.1"),
        // TCP is enough, and the path of a socket is limited to some hundred characters.
        ("unix_socket_directories", ""),
        ("max_connections", connections.as_str()),
        ("shared_buffers", "256MB"),
        ("max_wal_size", "4GB"),
        ("jit", "off"),
        ("timezone", "UTC"),
        ("log_timezone", "UTC"),
    ];
    if !options.fsync {
        // Commits still wait for the operating system to take their data, so they survive a crash of the server.
        settings.extend([("fsync", "off"), ("full_page_writes", "off")]);
    }
    settings.into_iter().map(|(name, value)| (name.to_owned(), value.to_owned())).collect()
}

/// Whether the server reports that it is ready. It keeps its state in the eighth line of a file whose first line is its
/// pid.
fn reports_ready(data: &Path, pid: u32) -> bool {
    let content = fs::read_to_string(data.join("postmaster.pid")).unwrap_or_default();
    let mut lines = content.lines().map(str::trim);
    lines.next().and_then(|first| first.parse().ok()) == Some(pid) && lines.nth(6) == Some("ready")
}
