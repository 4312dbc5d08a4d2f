//! A private NATS server with JetStream.

use std::ffi::OsString;
use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::process::Signal;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::net::TcpStream;

use crate::claim::Claim;
use crate::error::StackError;
use crate::files::{self, Log};
use crate::process::{self, LOOK_EVERY, Process, Program};
use crate::programs::Programs;

const NAME: &str = "NATS";
const USER: &str = "memfleet";
const READY_WITHIN: Duration = Duration::from_secs(30);
/// How long one look at the port may take.
const LOOK_WITHIN: Duration = Duration::from_secs(2);

/// How a private NATS server runs.
#[derive(Clone)]
pub struct NatsOptions {
    /// Whether JetStream flushes to disk before it acknowledges a message. Off, a power cut loses what was
    /// acknowledged in the last two minutes; a crash of the server alone loses nothing either way.
    pub sync_always: bool,
    /// The largest message, headers included, in bytes. The server allows at most 64 MiB.
    pub max_payload_bytes: u32,
    /// The name that the server gives to clients, without spaces.
    pub server_name: String,
    /// Who may connect, as text of the server's configuration: accounts with their users. By default one user with a
    /// password may do anything.
    pub accounts: Option<String>,
    /// Encrypts what JetStream keeps on disk (AES). A folder that was encrypted needs the same key again.
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

/// A NATS server that this process runs. Dropping it kills it; prefer [`Nats::stop`].
#[derive(Debug)]
pub struct Nats {
    process: Option<Process>,
    program: PathBuf,
    dir: PathBuf,
    log: Log,
    password: String,
    has_accounts: bool,
    port: u16,
    pid: u32,
    url: String,
    websocket_url: Option<String>,
    claim: Claim,
}

impl Nats {
    /// Starts the server on a free port of 127.0.0.1, with its data in `dir`, and waits until it answers with
    /// JetStream ready, at most 30 seconds.
    ///
    /// # Errors
    /// The folder is in use or cannot be written, or the server does not start; the error carries the end of its log.
    pub async fn start(programs: &Programs, dir: &Path, options: NatsOptions) -> Result<Self, StackError> {
        let dir = files::prepare(dir)?;
        let claim = Claim::take(&dir, &config_file(&dir), Signal::TERM).await?;
        let password = files::password(&dir.join("password"))?;
        files::write_private(&config_file(&dir), &config(&options, &password))?;
        let mut nats = Self {
            process: None,
            program: programs.nats_server.clone(),
            log: Log::begin(dir.join("nats.log")),
            dir,
            password,
            has_accounts: options.accounts.is_some(),
            port: 0,
            pid: 0,
            url: String::new(),
            websocket_url: None,
            claim,
        };
        nats.launch().await?;
        Ok(nats)
    }

    /// Where clients connect, with user and password: `nats://memfleet:PASSWORD@127.0.0.1:PORT`, or without where there are
    /// accounts. It stays the same
    /// over [`Nats::kill`] and [`Nats::resume`]. The Rust client, `async-nats`, passes over the user and password in an
    /// address: give it [`Nats::user`] and [`Nats::password`] through its options.
    #[must_use]
    pub fn url(&self) -> &str {
        &self.url
    }

    /// Where web pages connect, `ws://127.0.0.1:PORT`, if they may. It is another one after [`Nats::resume`].
    #[must_use]
    pub fn websocket_url(&self) -> Option<&str> {
        self.websocket_url.as_deref()
    }

    /// The user that may connect.
    #[must_use]
    pub fn user(&self) -> &str {
        USER
    }

    /// The password of that user: hexadecimal digits.
    #[must_use]
    pub fn password(&self) -> &str {
        &self.password
    }

    /// The process of the server, or of the last one while it is killed.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// Stops the server and waits for its end, at most 20 seconds. A killed server is stopped already.
    ///
    /// # Errors
    /// It had ended by itself, or had to be killed.
    pub async fn stop(mut self) -> Result<(), StackError> {
        match self.process.take() {
            Some(process) => process.stop(&self.log).await,
            None => Ok(()),
        }
    }

    /// Kills the server at once, as a crash would.
    pub async fn kill(&mut self) {
        if let Some(mut process) = self.process.take() {
            process.kill();
        }
    }

