//! One folder, one server: a lock file that the kernel releases when its holder ends, however it ends.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{Read, Seek, Write};
use std::path::{Path, PathBuf};
use std::time::Instant;

use rustix::process::{Signal, kill_process};

use crate::error::StackError;
use crate::process::{LOOK_EVERY, STOP_WITHIN, pid_of};

/// The right to run a server in a folder, given back by a drop.
#[derive(Debug)]
pub(crate) struct Claim {
    server: PathBuf,
    /// Open for as long as the claim lasts, because the lock goes with it.
    _lock: File,
}

impl Claim {
    /// Claims the folder. `marker` is a path that the command line of the folder's server holds: a server that still
    /// runs here though the process that started it is gone is recognised by it, and stopped with `stop_by`.
    ///
    /// # Errors
    /// [`StackError::InUse`] where another process, or this one, runs a server in the folder.
    pub(crate) async fn take(dir: &Path, marker: &Path, stop_by: Signal) -> Result<Self, StackError> {
        let path = dir.join("lock");
        let open = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(&path);
        let mut lock = open.map_err(|source| StackError::file("open", &path, source))?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                let mut holder = String::new();
                let _ = lock.read_to_string(&mut holder);
                return Err(StackError::InUse {
                    dir: dir.to_path_buf(),
                    pid: holder.trim().parse().unwrap_or(0),
                });
            }
            Err(TryLockError::Error(source)) => return Err(StackError::file("lock", &path, source)),
        }
        let write = |lock: &mut File| {
            lock.set_len(0)?;
            lock.rewind()?;
            writeln!(lock, "{}", std::process::id())
        };
        write(&mut lock).map_err(|source| StackError::file("write", &path, source))?;
        let claim = Self { server: dir.join("server.pid"), _lock: lock };
        claim.end_orphan(dir, marker, stop_by).await?;
        Ok(claim)
    }

    /// Notes which process serves the folder now.
    pub(crate) fn note(&self, pid: u32) -> Result<(), StackError> {
        fs::write(&self.server, format!("{pid}\n"))
            .map_err(|source| StackError::file("write", &self.server, source))
    }

    /// We hold the lock, so whoever started a server that still runs here is gone, and it is about to end or, where
    /// nothing tells it that its parent died, runs for nobody.
    async fn end_orphan(&self, dir: &Path, marker: &Path, stop_by: Signal) -> Result<(), StackError> {
        let Some(number) = fs::read_to_string(&self.server).ok().and_then(|text| text.trim().parse().ok())
        else {
            return Ok(());
        };
        let Some(pid) = pid_of(number).filter(|_| serves(number, marker)) else { return Ok(()) };
        tracing::warn!(dir = %dir.display(), pid = number, "stopping a server that its owner left behind");
        // It may have ended since, or belong to another user; then the wait below says so.
        let _ = kill_process(pid, stop_by);
        let deadline = Instant::now() + STOP_WITHIN;
        while serves(number, marker) {
            if Instant::now() >= deadline {
                return Err(StackError::InUse { dir: dir.to_path_buf(), pid: number });
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
        Ok(())
    }
}

/// Whether the process runs, and its command line names the marker. A process that has ended has an empty one.
fn serves(pid: u32, marker: &Path) -> bool {
    let marker = marker.as_os_str().as_encoded_bytes();
    let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    line.split(|byte| *byte == 0).any(|word| word == marker)
}
