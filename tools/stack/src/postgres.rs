//! A private PostgreSQL.

mod cluster;

use std::ffi::OsString;
use std::fs;
use std::net::{Ipv4Addr, TcpListener};
use std::path::Path;
use std::time::{Duration, Instant};

use crate::claim::Claim;
use crate::error::StackError;
use crate::files::{self, Log};
use crate::process::{self, LOOK_EVERY, Process};
use crate::programs::Programs;
use cluster::Cluster;

const NAME: &str = "PostgreSQL";
const USER: &str = "memfleet";
/// The database that is there from the first start.
const DATABASE: &str = "memfleet";
const READY_WITHIN: Duration = Duration::from_secs(60);
/// How long one attempt to connect, and one statement, may take.
const ANSWER_WITHIN: Duration = Duration::from_secs(10);
/// Another process can take a free port between our finding it and the server's taking it.
const ATTEMPTS: u32 = 10;
/// How long to wait before a further attempt.
const BETWEEN_ATTEMPTS: Duration = Duration::from_millis(100);

/// How a private PostgreSQL runs.
#[derive(Debug, Clone)]
pub struct PostgresOptions {
    /// Whether a commit reaches the disk. Off, a power cut can spoil all data; a crash of the server alone loses
    /// nothing either way.
    pub fsync: bool,
    /// Further settings, name and value, which win over those made here.
    pub settings: Vec<(String, String)>,
    /// How many connections there can be at once.
    pub max_connections: u16,
}

impl Default for PostgresOptions {
    fn default() -> Self {
        Self { fsync: true, settings: Vec::new(), max_connections: 200 }
    }
}

/// A PostgreSQL that this process runs. Dropping it ends it; prefer [`Postgres::stop`].
#[derive(Debug)]
pub struct Postgres {
    process: Option<Process>,
    cluster: Cluster,
    settings: Vec<(String, String)>,
    log: Log,
    port: u16,
    pid: u32,
    claim: Claim,
}

