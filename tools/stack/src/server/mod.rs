//! The life cycle that all private servers share: start in a folder of its own, wait until it answers, stop or kill,
//! start again on the same port.

pub(crate) mod lock;
pub(crate) mod process;

use std::future::Future;
use std::time::{Duration, Instant};

use crate::error::StackError;
use crate::files::Log;
use lock::FolderLock;
use process::{POLL_INTERVAL, Process, ProcessSpec};

/// Maximum number of start attempts after transient failures.
const START_ATTEMPTS: u32 = 10;
const BETWEEN_ATTEMPTS: Duration = Duration::from_millis(100);

/// The specifics of one kind of server.
pub trait ServerKind {
    /// The name in messages.
    const NAME: &'static str;
    /// How long a start may take.
    const READY_TIMEOUT: Duration;

    /// The process to run. Port 0 means that the server itself chooses a free one.
    fn process(&self, port: u16) -> ProcessSpec<'_>;

    /// The port for the first start.
    ///
    /// # Errors
    /// No port can be found.
    fn first_port(&self) -> Result<u16, StackError> {
        Ok(0)
    }

    /// Removes the files in which an earlier process has reported where it listens.
    ///
    /// # Errors
    /// They cannot be removed.
    fn remove_reports(&self) -> Result<(), StackError> {
        Ok(())
    }

    /// The port on which the process answers; `None` while it does not. `port` is the one it was started with.
    fn probe(&self, pid: u32, port: u16) -> impl Future<Output = Option<u16>> + Send;

    /// Whether a failed start may succeed on another attempt or another port.
    fn is_transient(&self, _log_tail: &str) -> bool {
        false
    }

    /// Called when a process has become ready.
    fn ready(&mut self, _pid: u32, _port: u16) {}
}

/// A server that this process runs on 127.0.0.1. Dropping it kills it; prefer [`Server::stop`].
#[derive(Debug)]
pub struct Server<K> {
    pub(crate) kind: K,
    process: Option<Process>,
    log: Log,
    port: u16,
    pid: u32,
    /// Last, so that the folder is free only when the process has ended.
    lock: FolderLock,
}

impl<K: ServerKind> Server<K> {
    pub(crate) async fn launch(kind: K, log: Log, lock: FolderLock) -> Result<Self, StackError> {
        let mut server = Self { kind, process: None, log, port: 0, pid: 0, lock };
        server.resume().await?;
        Ok(server)
    }

    /// The port on which clients connect. It stays the same over [`Server::kill`] and [`Server::resume`].
    #[must_use]
    pub fn port(&self) -> u16 {
        self.port
    }

    /// The process of the server, or of the last one while it is killed.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// Stops the server and waits for its end, at most 20 seconds. It closes its connections; PostgreSQL rolls back
    /// open transactions. A killed server is stopped already.
    ///
    /// # Errors
    /// It had ended by itself, or had to be killed.
    pub async fn stop(mut self) -> Result<(), StackError> {
        match self.process.take() {
            Some(process) => process.stop(&self.log).await,
            None => Ok(()),
        }
    }

    /// Kills the server and its child processes at once, as a crash would. Like a crash this leaves some bytes of
    /// PostgreSQL's shared memory in the system, which the next start on the same data removes.
    pub async fn kill(&mut self) {
        if let Some(mut process) = self.process.take() {
            process.kill();
        }
    }

    /// Starts a killed server again, on the same port and data, and waits until it answers; does nothing where it runs.
    ///
    /// # Errors
    /// The server does not start, or another process took its port meanwhile.
    pub async fn resume(&mut self) -> Result<(), StackError> {
        if self.process.is_some() {
            return Ok(());
        }
        let mut attempt = 1;
        loop {
            let port = if self.port == 0 { self.kind.first_port()? } else { self.port };
            match self.start_on(port).await {
                Err(StackError::Ended { tail, .. })
                    if attempt < START_ATTEMPTS && self.kind.is_transient(&tail) =>
                {
                    tokio::time::sleep(BETWEEN_ATTEMPTS).await;
                    attempt += 1;
                }
                result => return result,
            }
        }
    }

    async fn start_on(&mut self, port: u16) -> Result<(), StackError> {
        self.kind.remove_reports()?;
        let mut process = Process::start(&self.kind.process(port), &mut self.log).await?;
        self.lock.record_server(process.pid())?;
        self.port = self.wait_until_ready(&mut process, port).await?;
        self.pid = process.pid();
        self.kind.ready(self.pid, self.port);
        self.process = Some(process);
        Ok(())
    }

    async fn wait_until_ready(&self, process: &mut Process, port: u16) -> Result<u16, StackError> {
        let deadline = Instant::now() + K::READY_TIMEOUT;
        loop {
            process.ensure_running(&self.log)?;
            if let Some(port) = self.kind.probe(process.pid(), port).await {
                return Ok(port);
            }
            if Instant::now() >= deadline {
                return Err(process::not_ready(K::NAME, K::READY_TIMEOUT, &self.log));
            }
            tokio::time::sleep(POLL_INTERVAL).await;
        }
    }
}
