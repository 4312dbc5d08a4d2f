//! Streaming replicas of a private PostgreSQL.

use std::ffi::OsString;
use std::fs;
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;
use std::time::Duration;

use super::cluster::Cluster;
use super::{Postgres, PostgresOptions, PostgresServer, USER, settings};
use crate::error::StackError;
use crate::files::{self, Log};
use crate::programs::Programs;
use crate::server::process::Process;

/// How long the copy of a primary may take.
const COPY_TIMEOUT: Duration = Duration::from_secs(120);

impl Postgres {
    /// Copies this server into `dir`, which must be empty, and starts the copy as a standby that follows it
    /// asynchronously. It has the same superuser and password, and answers reads. `SELECT pg_promote()` on it makes it a
    /// primary.
    ///
    /// # Errors
    /// The server cannot be copied within two minutes, or the standby does not start.
    pub async fn start_standby(
        &self,
        programs: &Programs,
        dir: &Path,
        options: PostgresOptions,
    ) -> Result<Self, StackError> {
        let dir = files::prepare(dir)?;
        files::write_private(&dir.join("password"), &self.kind.cluster.password)?;
        let (cluster, lock) = Cluster::open(programs, &dir).await?;
        let mut log = Log::begin(dir.join("prepare.log"));
        cluster.copy(&self.kind.replication(self.port()), &mut log).await?;
        let mut settings = settings(&options);
        settings.extend(options.settings);
        let log = Log::begin(dir.join("postgres.log"));
        Self::launch(PostgresServer { cluster, settings }, log, lock).await
    }
}

impl PostgresServer {
    /// The connection string for replication.
    fn replication(&self, port: u16) -> String {
        format!("postgres://{USER}:{}@127.0.0.1:{port}/?application_name=standby", self.cluster.password)
    }
}

impl Cluster {
    /// Copies the primary at `source` into the data folder and makes it a standby.
    async fn copy(&self, source: &str, log: &mut Log) -> Result<(), StackError> {
        let work = self.folder.join("data.new");
        files::remove_folder(&work)?;
        // PostgreSQL refuses a data folder that others can read.
        let created = fs::DirBuilder::new().mode(0o700).create(&work);
        created.map_err(|source| StackError::file("create the folder", &work, source))?;
        if let Some(user) = self.user {
            user.own(&work)?;
        }
        let name = "PostgreSQL's pg_basebackup";
        let mut arguments = vec![OsString::from("-d"), source.into(), "-D".into(), work.clone().into()];
        // -R writes the settings of a standby.
        arguments.extend(["-R", "-X", "stream", "--checkpoint=fast", "--no-sync"].map(OsString::from));
        let process = Process::start(&self.process(name, "pg_basebackup", arguments), log).await?;
        let status = process.finish(COPY_TIMEOUT, log).await?;
        if !status.success() {
            let (log, tail) = (log.path.clone(), log.tail());
            return Err(StackError::Ended { server: name, status: status.to_string(), log, tail });
        }
        fs::rename(&work, &self.data).map_err(|source| StackError::file("move to its place", &work, source))
    }
}