    /// Starts a killed server again, on the same port and data; nothing where it runs.
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
        let ports = self.dir.join("ports");
        match fs::remove_dir_all(&ports) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                return Err(StackError::file("remove", &ports, error));
            }
            _ => {}
        }
        files::prepare(&ports)?;
        let program = Program {
            name: NAME,
            path: self.program.clone(),
            arguments: self.arguments(&ports),
            folder: &self.dir,
            account: None,
            stop_by: Signal::TERM,
            drop_by: Signal::KILL,
        };
        let mut process = Process::start(&program, &mut self.log).await?;
        self.claim.note(process.pid())?;
        self.port = self.ready(&mut process, &ports).await?;
        self.websocket_url = address_in(&ports, process.pid(), "websocket");
        self.pid = process.pid();
        let user = if self.has_accounts { String::new() } else { format!("{USER}:{}@", self.password) };
        self.url = format!("nats://{user}127.0.0.1:{}", self.port);
        self.process = Some(process);
        Ok(())
    }

    fn arguments(&self, ports: &Path) -> Vec<OsString> {
        // The server chooses a free port itself, so there is no moment in which another process can take it.
        let port = if self.port == 0 { "-1".to_owned() } else { self.port.to_string() };
        let flags = ["-a", "127.0.0.1", "-p", &port, "-js"].map(OsString::from);
        let paths = [
            ("-c", config_file(&self.dir)),
            ("-sd", self.dir.join("data")),
            ("--ports_file_dir", ports.to_path_buf()),
        ];
        let paths = paths.into_iter().flat_map(|(flag, path)| [flag.into(), path.into_os_string()]);
        flags.into_iter().chain(paths).collect()
    }

    /// Waits until the server says its port and greets there.
    async fn ready(&self, process: &mut Process, ports: &Path) -> Result<u16, StackError> {
        let deadline = Instant::now() + READY_WITHIN;
        loop {
            process.still_runs(&self.log)?;
            if let Some(port) = port_in(ports, process.pid())
                && greets(port).await
            {
                return Ok(port);
            }
            if Instant::now() >= deadline {
                return Err(process::not_ready(NAME, READY_WITHIN, &self.log));
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }
}

fn config_file(dir: &Path) -> PathBuf {
    dir.join("nats.conf")
}

fn config(options: &NatsOptions, password: &str) -> String {
    let sync = if options.sync_always { "sync_interval: always" } else { "" };
    // The server sets a stream's bound aside out of what the disk has free, which on a small machine is less than
    // the bounds of streams that will stay nearly empty.
    // JSON strings are strings of this format too.
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
    format!(
        "server_name: {name}\nmax_payload: {}\njetstream {{\nmax_file_store: 1TB\n{sync}\n{encryption}}}\n{websocket}{access}",
        options.max_payload_bytes
    )
}

/// The port in the file that the server writes once it listens.
fn port_in(ports: &Path, pid: u32) -> Option<u16> {
    address_in(ports, pid, "nats")?.rsplit_once(':')?.1.parse().ok()
}

/// The first address for one sort of clients in the file that the server writes once it listens, `PROGRAM_PID.ports`.
fn address_in(ports: &Path, pid: u32, clients: &str) -> Option<String> {
    let ending = format!("_{pid}.ports");
    let mut files = fs::read_dir(ports).ok()?.flatten();
    let file = files.find(|file| file.file_name().to_str().is_some_and(|name| name.ends_with(&ending)))?;
    let content: serde_json::Value = serde_json::from_str(&fs::read_to_string(file.path()).ok()?).ok()?;
    content[clients][0].as_str().map(str::to_owned)
}

/// Whether a NATS server with JetStream greets at the port. Its first line is `INFO {…}`.
async fn greets(port: u16) -> bool {
    let look = async {
        let connection = TcpStream::connect(("127.0.0.1", port)).await.ok()?;
        let mut line = String::new();
        BufReader::new(connection).read_line(&mut line).await.ok()?;
        let info: serde_json::Value = serde_json::from_str(line.strip_prefix("INFO ")?).ok()?;
        info["jetstream"].as_bool()
    };
    tokio::time::timeout(LOOK_WITHIN, look).await.ok().flatten().unwrap_or(false)
}
