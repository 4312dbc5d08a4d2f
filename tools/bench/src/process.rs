//! Processor time and memory of processes, as Linux counts them under /proc.

use std::fs;

use anyhow::Context;
use stack::Stack;

/// Linux counts processor time in hundredths of a second on every platform (`USER_HZ`).
const MS_PER_TICK: f64 = 10.0;

/// The servers whose processor time is looked at.
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

/// The fields of /proc/PID/stat after the program's name, which may itself hold spaces and brackets.
fn stat(process: u32) -> anyhow::Result<Vec<u64>> {
    let text = fs::read_to_string(format!("/proc/{process}/stat"))
        .with_context(|| format!("the process {process} is gone"))?;
    let fields = text.rsplit_once(')').map_or("", |(_, fields)| fields);
    Ok(fields.split_whitespace().skip(1).map(|field| field.parse().unwrap_or(0)).collect())
}

/// Places in [`stat`]'s answer: the parent, then user and system time, then those of ended children.
const PARENT: usize = 0;
const TIMES: std::ops::Range<usize> = 10..12;
const TIMES_WITH_CHILDREN: std::ops::Range<usize> = 10..14;

fn ms(stat: &[u64], places: std::ops::Range<usize>) -> f64 {
    stat.get(places).map_or(0, |ticks| ticks.iter().sum()) as f64 * MS_PER_TICK
}

fn processor_ms(process: u32) -> anyhow::Result<f64> {
    Ok(ms(&stat(process)?, TIMES))
}

/// A process and its children, those that have ended included.
fn family_ms(parent: u32) -> anyhow::Result<f64> {
    let mut total = ms(&stat(parent)?, TIMES_WITH_CHILDREN);
    for entry in fs::read_dir("/proc").context("/proc cannot be read")? {
        let name = entry?.file_name();
        let Some(child) = name.to_str().and_then(|name| name.parse().ok()) else { continue };
        // A child may end while we look.
        if let Ok(stat) = stat(child)
            && stat.get(PARENT).is_some_and(|&of| of == u64::from(parent))
        {
            total += ms(&stat, TIMES);
        }
    }
    Ok(total)
}

/// The most memory a process has held, in MiB.
pub(super) fn peak_rss_mib(process: u32) -> anyhow::Result<f64> {
    memory_mib(process, "VmHWM:")
}

/// The memory a process holds now, in MiB, pages of files that it has mapped included.
pub(super) fn resident_mib(process: u32) -> anyhow::Result<f64> {
    memory_mib(process, "VmRSS:")
}

fn memory_mib(process: u32, field: &str) -> anyhow::Result<f64> {
    let text = fs::read_to_string(format!("/proc/{process}/status"))
        .with_context(|| format!("the process {process} is gone"))?;
    let kib: f64 = text
        .lines()
        .find_map(|line| line.strip_prefix(field))
        .and_then(|rest| rest.trim().strip_suffix("kB"))
        .and_then(|number| number.trim().parse().ok())
        .context("/proc says nothing about memory")?;
    Ok(kib / 1024.0)
}
