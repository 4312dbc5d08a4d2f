//! `memfleet bench fairness`: the latency of one service while another one floods the workers.

mod flood;
mod neighbour;

use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use clap::Args;
use cli::table::{Align, Table};
use cli::{errln, outln};
use config::{EmbedderKind, Settings};
use serde::Serialize;
use store::registry::{self, Rates, ServiceEntry};

use self::flood::{Flood, Flooder};
use self::neighbour::Neighbour;
use super::asking::SERVICE;
use super::process::start_workers;
use super::{on_private_servers_with_vectors, percentile, rounded};

#[derive(Debug, Args)]
pub(super) struct FairnessArgs {
    /// The size of each flood, in percent of its full size.
    #[arg(long, default_value_t = 100, value_name = "PERCENT", value_parser = clap::value_parser!(u32).range(1..=1_000))]
    percent: u32,

    /// Only this flood.
    #[arg(long, value_name = "FLOOD")]
    only: Option<Flood>,

    /// Print one JSON object, on the last line of standard output.
    #[arg(long)]
    json: bool,
}

/// The service that floods.
const FLOODING: &str = "smart-router";
/// What runs: those that are flooded, and the one that gives the neighbour its tokens.
const WORKERS: [&str; 4] = ["context-writer", "vector-indexer", "memory-reader", "token-issuer"];
/// The user of both services' sessions: of the flooding one, then of the other one.
const USERS: [i32; 2] = [1, 2];
/// Samples before measuring, so that connections are open and statements prepared.
const WARM_UP: usize = 20;
/// Samples without a flood, and the least number of samples during a flood, of the full size. A smaller one has fewer.
const SAMPLES: usize = 200;
/// No flood is measured for longer.
const MEASURED_FOR: Duration = Duration::from_secs(60);

/// The results. The worst flood is the one with the highest `flood_p99_ms` in proportion to its `quiet_p99_ms`.
#[derive(Debug, Serialize)]
struct Report {
    /// The neighbour's 99th percentile before the worst flood.
    quiet_p99_ms: f64,
    /// The same during the worst flood.
    flood_p99_ms: f64,
    /// The name of the worst flood.
    flood: &'static str,
    floods: Vec<Measured>,
}

#[derive(Clone, Debug, Serialize)]
struct Measured {
    flood: &'static str,
    quiet_p50_ms: f64,
    quiet_p99_ms: f64,
    flood_p50_ms: f64,
    flood_p99_ms: f64,
    /// Samples during the flood.
    samples: usize,
    /// From the start of the flood until it was worked off, or [`MEASURED_FOR`] if that came first.
    seconds: f64,
}

impl Measured {
    fn ratio(&self) -> f64 {
        self.flood_p99_ms / self.quiet_p99_ms
    }
}

pub(super) async fn execute(args: &FairnessArgs, settings: &Settings) -> anyhow::Result<()> {
    let measuring =
        on_private_servers_with_vectors(settings, async |local| measure(args, &local.settings).await);
    let floods = measuring.await?;
    let worst = floods.iter().max_by(|one, other| one.ratio().total_cmp(&other.ratio()));
    let worst = worst.context("no flood was measured")?;
    let Measured { flood, quiet_p99_ms, flood_p99_ms, .. } = *worst;
    let report = Report { quiet_p99_ms, flood_p99_ms, flood, floods };
    if args.json {
        outln!("{}", serde_json::to_string(&report).context("cannot serialize the report")?);
    } else {
        show(&report);
    }
    Ok(())
}

async fn measure(args: &FairnessArgs, settings: &Settings) -> anyhow::Result<Vec<Measured>> {
    let mut registry = store::connect(&settings.postgres.url).await?;
    for service in [FLOODING, SERVICE] {
        let entry = ServiceEntry { scopes: vec!["*:*".parse()?], rates: Rates::default() };
        registry::put_service(&mut registry, &service.parse()?, &entry).await?;
    }
    let mut worker = start_workers(settings, &WORKERS)?;
    let measured = tokio::select! {
        measured = measure_all(args, settings) => measured,
        ended = worker.wait() => bail!("the worker process ended: {}", ended?),
    };
    worker.kill().await.context("cannot kill the worker process")?;
    measured
}

async fn measure_all(args: &FairnessArgs, settings: &Settings) -> anyhow::Result<Vec<Measured>> {
    let flooder = Flooder::open(settings).await?;
    flooder.create_sessions(USERS[1]).await?;
    let neighbour = Neighbour::open(settings).await?;
    let mut floods = Flood::ALL.to_vec();
    if settings.embedder.kind != EmbedderKind::Local {
        errln!("skipping texts: this process has no embedder; `make setup` downloads its model");
        floods.retain(|flood| !matches!(flood, Flood::Index | Flood::FewTexts));
    }
    if let Some(only) = args.only {
        floods.retain(|flood| *flood == only);
    }
    let samples = (SAMPLES * args.percent as usize / 100).max(WARM_UP);
    let mut measured = Vec::new();
    for flood in floods {
        errln!("flood: {}", flood.name());
        let action = flood.action();
        drop(neighbour.sample(action, WARM_UP, async { Ok(()) }).await?);
        let quiet = neighbour.sample(action, samples, async { Ok(()) }).await?;
        let (since, sent) = (Instant::now(), flooder.send(flood, args.percent));
        let during = neighbour.sample(action, samples, sent).await?;
        measured.push(Measured {
            flood: flood.name(),
            quiet_p50_ms: rounded(percentile(&quiet, 0.5)),
            quiet_p99_ms: rounded(percentile(&quiet, 0.99)),
            flood_p50_ms: rounded(percentile(&during, 0.5)),
            flood_p99_ms: rounded(percentile(&during, 0.99)),
            samples: during.len(),
            seconds: rounded(since.elapsed().as_secs_f64()),
        });
        flooder.worked_off(flood).await?;
    }
    Ok(measured)
}

fn show(report: &Report) {
    let mut table = Table::new([
        ("flood", Align::Left),
        ("quiet ms p50", Align::Right),
        ("p99", Align::Right),
        ("during it p50", Align::Right),
        ("p99", Align::Right),
        ("ratio", Align::Right),
        ("seconds", Align::Right),
    ]);
    for one in &report.floods {
        table.row([
            one.flood.to_owned(),
            format!("{:.1}", one.quiet_p50_ms),
            format!("{:.1}", one.quiet_p99_ms),
            format!("{:.1}", one.flood_p50_ms),
            format!("{:.1}", one.flood_p99_ms),
            format!("{:.1}", one.ratio()),
            format!("{:.1}", one.seconds),
        ]);
    }
    outln!("{table}");
}
