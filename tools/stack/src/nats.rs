//! A private NATS server with JetStream.

use std::ffi::OsString;
use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::process::Signal;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::net::TcpStream;

use crate::error::StackError;
use crate::files::{self, Log};
use crate::programs::Programs;
use crate::server::lock::FolderLock;
use crate::server::process::ProcessSpec;
use crate::server::{Server, ServerKind};

const USER: &str = "memfleet";
/// How long one probe of the port may take.
const PROBE_TIMEOUT: Duration = Duration::from_secs(2);

/// How a private NATS server runs.
#[derive(Clone)]
pub struct NatsOptions {
    /// Whether JetStream flushes to disk before it acknowledges a message. If not, a power failure loses what was
    /// acknowledged in the last two minutes; a crash of the server alone loses nothing either way.
    pub sync_always: bool,
    /// The largest message, headers included, in bytes. The server allows at most 64 MiB.
    pub max_payload_bytes: u32,
    /// The name that the server reports to clients, without spaces.
    pub server_name: String,
    /// Accounts and their users, as text of the server's configuration. By default there is one user, with a password
    /// and all permissions.
    pub accounts: Option<String>,
    /// Encrypts JetStream's files (AES). A folder that was encrypted needs the same key again.
    pub storage_key: Option<String>,
    /// Whether web pages may connect, over WebSocket, without TLS: from this machine only.
    pub websocket: bool,
}

impl fmt::Debug for NatsOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("NatsOptions").field("server_name", &self.server_name).finish_non_exhaustive()
    }
}

impl Default for NatsOptions {
    fn default() -> Self {
        Self {
            sync_always: false,
            max_payload_bytes: 4 * 1024 * 1024,
            server_name: "memfleet".to_owned(),
            accounts: None,
            storage_key: None,
            websocket: false,
        }
    }
}

/// A NATS server that this process runs. Dropping it kills it; prefer [`Server::stop`].
pub type Nats = Server<NatsServer>;

/// The NATS specifics of a [`Server`].
#[derive(Debug)]
pub struct NatsServer {
    program: PathBuf,
    dir: PathBuf,
    password: String,
    has_accounts: bool,
    url: String,
    websocket_url: Option<String>,
}

impl Nats {
    /// Starts the server on a free port of 127.0.0.1, with its data in `dir`, and waits until it answers with
    /// JetStream ready, at most 30 seconds.
    ///
    /// # Errors
    /// The folder is in use or cannot be written, or the server does not start; the error carries the end of its log.
    pub async fn start(programs: &Programs, dir: &Path, options: NatsOptions) -> Result<Self, StackError> {
        let dir = files::prepare(dir)?;
        let lock = FolderLock::acquire(&dir, &config_file(&dir), Signal::TERM).await?;
        let password = files::password(&dir.join("password"))?;
        files::write_private(&config_file(&dir), &config(&options, &password))?;
        let log = Log::begin(dir.join("nats.log"));
        let kind = NatsServer {
            program: programs.nats_server.clone(),
            dir,
            password,
            has_accounts: options.accounts.is_some(),
            url: String::new(),
            websocket_url: None,
        };
        Self::launch(kind, log, lock).await
    }

    /// The URL for clients, with user and password: `nats://memfleet:PASSWORD@127.0.0.1:PORT`; without them where there
    /// are accounts. It stays the same over [`Server::kill`] and [`Server::resume`]. The Rust client, `async-nats`,
    /// ignores a user and password in a URL: give it [`Server::user`] and [`Server::password`] through its options.
    #[must_use]
    pub fn url(&self) -> &str {
        &self.kind.url
    }

    /// The URL for web pages, `ws://127.0.0.1:PORT`, if they may connect. The port is another one after
    /// [`Server::resume`].
    #[must_use]
    pub fn websocket_url(&self) -> Option<&str> {
        self.kind.websocket_url.as_deref()
    }

    /// The user that may connect.
    #[must_use]
    pub fn user(&self) -> &str {
        USER
    }

    /// The password of that user: hexadecimal digits.
    #[must_use]
    pub fn password(&self) -> &str {
        &self.kind.password
    }
}

impl NatsServer {
    /// The folder for the file in which the server writes where it listens.
    fn ports(&self) -> PathBuf {
        self.dir.join("ports")
    }
}

