//! The data folder of PostgreSQL, and the programs that run on it.

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use rustix::process::Signal;

use super::{NAME, USER, relocate};
use crate::error::StackError;
use crate::files::{self, Log};
use crate::os_user::OsUser;
use crate::programs::{OLDEST_POSTGRES, Programs};
use crate::server::lock::FolderLock;
use crate::server::process::{Process, ProcessSpec};

const INITDB_TIMEOUT: Duration = Duration::from_secs(60);
const CHECK_TIMEOUT: Duration = Duration::from_secs(10);

#[derive(Debug)]
pub(super) struct Cluster {
    bin: PathBuf,
    pub(super) user: Option<OsUser>,
    /// The folder that holds `data`, and in which the programs run.
    pub(super) folder: PathBuf,
    /// What PostgreSQL calls its data directory.
    pub(super) data: PathBuf,
    pub(super) password: String,
}

impl Cluster {
    /// Determines where, and as which user, PostgreSQL runs for this folder, and locks the folder.
    pub(super) async fn open(programs: &Programs, dir: &Path) -> Result<(Self, FolderLock), StackError> {
        let preferred = OsUser::unprivileged()?;
        let folder = relocate::data_folder(preferred, dir)?;
        let data = folder.join("data");
        // PostgreSQL runs as the owner of its data only, which may be another user than the preferred one.
        let user = preferred.map(|preferred| OsUser::owner_of(&data).unwrap_or(preferred));
        let lock = FolderLock::acquire(dir, &data, Signal::INT).await?;
        let original = programs.postgres_bin.clone();
        let version = version_of(&original.join("postgres"))?;
        if let Ok(text) = fs::read_to_string(data.join("PG_VERSION"))
            && let Ok(made_by) = text.trim().parse()
            && made_by != version
        {
            return Err(StackError::OtherVersion { data, made_by, found: version });
        }
        // Under root this may copy some 50 MB, once.
        let copy = tokio::task::spawn_blocking(move || relocate::program_folder(user, &original)).await;
        let bin =
            copy.map_err(|source| StackError::file("copy", &programs.postgres_bin, source.into()))??;
        let password = files::password(&dir.join("password"))?;
        Ok((Self { bin, user, folder, data, password }, lock))
    }

    /// One of the programs, to run on this folder.
    pub(super) fn process(
        &self,
        name: &'static str,
        file: &str,
        arguments: Vec<OsString>,
    ) -> ProcessSpec<'_> {
        ProcessSpec {
            name,
            path: self.bin.join(file),
            arguments,
            folder: &self.folder,
            user: self.user,
            stop_signal: Signal::INT,
            // An immediate shutdown: as fast as a kill, but it releases the shared memory.
            drop_signal: Signal::QUIT,
        }
    }

    /// Creates the data folder where it is missing. It is created under another name and renamed last, so that a folder
    /// that exists is complete.
    pub(super) async fn initialize(&self, log: &mut Log) -> Result<(), StackError> {
        if self.data.exists() {
            return Ok(());
        }
        let (work, secret) = (self.folder.join("data.new"), self.folder.join("secret"));
        files::remove_folder(&work)?;
        fs::create_dir(&work).map_err(|source| StackError::file("create the folder", &work, source))?;
        files::write_private(&secret, &self.password)?;
        if let Some(user) = self.user {
            user.own(&work)?;
            user.own(&secret)?;
        }
        let created = self.initdb(&work, &secret, log).await;
        let removed = fs::remove_file(&secret);
        created?;
        removed.map_err(|source| StackError::file("remove", &secret, source))?;
        fs::rename(&work, &self.data).map_err(|source| StackError::file("move to its place", &work, source))
    }

    async fn initdb(&self, work: &Path, secret: &Path, log: &mut Log) -> Result<(), StackError> {
        let mut arguments = vec![OsString::from("-D"), work.into(), "--pwfile".into(), secret.into()];
        arguments.extend(
            ["-U", USER, "--auth=scram-sha-256", "--locale=C", "--encoding=UTF8"].map(OsString::from),
        );
        // Without --no-sync, initdb waits for the disk for seconds, and an empty database is no loss.
        arguments.extend(["--no-instructions", "--no-sync"].map(OsString::from));
        let name = "PostgreSQL's initdb";
        let process = Process::start(&self.process(name, "initdb", arguments), log).await?;
        let status = process.finish(INITDB_TIMEOUT, log).await?;
        if status.success() {
            return Ok(());
        }
        let (log, tail) = (log.path.clone(), log.tail());
        Err(StackError::Ended { server: name, status: status.to_string(), log, tail })
    }

    /// Whether these programs support this value of a setting, which depends on how they were built.
    pub(super) async fn accepts(
        &self,
        setting: &str,
        value: &str,
        log: &mut Log,
    ) -> Result<bool, StackError> {
        let arguments = ["-C", setting, "-c", &format!("{setting}={value}"), "-D"].map(OsString::from);
        let arguments = arguments.into_iter().chain([self.data.clone().into_os_string()]).collect();
        let process = Process::start(&self.process(NAME, "postgres", arguments), log).await?;
        Ok(process.finish(CHECK_TIMEOUT, log).await?.success())
    }
}

/// The major version of the programs.
fn version_of(program: &Path) -> Result<u32, StackError> {
    let ran = Command::new(program).arg("--version").output();
    let ran = ran.map_err(|source| StackError::Spawn { program: program.to_path_buf(), source })?;
    // "postgres (PostgreSQL) 18.6", or "… 15.18 (Debian 15.18-0+deb12u1)".
    let text = String::from_utf8_lossy(&ran.stdout).trim().to_owned();
    let number = text
        .split_whitespace()
        .nth(2)
        .and_then(|version| version.split(|c: char| !c.is_ascii_digit()).next());
    match number.and_then(|major| major.parse().ok()) {
        Some(major) if major >= OLDEST_POSTGRES => Ok(major),
        _ => Err(StackError::TooOld { program: program.to_path_buf(), found: text }),
    }
}
