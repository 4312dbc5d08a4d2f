//! A lock on the folder of a server, so that one server at a time runs in it. The kernel releases it when its holder
//! ends.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{Read, Seek, Write};
use std::path::{Path, PathBuf};
use std::time::Instant;

use rustix::process::{Signal, kill_process};

use super::process::{POLL_INTERVAL, STOP_TIMEOUT, pid_of};
use crate::error::StackError;

/// The right to run a server in a folder, until it is dropped.
#[derive(Debug)]
pub(crate) struct FolderLock {
    /// The file that holds the pid of the server.
    server: PathBuf,
    /// The lock lasts for as long as this file is open.
    _lock: File,
}

impl FolderLock {
    /// Locks the folder, and stops an orphan: a server that still runs in it although the process that started it has
    /// ended. It is recognized by `marker`, a path among the arguments of the folder's server, and gets `stop_signal`.
    ///
    /// # Errors
    /// [`StackError::InUse`] where another process, or this one, runs a server in the folder.
    pub(crate) async fn acquire(dir: &Path, marker: &Path, stop_signal: Signal) -> Result<Self, StackError> {
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
        let folder = Self { server: dir.join("server.pid"), _lock: lock };
        folder.stop_orphan(dir, marker, stop_signal).await?;
        Ok(folder)
    }

    /// Records the process that is the folder's server now.
    pub(crate) fn record_server(&self, pid: u32) -> Result<(), StackError> {
        fs::write(&self.server, format!("{pid}\n"))
            .map_err(|source| StackError::file("write", &self.server, source))
    }

    /// Stops a server that still runs in the folder. The lock is held, so the process that started this server has
    /// ended: the server is about to end too or, where the kernel does not signal it, has been orphaned.
    async fn stop_orphan(&self, dir: &Path, marker: &Path, stop_signal: Signal) -> Result<(), StackError> {
        let Some(number) = fs::read_to_string(&self.server).ok().and_then(|text| text.trim().parse().ok())
        else {
            return Ok(());
        };
        let Some(pid) = pid_of(number).filter(|_| is_server(number, marker)) else { return Ok(()) };
        tracing::warn!(dir = %dir.display(), pid = number, "stopping an orphaned server");
        // The process may have ended, or belong to another user; the wait below detects both.
        let _ = kill_process(pid, stop_signal);
        let deadline = Instant::now() + STOP_TIMEOUT;
        while is_server(number, marker) {
            if Instant::now() >= deadline {
                return Err(StackError::InUse { dir: dir.to_path_buf(), pid: number });
            }
            tokio::time::sleep(POLL_INTERVAL).await;
        }
        Ok(())
    }
}

/// Whether the process runs and has the marker among its arguments. A process that has ended has no arguments.
fn is_server(pid: u32, marker: &Path) -> bool {
    let marker = marker.as_os_str().as_encoded_bytes();
    let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    line.split(|byte| *byte == 0).any(|word| word == marker)
}
