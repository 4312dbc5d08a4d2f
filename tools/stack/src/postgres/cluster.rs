//! The data folder of PostgreSQL, and the programs that work on it.

use std::ffi::OsString;
use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use rustix::process::Signal;

use super::{NAME, USER};
use crate::account::Account;
use crate::claim::Claim;
use crate::error::StackError;
use crate::files::{self, Log};
use crate::outside;
use crate::process::{Process, Program};
use crate::programs::{OLDEST_POSTGRES, Programs};

const FILL_WITHIN: Duration = Duration::from_secs(60);
const CHECK_WITHIN: Duration = Duration::from_secs(10);

#[derive(Debug)]
pub(super) struct Cluster {
    bin: PathBuf,
    account: Option<Account>,
    /// The folder that holds `data`, and in which the programs run.
    folder: PathBuf,
    /// What PostgreSQL calls its data directory.
    pub(super) data: PathBuf,
    pub(super) password: String,
}

impl Cluster {
    /// Finds out where and as whom PostgreSQL runs for this folder, and claims it.
    pub(super) async fn open(programs: &Programs, dir: &Path) -> Result<(Self, Claim), StackError> {
        let usual = Account::to_drop_to()?;
        let folder = outside::for_data(usual, dir)?;
        let data = folder.join("data");
        // PostgreSQL runs as the owner of its data only, and that user may not be the one chosen today.
        let account = usual.map(|usual| Account::owner_of(&data).unwrap_or(usual));
        let claim = Claim::take(dir, &data, Signal::INT).await?;
        let original = programs.postgres_bin.clone();
        let version = version_of(&original.join("postgres"))?;
        if let Ok(text) = fs::read_to_string(data.join("PG_VERSION"))
            && let Ok(made_by) = text.trim().parse()
            && made_by != version
        {
            return Err(StackError::OtherVersion { data, made_by, found: version });
        }
        // Under root this may copy some 50 MB, once.
        let copy = tokio::task::spawn_blocking(move || outside::for_programs(account, &original)).await;
        let bin =
            copy.map_err(|source| StackError::file("copy", &programs.postgres_bin, source.into()))??;
        let password = files::password(&dir.join("password"))?;
        Ok((Self { bin, account, folder, data, password }, claim))
    }

    /// One of the programs, to run on this folder.
    pub(super) fn program(&self, name: &'static str, file: &str, arguments: Vec<OsString>) -> Program<'_> {
        Program {
            name,
            path: self.bin.join(file),
            arguments,
            folder: &self.folder,
            account: self.account,
            stop_by: Signal::INT,
            // What PostgreSQL calls an immediate shutdown: as fast as a kill, but it leaves no shared memory behind.
            drop_by: Signal::QUIT,
        }
    }

    /// Makes the data where there are none. It works beside the final place and moves there last, so that data that
    /// are there are whole.
    pub(super) async fn fill(&self, log: &mut Log) -> Result<(), StackError> {
        if self.data.exists() {
            return Ok(());
        }
        let (work, secret) = (self.folder.join("data.new"), self.folder.join("secret"));
        match fs::remove_dir_all(&work) {
            Err(error) if error.kind() != ErrorKind::NotFound => {
                return Err(StackError::file("remove", &work, error));
            }
            _ => {}
        }
        fs::create_dir(&work).map_err(|source| StackError::file("create the folder", &work, source))?;
        files::write_private(&secret, &self.password)?;
        if let Some(account) = self.account {
            account.give(&work)?;
            account.give(&secret)?;
        }
        let made = self.make(&work, &secret, log).await;
        let removed = fs::remove_file(&secret);
        made?;
        removed.map_err(|source| StackError::file("remove", &secret, source))?;
        fs::rename(&work, &self.data).map_err(|source| StackError::file("move to its place", &work, source))
    }

    async fn make(&self, work: &Path, secret: &Path, log: &mut Log) -> Result<(), StackError> {
        let mut arguments = vec![OsString::from("-D"), work.into(), "--pwfile".into(), secret.into()];
        arguments.extend(
            ["-U", USER, "--auth=scram-sha-256", "--locale=C", "--encoding=UTF8"].map(OsString::from),
        );
        // Without --no-sync, initdb waits for the disk for seconds; a power cut in the first seconds of a new, empty
        // database costs nothing.
        arguments.extend(["--no-instructions", "--no-sync"].map(OsString::from));
        let name = "PostgreSQL's initdb";
        let process = Process::start(&self.program(name, "initdb", arguments), log).await?;
        let status = process.finish(FILL_WITHIN, log).await?;
        if status.success() {
            return Ok(());
        }
        let (log, tail) = (log.path.clone(), log.tail());
        Err(StackError::Ended { server: name, status: status.to_string(), log, tail })
    }

    /// Whether these programs, which can be built with or without much, know the value of a setting.
    pub(super) async fn accepts(
        &self,
        setting: &str,
        value: &str,
        log: &mut Log,
    ) -> Result<bool, StackError> {
        let arguments = ["-C", setting, "-c", &format!("{setting}={value}"), "-D"].map(OsString::from);
        let arguments = arguments.into_iter().chain([self.data.clone().into_os_string()]).collect();
        let process = Process::start(&self.program(NAME, "postgres", arguments), log).await?;
        Ok(process.finish(CHECK_WITHIN, log).await?.success())
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
