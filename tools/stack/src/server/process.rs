//! Child processes that end with this process.
//!
//! `setpriv --pdeathsig` asks the kernel to signal the child when its parent ends. To the kernel, the parent is the
//! *thread* that spawned the child, and threads of tests and of the async runtime come and go. So one thread, which
//! lives as long as this process, spawns all of them.

use std::env;
use std::ffi::OsString;
use std::fs::{self, File};
use std::io;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{OnceLock, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use tokio::sync::oneshot;

use crate::error::StackError;
use crate::files::Log;
use crate::os_user::OsUser;

/// How often a condition is checked while it is waited for.
pub(crate) const POLL_INTERVAL: Duration = Duration::from_millis(10);
/// How long a server has to end after the stop signal.
pub(crate) const STOP_TIMEOUT: Duration = Duration::from_secs(20);
/// How long a server has to end when it is dropped, which blocks its thread.
const DROP_TIMEOUT: Duration = Duration::from_secs(2);

/// What to run, and how to end it.
pub struct ProcessSpec<'a> {
    /// The name in messages.
    pub(crate) name: &'static str,
    pub(crate) path: PathBuf,
    pub(crate) arguments: Vec<OsString>,
    /// The folder it runs in.
    pub(crate) folder: &'a Path,
    /// The user it runs as, where that is not the one of this process.
    pub(crate) user: Option<OsUser>,
    /// The signal that asks it to stop. The kernel sends it too when this process ends.
    pub(crate) stop_signal: Signal,
    /// The signal that ends it when it is dropped.
    pub(crate) drop_signal: Signal,
}

/// A running child process. Dropping it ends it.
#[derive(Debug)]
pub(crate) struct Process {
    child: Child,
    name: &'static str,
    stop_signal: Signal,
    drop_signal: Signal,
}

