//! The program `memfleet`, as tests run it.

use std::process::{Output, Stdio};
use std::time::Duration;

use testkit::{DEADLINE, Fixture, logs};
use tokio::io::AsyncWriteExt as _;
use tokio::process::{Child, Command};
use tokio::time::timeout;

/// Its path.
pub const PROGRAM: &str = env!("CARGO_BIN_EXE_memfleet");

/// The program without any configuration and without input. It is killed when it is dropped.
pub fn bare(arguments: &[&str]) -> Command {
    let mut command = Command::new(PROGRAM);
    command.args(arguments).env_remove("MEMFLEET_CONFIG").stdin(Stdio::null()).kill_on_drop(true);
    command
}

/// The same with the fixture's servers in its environment.
pub fn memfleet(fixture: &Fixture, arguments: &[&str]) -> Command {
    let mut command = bare(arguments);
    command.envs(fixture.environment());
    command
}

/// Runs a command to its end, within [`DEADLINE`].
pub async fn output(command: Command) -> Output {
    output_within(DEADLINE, command).await
}

/// Runs a command to its end, within a time. What it writes to standard error is kept with the logs.
pub async fn output_within(limit: Duration, mut command: Command) -> Output {
    let ended = timeout(limit, command.output()).await;
    let output = ended.expect("it ends in time").expect("the program");
    logs::keep("memfleet", &output.stderr);
    output
}

/// Runs a command to its end with this on its standard input.
pub async fn output_with_input(mut command: Command, input: &str) -> Output {
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().expect("the program");
    let mut stdin = child.stdin.take().expect("its input");
    let all = async {
        // A program that reads nothing may have ended already and closed its pipe.
        let _ = stdin.write_all(input.as_bytes()).await;
        drop(stdin);
        child.wait_with_output().await.expect("its output")
    };
    let output = timeout(DEADLINE, all).await.expect("it ends in time");
    logs::keep("memfleet", &output.stderr);
    output
}

/// What a run of the program left.
#[derive(Debug)]
pub struct Ended {
    /// Its exit status; none if a signal ended it.
    pub code: Option<i32>,
    /// Its standard output.
    pub out: String,
    /// Its standard error.
    pub err: String,
}

impl Ended {
    /// Whether its exit status is zero.
    pub fn is_success(&self) -> bool {
        self.code == Some(0)
    }

    /// Both outputs, the errors last.
    pub fn all(&self) -> String {
        format!("{}{}", self.out, self.err)
    }
}

impl From<Output> for Ended {
    fn from(output: Output) -> Self {
        Self { code: output.status.code(), out: text(&output.stdout), err: text(&output.stderr) }
    }
}

/// The text that these bytes are.
pub fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).expect("text")
}

/// Starts a worker as a process of its own that kills itself at a crash point, if one is named: `Committed:3`.
pub fn start_worker(
    fixture: &Fixture,
    worker: &str,
    crash_at: Option<&str>,
    options: &[(&str, &str)],
) -> Child {
    let mut command = memfleet(fixture, &["run", worker]);
    command.env("MEMFLEET_LOG__FILTER", "info").envs(options.iter().copied());
    command.envs(crash_at.map(|point| ("MEMFLEET_CRASH_AT", point)));
    command.stdout(Stdio::null()).stderr(logs::stderr_for("worker")).spawn().expect("a worker process")
}

/// Sends a signal, such as `INT`, to a process.
pub fn signal(name: &str, pid: u32) {
    let sent = std::process::Command::new("kill").args([&format!("-{name}"), &pid.to_string()]).status();
    assert!(sent.expect("the program kill").success(), "SIG{name} to {pid}");
}
