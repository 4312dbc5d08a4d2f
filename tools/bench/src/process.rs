//! Processes of workers; processor time and memory of processes, as Linux counts them under /proc.

use std::fs;
use std::process::Stdio;

use anyhow::Context;
use config::{ENVIRONMENT_PREFIX, Settings};
use stack::Stack;
use tokio::process::{Child, Command};

/// Starts a process of this program that runs these workers. It is killed when it is dropped.
pub(super) fn start_workers(settings: &Settings, workers: &[&str]) -> anyhow::Result<Child> {
    let program = std::env::current_exe().context("cannot determine the path of this program")?;
    let mut command = Command::new(program);
    command.arg("run").args(workers).stdout(Stdio::null()).kill_on_drop(true);
    // Passes the options of this process, whether from a file or the environment.
    let inherited = std::env::vars_os().filter_map(|(name, _)| name.into_string().ok());
    for name in inherited.filter(|name| name.starts_with(ENVIRONMENT_PREFIX)) {
        command.env_remove(name);
    }
    command.envs(settings.to_environment().context("cannot pass on the configuration")?);
    command.spawn().context("cannot start the worker process")
}

/// Linux counts processor time in hundredths of a second on every platform (`USER_HZ`).
const MS_PER_TICK: f64 = 10.0;

/// Reads the processor time of the servers and a client process.
pub(super) struct Meter {
    nats: Option<u32>,
    postgres: Option<u32>,
}

/// Milliseconds of processor time so far.
#[derive(Clone, Copy, Debug)]
pub(super) struct Reading {
    pub(super) client: f64,
    pub(super) nats: Option<f64>,
    pub(super) postgres: Option<f64>,
}

impl Meter {
    pub(super) fn new(stack: Option<&Stack>) -> Self {
        Self { nats: stack.map(|stack| stack.nats.pid()), postgres: stack.map(|stack| stack.postgres.pid()) }
    }

    pub(super) fn read(&self, client: u32) -> anyhow::Result<Reading> {
        Ok(Reading {
            client: processor_ms(client)?,
            nats: self.nats.map(processor_ms).transpose()?,
            postgres: self.postgres.map(family_ms).transpose()?,
        })
    }
}

/// The fields of /proc/PID/stat after the process name, which may itself contain spaces and parentheses.
fn stat(process: u32) -> anyhow::Result<Vec<u64>> {
    let text = fs::read_to_string(format!("/proc/{process}/stat"))
        .with_context(|| format!("process {process} has ended"))?;
    let fields = text.rsplit_once(')').map_or("", |(_, fields)| fields);
    Ok(fields.split_whitespace().skip(1).map(|field| field.parse().unwrap_or(0)).collect())
}

/// Indexes into the result of [`stat`]: the parent, then user and system time, then those of ended children.
const PARENT: usize = 0;
const TIMES: std::ops::Range<usize> = 10..12;
const TIMES_WITH_CHILDREN: std::ops::Range<usize> = 10..14;

fn ms(stat: &[u64], fields: std::ops::Range<usize>) -> f64 {
    stat.get(fields).map_or(0, |ticks| ticks.iter().sum()) as f64 * MS_PER_TICK
}

fn processor_ms(process: u32) -> anyhow::Result<f64> {
    Ok(ms(&stat(process)?, TIMES))
}

/// The processor time of a process and its children, including ended ones.
fn family_ms(parent: u32) -> anyhow::Result<f64> {
    let mut total = ms(&stat(parent)?, TIMES_WITH_CHILDREN);
    for entry in fs::read_dir("/proc").context("cannot read /proc")? {
        let name = entry?.file_name();
        let Some(child) = name.to_str().and_then(|name| name.parse().ok()) else { continue };
        // A child may end during the iteration.
        if let Ok(stat) = stat(child)
            && stat.get(PARENT).is_some_and(|&of| of == u64::from(parent))
        {
            total += ms(&stat, TIMES);
        }
    }
    Ok(total)
}

/// The peak resident memory of a process, in MiB.
pub(super) fn peak_rss_mib(process: u32) -> anyhow::Result<f64> {
    memory_mib(process, "VmHWM:")
}

/// The current resident memory of a process, in MiB, including pages of mapped files.
pub(super) fn resident_mib(process: u32) -> anyhow::Result<f64> {
    memory_mib(process, "VmRSS:")
}

fn memory_mib(process: u32, field: &str) -> anyhow::Result<f64> {
    let text = fs::read_to_string(format!("/proc/{process}/status"))
        .with_context(|| format!("process {process} has ended"))?;
    let kib: f64 = text
        .lines()
        .find_map(|line| line.strip_prefix(field))
        .and_then(|rest| rest.trim().strip_suffix("kB"))
        .and_then(|number| number.trim().parse().ok())
        .with_context(|| format!("/proc/{process}/status has no {field}"))?;
    Ok(kib / 1024.0)
}
