//! `memfleet bench router`: routing decisions through router-logger, compared with the same statements on the database
//! alone.

use anyhow::Context;
use clap::Args;
use cli::{errln, outln};
use config::Settings;
use context_writer::ContextWriter;
use playground::Local;
use router_logger::RouterLogger;
use serde::Serialize;

use super::ceiling;
use super::corpus::Corpus;
use super::pipeline::{Pipeline, Run, add_payload_key};
use super::process::Meter;
use super::{median, on_private_servers, rounded};

#[derive(Debug, Args)]
pub(super) struct RouterArgs {
    /// Decisions in each run.
    #[arg(long, default_value_t = 20_000, value_name = "COUNT", value_parser = clap::value_parser!(u32).range(500..=1_000_000))]
    messages: u32,

    /// Runs of each kind.
    #[arg(long, default_value_t = 3, value_name = "COUNT", value_parser = clap::value_parser!(u32).range(1..=20))]
    runs: u32,

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
    /// The peak memory of the worker process.
    peak_rss_mib: f64,
}

pub(super) async fn execute(args: &RouterArgs, settings: &Settings) -> anyhow::Result<()> {
    let report = on_private_servers(settings, async |local| measure(args, local).await).await?;
    if args.json {
        outln!("{}", serde_json::to_string(&report).context("cannot serialize the report")?);
        return Ok(());
    }
    outln!("decisions/s            {:>10.0}", report.messages_per_second);
    outln!("ceiling, rows/s        {:>10.0}", report.ceiling_rows_per_second);
    outln!("ratio                  {:>10.2}", report.ratio);
    outln!("peak worker memory, MiB {:>9.1}", report.peak_rss_mib);
    Ok(())
}

async fn measure(args: &RouterArgs, local: &Local) -> anyhow::Result<Report> {
    add_payload_key(&local.settings)?;
    let mut corpus = Corpus::new();
    Pipeline::open::<ContextWriter>(&local.settings).await?.prepare(&corpus).await?;
    let pipeline = Pipeline::open::<RouterLogger>(&local.settings).await?;
    let meter = Meter::new(local.stack());
    let (mut ceilings, mut runs): (Vec<f64>, Vec<Run>) = (Vec::new(), Vec::new());
    for run in 1..=args.runs {
        errln!("run {run} of {}: the statements alone, then the worker", args.runs);
        let messages = corpus.decisions(args.messages as usize);
        ceilings.push(ceiling::measure(&RouterLogger, &local.settings, messages).await?);
        let messages = corpus.decisions(args.messages as usize);
        runs.push(pipeline.measure(&messages, &meter).await?);
    }
    let messages_per_second = median(runs.iter().map(|run| run.messages_per_second))?;
    let ceiling_rows_per_second = median(ceilings)?;
    Ok(Report {
        messages_per_second: rounded(messages_per_second),
        ceiling_rows_per_second: rounded(ceiling_rows_per_second),
        ratio: rounded(messages_per_second / ceiling_rows_per_second),
        peak_rss_mib: rounded(median(runs.iter().map(|run| run.peak_rss_mib))?),
    })
}
