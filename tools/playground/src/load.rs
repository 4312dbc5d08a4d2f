//! `memfleet load`

use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use clap::{Args, ValueEnum};
use cli::output::step;
use cli::signal::interrupted;
use cli::{errln, out, outln};
use config::Settings;

use crate::ingest::{IngestOptions, Ingested, Source, ingest};
use crate::private_fleet::PrivateFleet;

const HELP: &str = "\
It starts private servers with every worker, waits until everything is committed, compares what PostgreSQL holds with \
what was published, and removes the servers again. With --running it publishes to the servers that the configuration \
names. Loading the same file twice has no second effect: the ids of all requests are derived from the dialogues.

  memfleet load --format sgd dialogues.jsonl.gz
  memfleet --config .memfleet/dev/memfleet.toml load --format sgd --running FILE";

/// Turns recorded dialogues into the requests of a chat service, publishes them, and waits until they are committed.
#[derive(Debug, Args)]
#[command(after_help = HELP)]
pub struct LoadArgs {
    /// The file: JSON Lines, plain or compressed with gzip.
    #[arg(value_name = "PATH")]
    path: PathBuf,

    /// What the file holds.
    #[arg(long, value_enum)]
    format: Format,

    /// Distribute dialogues without a user over this many users.
    #[arg(long, value_name = "COUNT", default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    users: u32,

    /// Publish to the servers that the configuration names, and start no workers.
    #[arg(long)]
    running: bool,

    /// With --running: wait until the workers there have committed everything.
    #[arg(long, requires = "running")]
    wait: bool,

    /// Print one JSON object, on the last line of standard output, instead of tables.
    #[arg(long)]
    json: bool,
}

/// The shape of a file of dialogues.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Format {
    /// Schema-Guided Dialogue: dialogue_id, services, and turns with frames, one dialogue a line.
    Sgd,
}

/// Runs `memfleet load`.
///
/// # Errors
/// If the file cannot be read, a request is refused, becomes a dead letter, or is not committed.
pub async fn execute(args: LoadArgs, settings: &Settings) -> anyhow::Result<()> {
    let Format::Sgd = args.format;
    check_path(&args.path)?;
    let source = Source::File(args.path);
    let (ingested, problems) = if args.running {
        let options = IngestOptions { source, users: args.users, wait: args.wait, vectors: false };
        let ingested = on_running(settings, &options).await?;
        let problems = ingested.dead_letters();
        (ingested, problems)
    } else {
        let options = IngestOptions { source, users: args.users, wait: true, vectors: false };
        let ingested = on_private(settings, &options).await?;
        let problems = ingested.missing();
        (ingested, problems)
    };
    if args.json {
        outln!("{}", serde_json::to_string(&ingested)?);
    } else {
        out!("{}", ingested.tables());
    }
    if !problems.is_empty() {
        bail!("not everything came through: {}", problems.join("; "));
    }
    Ok(())
}

/// Before servers are started for nothing. A pipe is only looked at, since opening it would take what is in it.
fn check_path(path: &Path) -> anyhow::Result<()> {
    let cannot = || format!("{}: cannot be opened", path.display());
    let about = std::fs::metadata(path).with_context(cannot)?;
    if about.is_dir() {
        bail!("{}: is a folder; name a file in it", path.display());
    }
    if about.is_file() {
        std::fs::File::open(path).with_context(cannot)?;
    }
    Ok(())
}

async fn on_running(settings: &Settings, options: &IngestOptions) -> anyhow::Result<Ingested> {
    tokio::select! {
        ingested = ingest(settings, Vec::new(), options) => ingested,
        stopped = interrupted() => { stopped?; bail!("interrupted; what is published stays published") }
    }
}

async fn on_private(settings: &Settings, options: &IngestOptions) -> anyhow::Result<Ingested> {
    let mut fleet =
        step("starting private NATS and PostgreSQL", PrivateFleet::start(settings, false)).await?;
    errln!("publishing the dialogues while the workers write them to PostgreSQL");
    let (inner, stats) = (fleet.settings().clone(), fleet.stats());
    let ingested = fleet.during(ingest(&inner, stats, options)).await;
    let stopped = step("stopping everything", fleet.stop()).await;
    ingested.and_then(|ingested| stopped.map(|()| ingested))
}
