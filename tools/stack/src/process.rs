//! Child processes that end when we end.
//!
//! `setpriv --pdeathsig` asks the kernel to signal the child when its parent dies. The kernel means the *thread* that
//! made the child, and threads of tests and of the async runtime come and go. So one thread, which lives as long as
//! this process, makes all of them.

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

use crate::account::Account;
use crate::error::StackError;
use crate::files::Log;

/// How often a condition is looked at while it is waited for.
pub(crate) const LOOK_EVERY: Duration = Duration::from_millis(10);
/// How long a server has to end after a polite request.
pub(crate) const STOP_WITHIN: Duration = Duration::from_secs(20);
/// How long a server has to end when it is dropped, which blocks its thread.
const DROP_WITHIN: Duration = Duration::from_secs(2);

/// What to run.
pub(crate) struct Program<'a> {
    /// What people call it.
    pub(crate) name: &'static str,
    pub(crate) path: PathBuf,
    pub(crate) arguments: Vec<OsString>,
    /// The folder it runs in.
    pub(crate) folder: &'a Path,
    /// Whom it runs as, where not as us.
    pub(crate) account: Option<Account>,
    /// The signal that asks it to stop; it also gets it when we die.
    pub(crate) stop_by: Signal,
    /// The signal that ends it when it is dropped.
    pub(crate) drop_by: Signal,
}

/// A running child process. Dropping it ends it.
#[derive(Debug)]
pub(crate) struct Process {
    child: Child,
    name: &'static str,
    stop_by: Signal,
    drop_by: Signal,
}

