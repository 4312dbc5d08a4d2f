//! A private vector store: `qdrant-local`, a program of this workspace with the official engine and Qdrant's gRPC API.

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::process::Signal;

use crate::error::StackError;
use crate::files::{self, Log};
use crate::programs::Programs;
use crate::server::lock::FolderLock;
use crate::server::process::ProcessSpec;
use crate::server::{Server, ServerKind};

/// A vector store that this process runs. Dropping it kills it; prefer [`Server::stop`].
pub type Qdrant = Server<QdrantServer>;

/// The vector store's specifics of a [`Server`].
#[derive(Debug)]
pub struct QdrantServer {
    program: PathBuf,
    dir: PathBuf,
    api_key: String,
}

impl Qdrant {
    /// Starts the program on a free port of 127.0.0.1, with its data in `dir`, which only this user can enter, and
    /// waits until it answers, at most a minute.
    ///
    /// # Errors
    /// The program is missing, the folder is in use or cannot be written, or the program does not start; the error
    /// contains the end of its log.
    pub async fn start(programs: &Programs, dir: &Path) -> Result<Self, StackError> {
        let program = programs.qdrant_local()?;
        let dir = files::prepare(dir)?;
        files::make_private(&dir)?;
        let lock = FolderLock::acquire(&dir, &data(&dir), Signal::TERM).await?;
        let api_key = files::password(&api_key_file(&dir))?;
        let log = Log::begin(dir.join("qdrant.log"));
        Self::launch(QdrantServer { program, dir, api_key }, log, lock).await
    }

    /// The URL for clients, `http://127.0.0.1:PORT`. It stays the same over [`Server::kill`] and [`Server::resume`].
    #[must_use]
    pub fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port())
    }

    /// The API key of its clients.
    #[must_use]
    pub fn api_key(&self) -> &str {
        &self.kind.api_key
    }

    /// The folder with its collections.
    #[must_use]
    pub fn data(&self) -> PathBuf {
        data(&self.kind.dir)
    }
}

impl QdrantServer {
    /// The file into which the program writes its port once it answers there.
    fn port_file(&self) -> PathBuf {
        self.dir.join("port")
    }
}

impl ServerKind for QdrantServer {
    const NAME: &'static str = "qdrant-local";
    const READY_TIMEOUT: Duration = Duration::from_secs(60);

    fn process(&self, port: u16) -> ProcessSpec<'_> {
        let paths = [
            ("--home", data(&self.dir)),
            ("--port-file", self.port_file()),
            ("--api-key-file", api_key_file(&self.dir)),
        ];
        let listen = ["--listen".into(), format!("127.0.0.1:{port}").into()];
        let arguments: Vec<OsString> = paths
            .into_iter()
            .flat_map(|(flag, path)| [flag.into(), path.into_os_string()])
            .chain(listen)
            .collect();
        ProcessSpec {
            name: Self::NAME,
            path: self.program.clone(),
            arguments,
            folder: &self.dir,
            user: None,
            stop_signal: Signal::TERM,
            drop_signal: Signal::KILL,
        }
    }

    fn remove_reports(&self) -> Result<(), StackError> {
        files::remove_file(&self.port_file())
    }

    async fn probe(&self, _pid: u32, _port: u16) -> Option<u16> {
        fs::read_to_string(self.port_file()).ok()?.trim().parse().ok()
    }
}

fn data(dir: &Path) -> PathBuf {
    dir.join("data")
}

fn api_key_file(dir: &Path) -> PathBuf {
    dir.join("api-key")
}
