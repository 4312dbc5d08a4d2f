//! `memfleet bench context`: contexts through context-writer, compared with the same statements on the database alone.

use anyhow::Context;
use clap::Args;
use cli::output::step;
use cli::signal::interrupted;
use cli::{errln, outln};
use config::Settings;
use context_writer::ContextWriter;
use playground::Local;
use serde::Serialize;
use stack::StackOptions;

use super::ceiling;
use super::corpus::Corpus;
use super::pipeline::{Pipeline, Run, add_payload_key};
use super::process::Meter;
use super::{median, rounded};

#[derive(Debug, Args)]
pub(super) struct ContextArgs {
    /// Messages in each run.
    #[arg(long, default_value_t = 20_000, value_name = "COUNT", value_parser = clap::value_parser!(u32).range(500..=1_000_000))]
    messages: u32,

    /// Runs of each kind.
    #[arg(long, default_value_t = 3, value_name = "COUNT", value_parser = clap::value_parser!(u32).range(1..=20))]
    runs: u32,

    /// Messages per second while the delay from publish to commit is measured.
    #[arg(long, default_value_t = 500, value_name = "COUNT", value_parser = clap::value_parser!(u32).range(10..=10_000))]
    rate: u32,

    /// Measure on the configured servers. They must be migrated and have their streams, and no other worker should run.
    /// Leaves test users from id 2000000001 on; does not measure the servers' processor time.
    #[arg(long)]
    running: bool,

    /// Print one JSON object, on the last line of standard output.
    #[arg(long)]
    json: bool,
}

/// The results.
#[derive(Debug, Serialize)]
struct Report {
    /// Through the worker, from its first pull until everything is settled.
    messages_per_second: f64,
    /// The same statements from prebuilt batches.
    ceiling_rows_per_second: f64,
    /// `messages_per_second` divided by `ceiling_rows_per_second`.
    ratio: f64,
    /// Processor time per thousand messages.
    cpu_ms_per_1k: CpuPer1k,
    /// Time from being stored by the broker to commit, at `rate` messages per second.
    publish_to_commit_ms: Delay,
    /// The peak memory of the worker process.
    peak_rss_mib: f64,
    #[serde(skip)]
    rate: u32,
}

#[derive(Debug, Serialize)]
struct CpuPer1k {
    /// The worker process.
    client: f64,
    /// `None` for servers that this process did not start.
    nats: Option<f64>,
    /// All processes of PostgreSQL.
    postgres: Option<f64>,
}

#[derive(Debug, Serialize)]
struct Delay {
    p50: f64,
    p99: f64,
}

/// Runs `memfleet bench context`.
pub(super) async fn execute(args: ContextArgs, settings: &Settings) -> anyhow::Result<()> {
    let local = if args.running {
        Local::running(settings)
    } else {
        step("starting private NATS and PostgreSQL", Local::temporary(settings, StackOptions::default()))
            .await?
    };
    if local.stack().is_some() {
        add_payload_key(&local.settings)?;
    }
    let pipeline = Pipeline::open::<ContextWriter>(&local.settings).await;
    let measured = match &pipeline {
        Ok(pipeline) => measure_unless_interrupted(&args, &local, pipeline).await,
        Err(error) => Err(anyhow::anyhow!("{error:#}")),
    };
    // Otherwise its connection would log the stop of the server.
    drop(pipeline);
    let stopped = local.stop().await;
    let report = measured?;
    stopped?;
    show(&report, args.json)
}

async fn measure_unless_interrupted(
    args: &ContextArgs,
    local: &Local,
    pipeline: &Pipeline,
) -> anyhow::Result<Report> {
    let measured = tokio::select! {
        measured = measure(args, local, pipeline) => measured,
        interrupted = interrupted() => interrupted.and_then(|()| anyhow::bail!("interrupted")),
    };
    // The consumer may still be paused, and workers of these servers depend on it.
    let resumed = if args.running { pipeline.resume().await } else { Ok(()) };
    measured.and_then(|report| resumed.map(|()| report))
}

async fn measure(args: &ContextArgs, local: &Local, pipeline: &Pipeline) -> anyhow::Result<Report> {
    let mut corpus = Corpus::new();
    pipeline.prepare(&corpus).await?;
    // First, because checkpoints and vacuuming after the runs would increase the delay.
    errln!("measuring the delay from publish to commit at {} messages/s", args.rate);
    let delay = pipeline.delay(&mut corpus, args.rate).await?;
    let meter = Meter::new(local.stack());
    let (mut ceilings, mut runs): (Vec<f64>, Vec<Run>) = (Vec::new(), Vec::new());
    for run in 1..=args.runs {
        errln!("run {run} of {}: the statements alone, then the worker", args.runs);
        let messages = corpus.messages(args.messages as usize);
        ceilings.push(ceiling::measure(&ContextWriter, &local.settings, messages).await?);
        let messages = corpus.messages(args.messages as usize);
        runs.push(pipeline.measure(&messages, &meter).await?);
    }

    let messages_per_second = median(runs.iter().map(|run| run.messages_per_second))?;
    let ceiling_rows_per_second = median(ceilings)?;
    let optional = |of: fn(&Run) -> Option<f64>| {
        let known: Vec<f64> = runs.iter().filter_map(of).collect();
        if known.is_empty() { Ok(None) } else { median(known).map(Some) }
    };
    Ok(Report {
        messages_per_second: rounded(messages_per_second),
        ceiling_rows_per_second: rounded(ceiling_rows_per_second),
        ratio: rounded(messages_per_second / ceiling_rows_per_second),
        cpu_ms_per_1k: CpuPer1k {
            client: rounded(median(runs.iter().map(|run| run.client_ms_per_1k))?),
            nats: optional(|run| run.nats_ms_per_1k)?.map(rounded),
            postgres: optional(|run| run.postgres_ms_per_1k)?.map(rounded),
        },
        publish_to_commit_ms: Delay { p50: rounded(delay.p50), p99: rounded(delay.p99) },
        peak_rss_mib: rounded(median(runs.iter().map(|run| run.peak_rss_mib))?),
        rate: args.rate,
    })
}

fn show(report: &Report, json: bool) -> anyhow::Result<()> {
    if json {
        outln!("{}", serde_json::to_string(report).context("cannot serialize the report")?);
        return Ok(());
    }
    let cpu = |value: Option<f64>| value.map_or_else(|| "unknown".to_owned(), |ms| format!("{ms:.1}"));
    outln!("messages/s             {:>10.0}", report.messages_per_second);
    outln!("ceiling, rows/s        {:>10.0}", report.ceiling_rows_per_second);
    outln!("ratio                  {:>10.2}", report.ratio);
    outln!("processor time per 1,000 messages, ms");
    outln!("  worker               {:>10.1}", report.cpu_ms_per_1k.client);
    outln!("  NATS                 {:>10}", cpu(report.cpu_ms_per_1k.nats));
    outln!("  PostgreSQL           {:>10}", cpu(report.cpu_ms_per_1k.postgres));
    outln!("publish to commit at {} messages/s, ms", report.rate);
    outln!("  p50                  {:>10.1}", report.publish_to_commit_ms.p50);
    outln!("  p99                  {:>10.1}", report.publish_to_commit_ms.p99);
    outln!("peak worker memory, MiB {:>9.1}", report.peak_rss_mib);
    Ok(())
}