impl Process {
    /// Starts the program with its output going to the log.
    pub(crate) async fn start(spec: &ProcessSpec<'_>, log: &mut Log) -> Result<Self, StackError> {
        let failed = |source| StackError::Spawn { program: spec.path.clone(), source };
        let output = log.open()?;
        let command = command(spec, output).map_err(failed)?;
        let (reply, answer) = oneshot::channel();
        let request =
            SpawnRequest { command, name: spec.name, signals: (spec.stop_signal, spec.drop_signal), reply };
        spawner().and_then(|thread| thread.send(request).map_err(io::Error::other)).map_err(failed)?;
        answer.await.map_err(io::Error::other).and_then(|started| started).map_err(failed)
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// How the process ended, once it has.
    pub(crate) fn ended(&mut self) -> Option<String> {
        match self.child.try_wait() {
            Ok(status) => status.map(|status: ExitStatus| status.to_string()),
            Err(error) => Some(error.to_string()),
        }
    }

    /// An error when the process has ended.
    pub(crate) fn ensure_running(&mut self, log: &Log) -> Result<(), StackError> {
        match self.ended() {
            None => Ok(()),
            Some(status) => {
                Err(StackError::Ended { server: self.name, status, log: log.path.clone(), tail: log.tail() })
            }
        }
    }

    /// Waits for a process that ends by itself.
    pub(crate) async fn finish(mut self, within: Duration, log: &Log) -> Result<ExitStatus, StackError> {
        let deadline = Instant::now() + within;
        loop {
            match self.child.try_wait() {
                Ok(Some(status)) => return Ok(status),
                Ok(None) if Instant::now() < deadline => tokio::time::sleep(POLL_INTERVAL).await,
                Ok(None) => return Err(not_ready(self.name, within, log)),
                Err(source) => return Err(StackError::file("wait for", Path::new(self.name), source)),
            }
        }
    }

    /// Asks the process to stop, waits, and kills it after the timeout.
    pub(crate) async fn stop(mut self, log: &Log) -> Result<(), StackError> {
        self.ensure_running(log)?;
        self.signal(self.stop_signal);
        let deadline = Instant::now() + STOP_TIMEOUT;
        while self.ended().is_none() {
            if Instant::now() >= deadline {
                let killed = StackError::Killed {
                    server: self.name,
                    pid: self.pid(),
                    seconds: STOP_TIMEOUT.as_secs(),
                };
                self.kill();
                return Err(killed);
            }
            tokio::time::sleep(POLL_INTERVAL).await;
        }
        Ok(())
    }

    /// Kills the process and its own children at once, as a crash would.
    pub(crate) fn kill(&mut self) {
        let children = children_of(self.pid());
        self.signal(Signal::KILL);
        for child in children {
            // It may have ended with its parent.
            let _ = kill_process(child, Signal::KILL);
        }
        // Fails only where there is no such child any more.
        let _ = self.child.wait();
    }

    /// It cannot reach another process: the kernel does not use the pid again until this one has been waited for.
    fn signal(&self, signal: Signal) {
        if let Some(pid) = pid_of(self.pid()) {
            // Fails only when it has ended already.
            let _ = kill_process(pid, signal);
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if self.ended().is_some() {
            return;
        }
        self.signal(self.drop_signal);
        let deadline = Instant::now() + DROP_TIMEOUT;
        while self.ended().is_none() {
            if Instant::now() >= deadline {
                self.kill();
                return;
            }
            thread::sleep(POLL_INTERVAL);
        }
    }
}

pub(crate) fn not_ready(server: &'static str, within: Duration, log: &Log) -> StackError {
    StackError::NotReady { server, seconds: within.as_secs(), log: log.path.clone(), tail: log.tail() }
}

pub(crate) fn pid_of(number: u32) -> Option<Pid> {
    i32::try_from(number).ok().and_then(Pid::from_raw)
}

fn command(spec: &ProcessSpec<'_>, output: File) -> io::Result<Command> {
    let mut command = match setpriv() {
        Some(setpriv) => {
            let mut command = Command::new(setpriv);
            command.arg("--pdeathsig").arg(name_of(spec.stop_signal)).arg("--").arg(&spec.path);
            command
        }
        None => Command::new(&spec.path),
    };
    command.args(&spec.arguments).current_dir(spec.folder);
    // A process group of its own: Ctrl-C in a terminal reaches this process only, which stops the servers after their
    // clients.
    command.process_group(0).stdin(Stdio::null()).stdout(output.try_clone()?).stderr(output);
    // Messages that are searched for must not be translated, and no PG… variable may change how a private server runs.
    command.env("LC_ALL", "C");
    for (name, _) in env::vars_os().filter(|(name, _)| name.as_encoded_bytes().starts_with(b"PG")) {
        command.env_remove(name);
    }
    if let Some(user) = spec.user {
        // Under root this also gives up the supplementary groups.
        command.gid(user.gid).uid(user.uid);
    }
    Ok(command)
}

/// The name of a stop signal, as `setpriv` expects it.
fn name_of(stop_signal: Signal) -> &'static str {
    if stop_signal == Signal::INT { "INT" } else { "TERM" }
}

/// The `setpriv` program, where there is one that supports `--pdeathsig` (the one of busybox does not).
fn setpriv() -> Option<&'static Path> {
    static FOUND: OnceLock<Option<PathBuf>> = OnceLock::new();
    let found = FOUND.get_or_init(|| {
        let path = env::var_os("PATH")?;
        let candidates = env::split_paths(&path).map(|folder| folder.join("setpriv"));
        let supports = |program: &PathBuf| {
            Command::new(program)
                .args(["--pdeathsig", "KILL", "--", "true"])
                .output()
                .is_ok_and(|ran| ran.status.success())
        };
        candidates.filter(|candidate| candidate.is_file()).find(supports)
    });
    found.as_deref()
}

struct SpawnRequest {
    command: Command,
    name: &'static str,
    signals: (Signal, Signal),
    reply: oneshot::Sender<io::Result<Process>>,
}

/// The channel to the thread that spawns all children.
fn spawner() -> io::Result<&'static mpsc::Sender<SpawnRequest>> {
    static SPAWNER: OnceLock<io::Result<mpsc::Sender<SpawnRequest>>> = OnceLock::new();
    let spawner = SPAWNER.get_or_init(|| {
        let (requests, inbox) = mpsc::channel::<SpawnRequest>();
        thread::Builder::new().name("stack-spawner".to_owned()).spawn(move || {
            for mut request in inbox {
                let (stop_signal, drop_signal) = request.signals;
                let started = request.command.spawn();
                let started =
                    started.map(|child| Process { child, name: request.name, stop_signal, drop_signal });
                // If nobody waits for it any more, the process is dropped here, which ends it.
                let _ = request.reply.send(started);
            }
        })?;
        Ok(requests)
    });
    spawner.as_ref().map_err(|error| io::Error::new(error.kind(), error.to_string()))
}

/// The processes whose parent is the given one.
fn children_of(parent: u32) -> Vec<Pid> {
    let Ok(entries) = fs::read_dir("/proc") else { return Vec::new() };
    let numbers = entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    numbers.filter(|number| parent_of(*number) == Some(parent)).filter_map(pid_of).collect()
}

/// The parent of a process: the second word after its name, which stands in parentheses and may hold any character.
fn parent_of(number: u32) -> Option<u32> {
    let line = fs::read_to_string(format!("/proc/{number}/stat")).ok()?;
    line.rsplit_once(')')?.1.split_whitespace().nth(1)?.parse().ok()
}
