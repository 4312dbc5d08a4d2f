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
Starts private servers with all workers, waits until everything is committed, compares the contents of PostgreSQL with \
what was published, and removes the servers again. With --running, publishes to the configured servers instead. Loading \
the same file again has no effect: all request ids are derived from the dialogues.

  memfleet load --format sgd dialogues.jsonl.gz
  memfleet --config .memfleet/dev/memfleet.toml load --format sgd --running FILE";

/// Publishes recorded dialogues as the requests of a chat service, and waits until they are committed.
#[derive(Debug, Args)]
#[command(after_help = HELP)]
pub struct LoadArgs {
    /// The JSON Lines file, plain or gzip-compressed.
    #[arg(value_name = "PATH")]
    path: PathBuf,

    /// The format of the file.
    #[arg(long, value_enum)]
    format: Format,

    /// Distribute dialogues without a user over this many users.
    #[arg(long, value_name = "COUNT", default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    users: u32,

    /// Publish to the configured servers; start no servers or workers.
    #[arg(long)]
    running: bool,

    /// With --running: wait until the workers have committed everything.
    #[arg(long, requires = "running")]
    wait: bool,

    /// Print one JSON object, on the last line of standard output, instead of tables.
    #[arg(long)]
    json: bool,
}

/// The format of a file of dialogues.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Format {
    /// Schema-Guided Dialogue: one dialogue per line, with dialogue_id, services, and turns with frames.
    Sgd,
}

/// Runs `memfleet load`.
///
/// # Errors
/// If the file cannot be read, or a request is rejected, dead-lettered or not committed.
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
        bail!("the result is incomplete: {}", problems.join("; "));
    }
    Ok(())
}

/// Checks that the file can be opened before servers are started. A pipe is not opened, which would consume its data.
fn check_path(path: &Path) -> anyhow::Result<()> {
    let unreadable = || format!("{}: cannot be opened", path.display());
    let metadata = std::fs::metadata(path).with_context(unreadable)?;
    if metadata.is_dir() {
        bail!("{}: is a folder; pass a file", path.display());
    }
    if metadata.is_file() {
        std::fs::File::open(path).with_context(unreadable)?;
    }
    Ok(())
}

async fn on_running(settings: &Settings, options: &IngestOptions) -> anyhow::Result<Ingested> {
    tokio::select! {
        ingested = ingest(settings, Vec::new(), options) => ingested,
        stopped = interrupted() => { stopped?; bail!("interrupted; published requests remain in the stream") }
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