impl ServerKind for NatsServer {
    const NAME: &'static str = "NATS";
    const READY_TIMEOUT: Duration = Duration::from_secs(30);

    fn process(&self, port: u16) -> ProcessSpec<'_> {
        let port = if port == 0 { "-1".to_owned() } else { port.to_string() };
        let flags = ["-a", "127.0.0.1", "-p", &port, "-js"].map(OsString::from);
        let paths = [
            ("-c", config_file(&self.dir)),
            ("-sd", self.dir.join("data")),
            ("--ports_file_dir", self.ports()),
        ];
        let paths = paths.into_iter().flat_map(|(flag, path)| [flag.into(), path.into_os_string()]);
        ProcessSpec {
            name: Self::NAME,
            path: self.program.clone(),
            arguments: flags.into_iter().chain(paths).collect(),
            folder: &self.dir,
            user: None,
            stop_signal: Signal::TERM,
            drop_signal: Signal::KILL,
        }
    }

    fn remove_reports(&self) -> Result<(), StackError> {
        files::remove_folder(&self.ports())?;
        files::prepare(&self.ports()).map(|_| ())
    }

    async fn probe(&self, pid: u32, _port: u16) -> Option<u16> {
        let port = port_in(&self.ports(), pid)?;
        greets(port).await.then_some(port)
    }

    fn ready(&mut self, pid: u32, port: u16) {
        self.websocket_url = address_in(&self.ports(), pid, "websocket");
        let user = if self.has_accounts { String::new() } else { format!("{USER}:{}@", self.password) };
        self.url = format!("nats://{user}127.0.0.1:{port}");
    }
}

fn config_file(dir: &Path) -> PathBuf {
    dir.join("nats.conf")
}

fn config(options: &NatsOptions, password: &str) -> String {
    let sync = if options.sync_always { "sync_interval: always" } else { "" };
    // JSON strings are valid strings of the server's configuration format.
    let name = serde_json::Value::from(options.server_name.as_str());
    let encryption = options.storage_key.as_ref().map_or_else(String::new, |key| {
        format!("cipher: aes\nkey: {}\n", serde_json::Value::from(key.as_str()))
    });
    let access = options
        .accounts
        .clone()
        .unwrap_or_else(|| format!("authorization {{ user: \"{USER}\", password: \"{password}\" }}\n"));
    let websocket = match options.websocket {
        true => "websocket { host: \"127.0.0.1\", port: -1, no_tls: true }\n",
        false => "",
    };
    // The server reserves the size limit of every stream. Its default total, derived from the free disk space, is on a
    // small machine less than the sum of these limits, although the streams stay nearly empty.
    format!(
        "server_name: {name}\nmax_payload: {}\njetstream {{\nmax_file_store: 1TB\n{sync}\n{encryption}}}\n{websocket}{access}",
        options.max_payload_bytes
    )
}

/// The port in the file that the server writes once it listens.
fn port_in(ports: &Path, pid: u32) -> Option<u16> {
    address_in(ports, pid, "nats")?.rsplit_once(':')?.1.parse().ok()
}

/// The first address for one kind of clients in the file that the server writes once it listens, `PROGRAM_PID.ports`.
fn address_in(ports: &Path, pid: u32, clients: &str) -> Option<String> {
    let ending = format!("_{pid}.ports");
    let mut files = fs::read_dir(ports).ok()?.flatten();
    let file = files.find(|file| file.file_name().to_str().is_some_and(|name| name.ends_with(&ending)))?;
    let content: serde_json::Value = serde_json::from_str(&fs::read_to_string(file.path()).ok()?).ok()?;
    content[clients][0].as_str().map(str::to_owned)
}

/// Whether a NATS server with JetStream answers on the port: its first line is `INFO {…}`.
async fn greets(port: u16) -> bool {
    let probe = async {
        let connection = TcpStream::connect(("127.0.0.1", port)).await.ok()?;
        let mut line = String::new();
        BufReader::new(connection).read_line(&mut line).await.ok()?;
        let info: serde_json::Value = serde_json::from_str(line.strip_prefix("INFO ")?).ok()?;
        info["jetstream"].as_bool()
    };
    tokio::time::timeout(PROBE_TIMEOUT, probe).await.ok().flatten().unwrap_or(false)
}
