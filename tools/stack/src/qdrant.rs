//! The official vector engine behind Qdrant's gRPC API: `qdrant-local`, a program of this workspace.

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::process::Signal;

use crate::error::StackError;
use crate::files::{self, Log};
use crate::process::{self, LOOK_EVERY, Process, Program};
use crate::programs::Programs;

const NAME: &str = "qdrant-local";
const READY_WITHIN: Duration = Duration::from_secs(60);

/// A vector store that this process runs. Dropping it kills it; prefer [`Qdrant::stop`].
#[derive(Debug)]
pub struct Qdrant {
    process: Option<Process>,
    program: PathBuf,
    dir: PathBuf,
    log: Log,
    port: u16,
    pid: u32,
}

impl Qdrant {
    /// Starts the program on a free port of 127.0.0.1, with its data in `dir`, and waits until it answers, at most a minute.
    ///
    /// # Errors
    /// The program is not there, the folder is in use or cannot be written, or it does not start; the error carries the end of
    /// its log.
    pub async fn start(programs: &Programs, dir: &Path) -> Result<Self, StackError> {
        let program = programs.qdrant_local()?;
        let dir = files::prepare(dir)?;
        let log = Log::begin(dir.join("qdrant.log"));
        let mut qdrant = Self { process: None, program, dir, log, port: 0, pid: 0 };
        qdrant.launch().await?;
        Ok(qdrant)
    }

    /// Where clients connect, `http://127.0.0.1:PORT`. It stays the same over [`Qdrant::kill`] and [`Qdrant::resume`].
    #[must_use]
    pub fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    /// The folder with its collections.
    #[must_use]
    pub fn data(&self) -> PathBuf {
        self.dir.join("data")
    }

    /// The process of the program, or of the last one while it is killed.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// Stops the program and waits for its end, at most 20 seconds. A killed one is stopped already.
    ///
    /// # Errors
    /// It had ended by itself, or had to be killed.
    pub async fn stop(mut self) -> Result<(), StackError> {
        match self.process.take() {
            Some(process) => process.stop(&self.log).await,
            None => Ok(()),
        }
    }

    /// Kills the program at once, as a crash would.
    pub async fn kill(&mut self) {
        if let Some(mut process) = self.process.take() {
            process.kill();
        }
    }

    /// Starts a killed program again, on the same port and data; nothing where it runs.
    ///
    /// # Errors
    /// The program does not start, or another process took its port meanwhile.
    pub async fn resume(&mut self) -> Result<(), StackError> {
        if self.process.is_some() {
            return Ok(());
        }
        self.launch().await
    }

    async fn launch(&mut self) -> Result<(), StackError> {
        let port_file = self.dir.join("port");
        match fs::remove_file(&port_file) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                return Err(StackError::file("remove", &port_file, error));
            }
            _ => {}
        }
        let paths = [("--home", self.data()), ("--port-file", port_file.clone())];
        let listen = ["--listen".into(), format!("127.0.0.1:{}", self.port).into()];
        let arguments: Vec<OsString> = paths
            .into_iter()
            .flat_map(|(flag, path)| [flag.into(), path.into_os_string()])
            .chain(listen)
            .collect();
        let program = Program {
            name: NAME,
            path: self.program.clone(),
            arguments,
            folder: &self.dir,
            account: None,
            stop_by: Signal::TERM,
            drop_by: Signal::KILL,
        };
        let mut process = Process::start(&program, &mut self.log).await?;
        self.port = self.ready(&mut process, &port_file).await?;
        self.pid = process.pid();
        self.process = Some(process);
        Ok(())
    }

    /// Waits until the program says its port, which it does once it answers there.
    async fn ready(&self, process: &mut Process, port_file: &Path) -> Result<u16, StackError> {
        let deadline = Instant::now() + READY_WITHIN;
        loop {
            process.still_runs(&self.log)?;
            if let Some(port) = fs::read_to_string(port_file).ok().and_then(|text| text.trim().parse().ok()) {
                return Ok(port);
            }
            if Instant::now() >= deadline {
                return Err(process::not_ready(NAME, READY_WITHIN, &self.log));
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }
}
