//! The errors of private servers. Each message includes the remedy.

use std::io;
use std::path::{Path, PathBuf};

/// Why a private server did not start, or did not stop well.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StackError {
    /// A server program was not found.
    #[error(
        "{what} is not found. Searched: {}. Run `make setup` in the memfleet folder to fetch it, \
         or set {variable} to {meaning}",
        list(searched)
    )]
    Missing {
        /// The program.
        what: &'static str,
        /// Every place that was tried, in order.
        searched: Vec<PathBuf>,
        /// The environment variable that can name it.
        variable: &'static str,
        /// What that variable holds.
        meaning: &'static str,
    },
    /// The program named in the environment, or found, is too old.
    #[error("{} is version {found}; PostgreSQL 15 or newer is needed. Run `make setup`, or set MEMFLEET_PG_BIN to the programs of a newer one", program.display())]
    TooOld {
        /// The program.
        program: PathBuf,
        /// What it reports as its version.
        found: String,
    },
    /// The data were created by another major version of PostgreSQL.
    #[error(
        "the data in {} were created by PostgreSQL {made_by}, but the programs are version {found}. \
         Set MEMFLEET_PG_BIN to the programs of version {made_by}, or remove the folder to start empty",
        data.display()
    )]
    OtherVersion {
        /// The data folder.
        data: PathBuf,
        /// The major version that created it.
        made_by: u32,
        /// The major version of the programs.
        found: u32,
    },
    /// Another server runs in the folder.
    #[error("{} is in use by pid {pid}. Stop that process, or choose another folder", dir.display())]
    InUse {
        /// The folder.
        dir: PathBuf,
        /// The process that holds the lock; 0 where it has not written its pid yet.
        pid: u32,
    },
    /// A file or folder could not be handled.
    #[error("cannot {action} {}: {source}", path.display())]
    File {
        /// What failed: "create", "read", …
        action: &'static str,
        /// The file or folder.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// A folder in a shared place can be written by another user, and so cannot be trusted.
    #[error("{} exists, but another user owns it or can write to it. Remove it, then try again", path.display())]
    NotOurs {
        /// The folder.
        path: PathBuf,
    },
    /// This process runs as root, PostgreSQL refuses root, and there is no unprivileged user.
    #[error(
        "PostgreSQL refuses to run as root, and neither the user postgres nor nobody exists in /etc/passwd. \
         Add one of them, or run memfleet as a normal user"
    )]
    NoUnprivilegedUser,
    /// The program could not be started.
    #[error("cannot run {}: {source}", program.display())]
    Spawn {
        /// The program.
        program: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// The server ended without being stopped.
    #[error("{server} ended by itself ({status}). Its log, {}, ends with:\n{tail}", log.display())]
    Ended {
        /// The server or program.
        server: &'static str,
        /// Its exit status or signal.
        status: String,
        /// Its log file.
        log: PathBuf,
        /// The last 20 lines of that log.
        tail: String,
    },
    /// The server runs but did not become ready in time.
    #[error("{server} was not ready after {seconds} seconds. Its log, {}, ends with:\n{tail}", log.display())]
    NotReady {
        /// The server or program.
        server: &'static str,
        /// How long it was given.
        seconds: u64,
        /// Its log file.
        log: PathBuf,
        /// The last 20 lines of that log.
        tail: String,
    },
    /// The server did not stop after its stop signal.
    #[error(
        "{server} (pid {pid}) did not stop within {seconds} seconds and was killed. Its data are kept, \
         and it recovers them when it starts again"
    )]
    Killed {
        /// The server.
        server: &'static str,
        /// Its process.
        pid: u32,
        /// How long it was given.
        seconds: u64,
    },
    /// PostgreSQL refused a connection or a statement.
    #[error("PostgreSQL started, but {action} failed: {}", in_full(source))]
    Database {
        /// What failed.
        action: &'static str,
        /// The error of the database.
        source: tokio_postgres::Error,
    },
}

impl StackError {
    pub(crate) fn file(action: &'static str, path: &Path, source: io::Error) -> Self {
        Self::File { action, path: path.to_path_buf(), source }
    }
}

fn list(paths: &[PathBuf]) -> String {
    let shown: Vec<String> = paths.iter().map(|path| path.display().to_string()).collect();
    shown.join(", ")
}

/// The driver's error with the database's own message, which it does not show by itself.
fn in_full(error: &tokio_postgres::Error) -> String {
    match error.as_db_error() {
        Some(cause) => format!("{error}: {cause}"),
        None => error.to_string(),
    }
}
