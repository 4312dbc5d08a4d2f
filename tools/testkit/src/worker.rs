use std::process::Stdio;

use tokio::process::{Child, Command};

use crate::fixture::Fixture;
use crate::logs;

/// Starts a worker as a process of its own, which may be killed or told to kill itself (`MEMFLEET_CRASH_AT`). It is killed when it
/// is dropped. `program` is the test's own, `env!("CARGO_BIN_EXE_memfleet")`.
///
/// # Panics
/// If it does not start.
#[allow(clippy::expect_used)]
pub fn start_worker(program: &str, fixture: &Fixture, worker: &str, options: &[(&str, &str)]) -> Child {
    let mut command = Command::new(program);
    command.args(["run", worker]).envs(fixture.environment()).env("MEMFLEET_LOG__FILTER", "info");
    command.envs(options.iter().copied()).stdout(Stdio::null()).stderr(logs::of_a_program("worker"));
    command.kill_on_drop(true).spawn().expect("a worker process")
}