impl Postgres {
    /// Starts the server on a free port of 127.0.0.1, with its data in `dir`, which is filled first where it is empty,
    /// and waits until it answers, at most 60 seconds. Its superuser is `memfleet`, and so is an empty database.
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
        let (cluster, claim) = Cluster::open(programs, &dir).await?;
        let mut log = Log::begin(dir.join("prepare.log"));
        cluster.fill(&mut log).await?;
        let mut settings = settings(&options);
        if cluster.accepts("wal_compression", "lz4", &mut log).await? {
            settings.push(("wal_compression".to_owned(), "lz4".to_owned()));
        }
        settings.extend(options.settings);
        let log = Log::begin(dir.join("postgres.log"));
        let mut postgres = Self { process: None, cluster, settings, log, port: 0, pid: 0, claim };
        postgres.launch().await?;
        postgres.create_database().await?;
        Ok(postgres)
    }

    /// Where clients connect, with user and password: `postgres://memfleet:PASSWORD@127.0.0.1:PORT/DATABASE`. It stays
    /// the same over [`Postgres::kill`] and [`Postgres::resume`]. The name of the database goes in as it is: one with
    /// other characters than letters, digits, `-` and `_` must be percent-encoded first.
    #[must_use]
    pub fn url(&self, database: &str) -> String {
        format!("postgres://{USER}:{}@127.0.0.1:{}/{database}", self.cluster.password, self.port)
    }

    /// The process of the server, or of the last one while it is killed.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// Stops the server and waits for its end, at most 20 seconds; open connections are closed, open transactions
    /// rolled back. A killed server is stopped already.
    ///
    /// # Errors
    /// It had ended by itself, or had to be killed.
    pub async fn stop(mut self) -> Result<(), StackError> {
        match self.process.take() {
            Some(process) => process.stop(&self.log).await,
            None => Ok(()),
        }
    }

    /// Kills the server and all its processes at once, as a crash would. Like a crash it leaves some bytes of shared
    /// memory in the system, which the next start on the same data removes.
    pub async fn kill(&mut self) {
        if let Some(mut process) = self.process.take() {
            process.kill();
        }
    }

    /// Starts a killed server again, on the same port and data, and waits for its recovery, at most 60 seconds;
    /// nothing where it runs.
    ///
    /// # Errors
    /// The server does not start, or another process took its port meanwhile.
    pub async fn resume(&mut self) -> Result<(), StackError> {
        if self.process.is_some() {
            return Ok(());
        }
        self.launch().await
    }

    async fn launch(&mut self) -> Result<(), StackError> {
        let chosen = self.port;
        for attempt in 1.. {
            self.port = if chosen == 0 { free_port()? } else { chosen };
            match self.launch_once().await {
                Ok(()) => break,
                Err(StackError::Ended { tail, .. }) if attempt < ATTEMPTS && passes(&tail) => {
                    tokio::time::sleep(BETWEEN_ATTEMPTS).await;
                }
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    async fn launch_once(&mut self) -> Result<(), StackError> {
        let program = self.cluster.program(NAME, "postgres", self.arguments());
        let mut process = Process::start(&program, &mut self.log).await?;
        self.claim.note(process.pid())?;
        self.ready(&mut process).await?;
        self.pid = process.pid();
        self.process = Some(process);
        Ok(())
    }

    fn arguments(&self) -> Vec<OsString> {
        let mut arguments = vec![OsString::from("-D"), self.cluster.data.clone().into_os_string()];
        let port = ("port".to_owned(), self.port.to_string());
        for (name, value) in self.settings.iter().chain([&port]) {
            arguments.extend(["-c".into(), format!("{name}={value}").into()]);
        }
        arguments
    }

    /// Waits until the server says that it is ready, and lets us in.
    async fn ready(&self, process: &mut Process) -> Result<(), StackError> {
        let deadline = Instant::now() + READY_WITHIN;
        loop {
            process.still_runs(&self.log)?;
            if says_ready(&self.cluster.data, process.pid()) && self.connect("postgres").await.is_ok() {
                return Ok(());
            }
            if Instant::now() >= deadline {
                return Err(process::not_ready(NAME, READY_WITHIN, &self.log));
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }

    async fn connect(&self, database: &str) -> Result<tokio_postgres::Client, tokio_postgres::Error> {
        let mut config: tokio_postgres::Config = self.url(database).parse()?;
        config.connect_timeout(ANSWER_WITHIN);
        config.options(format!("-c statement_timeout={}", ANSWER_WITHIN.as_millis()));
        let (client, connection) = config.connect(tokio_postgres::NoTls).await?;
        // Ends when the client is dropped.
        tokio::spawn(connection);
        Ok(client)
    }

    /// At every start, because an earlier one may have ended between filling the folder and this.
    async fn create_database(&self) -> Result<(), StackError> {
        let failed = |source| StackError::Database { action: "creating the database memfleet", source };
        let client = self.connect("postgres").await.map_err(failed)?;
        let there = client.query_opt("SELECT 1 FROM pg_database WHERE datname = $1", &[&DATABASE]).await;
        if there.map_err(failed)?.is_none() {
            client.batch_execute(&format!("CREATE DATABASE {DATABASE}")).await.map_err(failed)?;
        }
        Ok(())
    }
}

/// Settings for a small machine that has other things to do.
fn settings(options: &PostgresOptions) -> Vec<(String, String)> {
    let connections = options.max_connections.to_string();
    let mut settings = vec![
        ("listen_addresses", "127.0.0.1"),
        // The path of a socket may have some hundred characters only, and TCP is all we need.
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

fn free_port() -> Result<u16, StackError> {
    let bound = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).and_then(|listener| listener.local_addr());
    bound
        .map(|address| address.port())
        .map_err(|source| StackError::file("find a free port on", Path::new("127.0.0.1"), source))
}

/// Whether the reason for the end of the server goes away by itself or with another port: the port is taken, or
/// processes of a killed server have not all noticed yet.
fn passes(tail: &str) -> bool {
    tail.contains("Address already in use") || tail.contains("is still in use")
}

/// The server keeps its state in the eighth line of a file whose first line is its pid.
fn says_ready(data: &Path, pid: u32) -> bool {
    let content = fs::read_to_string(data.join("postmaster.pid")).unwrap_or_default();
    let mut lines = content.lines().map(str::trim);
    lines.next().and_then(|first| first.parse().ok()) == Some(pid) && lines.nth(6) == Some("ready")
}