impl Process {
    /// Starts the program with its output going to the log.
    pub(crate) async fn start(program: &Program<'_>, log: &mut Log) -> Result<Self, StackError> {
        let failed = |source| StackError::Spawn { program: program.path.clone(), source };
        let output = log.open()?;
        let command = command(program, output).map_err(failed)?;
        let (reply, answer) = oneshot::channel();
        let order = Order { command, name: program.name, signals: (program.stop_by, program.drop_by), reply };
        spawner().and_then(|thread| thread.send(order).map_err(io::Error::other)).map_err(failed)?;
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
    pub(crate) fn still_runs(&mut self, log: &Log) -> Result<(), StackError> {
        match self.ended() {
            None => Ok(()),
            Some(status) => {
                Err(StackError::Ended { server: self.name, status, log: log.path.clone(), tail: log.tail() })
            }
        }
    }

    /// Waits for the end of a process that ends by itself.
    pub(crate) async fn finish(mut self, within: Duration, log: &Log) -> Result<ExitStatus, StackError> {
        let deadline = Instant::now() + within;
        loop {
            match self.child.try_wait() {
                Ok(Some(status)) => return Ok(status),
                Ok(None) if Instant::now() < deadline => tokio::time::sleep(LOOK_EVERY).await,
                Ok(None) => return Err(not_ready(self.name, within, log)),
                Err(source) => return Err(StackError::file("wait for", Path::new(self.name), source)),
            }
        }
    }

    /// Asks the process to stop, waits, and kills it when it takes too long.
    pub(crate) async fn stop(mut self, log: &Log) -> Result<(), StackError> {
        self.still_runs(log)?;
        self.signal(self.stop_by);
        let deadline = Instant::now() + STOP_WITHIN;
        while self.ended().is_none() {
            if Instant::now() >= deadline {
                let killed =
                    StackError::Killed { server: self.name, pid: self.pid(), seconds: STOP_WITHIN.as_secs() };
                self.kill();
                return Err(killed);
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
        Ok(())
    }

    /// Ends the process and its own children at once, with no chance to tidy up, as a crash would.
    pub(crate) fn kill(&mut self) {
        let children = children_of(self.pid());
        self.signal(Signal::KILL);
        for child in children {
            // It may have ended with its parent.
            let _ = kill_process(child, Signal::KILL);
        }
        // Only fails where there is no such child, which is then over anyway.
        let _ = self.child.wait();
    }

    /// Safe against hitting another process: until we have waited for it, the kernel keeps its pid.
    fn signal(&self, signal: Signal) {
        if let Some(pid) = pid_of(self.pid()) {
            // Fails only when it has ended already, which is what was wanted.
            let _ = kill_process(pid, signal);
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if self.ended().is_some() {
            return;
        }
        self.signal(self.drop_by);
        let deadline = Instant::now() + DROP_WITHIN;
        while self.ended().is_none() {
            if Instant::now() >= deadline {
                self.kill();
                return;
            }
            thread::sleep(LOOK_EVERY);
        }
    }
}

pub(crate) fn not_ready(server: &'static str, within: Duration, log: &Log) -> StackError {
    StackError::NotReady { server, seconds: within.as_secs(), log: log.path.clone(), tail: log.tail() }
}

pub(crate) fn pid_of(number: u32) -> Option<Pid> {
    i32::try_from(number).ok().and_then(Pid::from_raw)
}

fn command(program: &Program<'_>, output: File) -> io::Result<Command> {
    let mut command = match setpriv() {
        Some(setpriv) => {
            let mut command = Command::new(setpriv);
            command.arg("--pdeathsig").arg(name_of(program.stop_by)).arg("--").arg(&program.path);
            command
        }
        None => Command::new(&program.path),
    };
    command.args(&program.arguments).current_dir(program.folder);
    // A group of its own: Ctrl-C in a terminal is for us, and we stop the servers after their clients.
    command.process_group(0).stdin(Stdio::null()).stdout(output.try_clone()?).stderr(output);
    // Messages that we look for must not be translated, and a PG… variable could turn a private server into
    // something else.
    command.env("LC_ALL", "C");
    for (name, _) in env::vars_os().filter(|(name, _)| name.as_encoded_bytes().starts_with(b"PG")) {
        command.env_remove(name);
    }
    if let Some(account) = program.account {
        // Under root this also gives up the supplementary groups.
        command.gid(account.gid).uid(account.uid);
    }
    Ok(command)
}

/// What `setpriv` calls the two signals that ask our servers to stop.
fn name_of(stop_by: Signal) -> &'static str {
    if stop_by == Signal::INT { "INT" } else { "TERM" }
}

/// The `setpriv` program, where there is one that knows `--pdeathsig` (the one of busybox does not).
fn setpriv() -> Option<&'static Path> {
    static FOUND: OnceLock<Option<PathBuf>> = OnceLock::new();
    let found = FOUND.get_or_init(|| {
        let path = env::var_os("PATH")?;
        let candidates = env::split_paths(&path).map(|folder| folder.join("setpriv"));
        let knows = |program: &PathBuf| {
            Command::new(program)
                .args(["--pdeathsig", "KILL", "--", "true"])
                .output()
                .is_ok_and(|ran| ran.status.success())
        };
        candidates.filter(|candidate| candidate.is_file()).find(knows)
    });
    found.as_deref()
}

struct Order {
    command: Command,
    name: &'static str,
    signals: (Signal, Signal),
    reply: oneshot::Sender<io::Result<Process>>,
}

/// The way to the thread that makes all children.
fn spawner() -> io::Result<&'static mpsc::Sender<Order>> {
    static SPAWNER: OnceLock<io::Result<mpsc::Sender<Order>>> = OnceLock::new();
    let spawner = SPAWNER.get_or_init(|| {
        let (orders, inbox) = mpsc::channel::<Order>();
        thread::Builder::new().name("stack-spawner".to_owned()).spawn(move || {
            for mut order in inbox {
                let (stop_by, drop_by) = order.signals;
                let started = order.command.spawn();
                let started = started.map(|child| Process { child, name: order.name, stop_by, drop_by });
                // Nobody waits for it any more: the unsent process drops here, and so ends.
                let _ = order.reply.send(started);
            }
        })?;
        Ok(orders)
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
