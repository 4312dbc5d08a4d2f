//! Private servers on this machine: a real `nats-server` with JetStream and a real PostgreSQL, started as child
//! processes on free ports of 127.0.0.1 and stopped again.
//!
//! ```no_run
//! # async fn example() -> Result<(), stack::StackError> {
//! let stack = stack::Stack::temporary(stack::StackOptions::default()).await?;
//! println!("{} {}", stack.nats.url(), stack.postgres.url("memfleet"));
//! stack.stop().await
//! # }
//! ```
//!
//! Overview:
//!
//! - [`Programs::find`] finds the server programs, which `make setup` installs.
//! - All servers share one life cycle, [`Server`]; each kind of server implements its specifics.
//! - Each server owns one folder, with its data, log, password and a lock. One server at a time runs in a folder, and a
//!   later start in the same folder finds the same data.
//! - The servers end with this process, however it ends: by `stop`, by drop, or, where `setpriv` of util-linux is
//!   installed, by the kernel.
//! - PostgreSQL refuses to run as root. Under root it runs as `postgres` or `nobody`, and where that user cannot enter
//!   the folder, its data are kept in `/var/tmp` and removed by `make clean` (`os_user.rs`, `postgres/relocate.rs`).

mod error;
mod files;
mod nats;
mod os_user;
mod postgres;
mod programs;
mod qdrant;
mod server;

use std::path::Path;

use tempfile::TempDir;

pub use error::StackError;
pub use nats::{Nats, NatsOptions};
pub use postgres::{Postgres, PostgresOptions};
pub use programs::{Places, Programs};
pub use qdrant::Qdrant;
pub use server::Server;

/// How the servers of a [`Stack`] run.
#[derive(Debug, Clone, Default)]
pub struct StackOptions {
    /// How the NATS server runs.
    pub nats: NatsOptions,
    /// How PostgreSQL runs.
    pub postgres: PostgresOptions,
    /// Whether a vector store runs.
    pub vectors: bool,
}

/// A running NATS server, a running PostgreSQL, and optionally a vector store. Dropping it kills them; prefer
/// [`Stack::stop`].
#[derive(Debug)]
pub struct Stack {
    /// The NATS server.
    pub nats: Nats,
    /// The PostgreSQL server.
    pub postgres: Postgres,
    /// The vector store, if there is one.
    pub qdrant: Option<Qdrant>,
    /// Last, so that a drop ends the servers before it removes their folder.
    temporary: Option<TempDir>,
}

impl Stack {
    /// Starts the servers at the same time, with their data in `nats`, `postgres` and `qdrant` under `dir`, which is
    /// created where it is missing. Takes about two seconds the first time, at most about two minutes.
    ///
    /// # Errors
    /// The programs are missing, the folder is in use, or a server does not start; the others are stopped then.
    pub async fn start(dir: &Path, options: StackOptions) -> Result<Self, StackError> {
        let programs = Programs::find()?;
        Self::start_with(&programs, dir, options).await
    }

    /// As [`Stack::start`], with these programs.
    ///
    /// # Errors
    /// The folder is in use, or a server does not start; the others are stopped then.
    pub async fn start_with(
        programs: &Programs,
        dir: &Path,
        options: StackOptions,
    ) -> Result<Self, StackError> {
        let (nats_dir, postgres_dir, qdrant_dir) =
            (dir.join("nats"), dir.join("postgres"), dir.join("qdrant"));
        let qdrant = async {
            match options.vectors {
                true => Qdrant::start(programs, &qdrant_dir).await.map(Some),
                false => Ok(None),
            }
        };
        let (nats, postgres, qdrant) = tokio::try_join!(
            Nats::start(programs, &nats_dir, options.nats),
            Postgres::start(programs, &postgres_dir, options.postgres),
            qdrant,
        )?;
        Ok(Self { nats, postgres, qdrant, temporary: None })
    }

    /// As [`Stack::start`], in a new folder that is removed when the stack stops or drops.
    ///
    /// # Errors
    /// As [`Stack::start`], or the folder cannot be created.
    pub async fn temporary(options: StackOptions) -> Result<Self, StackError> {
        let programs = Programs::find()?;
        Self::temporary_with(&programs, options).await
    }

    /// As [`Stack::temporary`], with these programs.
    ///
    /// # Errors
    /// As [`Stack::start_with`], or the folder cannot be created.
    pub async fn temporary_with(programs: &Programs, options: StackOptions) -> Result<Self, StackError> {
        let folder = files::temporary_folder()?;
        let mut stack = Self::start_with(programs, folder.path(), options).await?;
        stack.temporary = Some(folder);
        Ok(stack)
    }

    /// Stops all servers at the same time and waits for their end, at most 20 seconds; then removes a temporary folder.
    ///
    /// # Errors
    /// A server had ended by itself, or had to be killed; no server runs any more then either.
    pub async fn stop(self) -> Result<(), StackError> {
        let Self { nats, postgres, qdrant, temporary } = self;
        let vectors = async {
            match qdrant {
                Some(qdrant) => qdrant.stop().await,
                None => Ok(()),
            }
        };
        let (nats, postgres, vectors) = tokio::join!(nats.stop(), postgres.stop(), vectors);
        if let Some(folder) = temporary {
            let path = folder.path().to_path_buf();
            folder.close().map_err(|source| StackError::file("remove", &path, source))?;
        }
        nats.and(postgres).and(vectors)
    }
}
