//! `memfleet demo`

use std::sync::Arc;

use anyhow::{Context, bail};
use clap::Args;
use cli::output::step;
use cli::signal::interrupted;
use cli::table::{Align, Table};
use cli::{errln, outln};
use config::{EmbedderKind, Settings};
use diesel::QueryableByName;
use diesel::sql_types::{BigInt, Text};
use diesel_async::RunQueryDsl;
use runtime::Stats;

use crate::demo_search::{Searched, searched};
use crate::ingest::{IngestOptions, Ingested, Source, ingest};
use crate::private_fleet::PrivateFleet;
use crate::this_program;

const HELP: &str = "\
It starts a NATS server and a PostgreSQL of its own with every worker, publishes 40 conversations of 12 invented people, \
waits until everything is committed, compares what PostgreSQL holds with what was published, and removes everything \
again. It needs the servers' programs, which `make setup` fetches, and nothing else. With --running it publishes the same \
conversations to the servers that the configuration names; their users are 1 to 12.";

/// Publishes sample conversations to private servers, and shows what the workers stored and what searches find.
#[derive(Debug, Args)]
#[command(after_help = HELP)]
pub struct DemoArgs {
    /// Publish to the servers that the configuration names, whose workers commit it, and leave the data there.
    #[arg(long)]
    running: bool,

    /// Print one JSON object, on the last line of standard output, instead of tables.
    #[arg(long)]
    json: bool,
}

/// The conversation whose memory is shown, and who speaks.
const SHOWN: (i32, &str) = (1, "garden-01");

/// What was ingested, the contexts of one conversation, and what searches find.
type Shown = (Ingested, Vec<Memory>, Vec<Searched>);

/// Runs `memfleet demo`.
///
/// # Errors
/// If a server cannot be started, or not everything that was published was stored.
pub async fn execute(args: DemoArgs, settings: &Settings) -> anyhow::Result<()> {
    let (ingested, memories, found) =
        if args.running { on_running(settings).await? } else { on_private(settings).await? };
    if args.json {
        outln!("{}", serde_json::to_string(&ingested)?);
    } else {
        show(&ingested, &memories, &found);
    }
    // Servers that others use as well hold more than what was sent.
    let problems = if args.running { ingested.dead_letters() } else { ingested.missing() };
    check(problems, &memories, &found)
}

async fn on_running(settings: &Settings) -> anyhow::Result<Shown> {
    tokio::select! {
        shown = ingest_sample(settings, Vec::new()) => shown,
        stopped = interrupted() => { stopped?; bail!("interrupted; what is published stays published") }
    }
}

async fn on_private(settings: &Settings) -> anyhow::Result<Shown> {
    let mut fleet =
        step("starting private NATS, PostgreSQL and vector store", PrivateFleet::start(settings, true))
            .await?;
    let (inner, stats) = (fleet.settings().clone(), fleet.stats());
    let shown = fleet.during(ingest_sample(&inner, stats)).await;
    let stopped = step("stopping everything", fleet.stop()).await;
    shown.and_then(|shown| stopped.map(|()| shown))
}

async fn ingest_sample(settings: &Settings, stats: Vec<Arc<Stats>>) -> anyhow::Result<Shown> {
    let vectors = settings.vectors.url.is_some() && settings.embedder.kind != EmbedderKind::None;
    let options = IngestOptions { source: Source::Sample, users: 1, wait: true, vectors };
    errln!("publishing the sample conversations while the workers write them to PostgreSQL");
    let ingested = ingest(settings, stats, &options).await?;
    let memories = step("reading back what is remembered", remembered(&settings.postgres.url)).await?;
    let found = match vectors {
        true => step("asking in plain words", searched(settings)).await?,
        false => Vec::new(),
    };
    Ok((ingested, memories, found))
}

fn show(ingested: &Ingested, memories: &[Memory], found: &[Searched]) {
    let (user, session) = SHOWN;
    let mut table = Table::new([("context", Align::Left), ("value", Align::Left), ("version", Align::Right)]);
    for memory in memories {
        table.row([memory.context_key.clone(), memory.context_value.clone(), memory.version.to_string()]);
    }
    outln!();
    outln!("{}", ingested.tables());
    outln!("What PostgreSQL remembers of user {user} at the end of the conversation {session}:\n\n{table}");
    found.iter().for_each(Searched::show);
    let program = this_program();
    outln!("What you could look at next:");
    outln!("  {program} dev      keeps the same servers and workers running, and says how to reach them");
    outln!(
        "  {program} publish  publishes requests of your own: try one that is wrong, and read what comes back"
    );
    outln!("  docs/PUBLISHING.md  every request, with examples");
}

fn check(mut problems: Vec<String>, memories: &[Memory], found: &[Searched]) -> anyhow::Result<()> {
    let empty = found.iter().filter(|searched| searched.answer.hits.is_empty());
    problems.extend(empty.map(|searched| format!("nothing is found for {:?}", searched.query)));
    if memories.is_empty() {
        problems.push(format!("nothing is remembered of the conversation {}", SHOWN.1));
    }
    if problems.is_empty() {
        return Ok(());
    }
    bail!("not everything came through: {}", problems.join("; "))
}

#[derive(QueryableByName)]
struct Memory {
    #[diesel(sql_type = Text)]
    context_key: String,
    #[diesel(sql_type = Text)]
    context_value: String,
    #[diesel(sql_type = BigInt)]
    version: i64,
}

/// The contexts that one conversation left behind.
async fn remembered(url: &str) -> anyhow::Result<Vec<Memory>> {
    let mut connection = store::connect(url).await?;
    diesel::sql_query(
        "SELECT context_key::text, context_value::text, version FROM simple_chat_context \
         WHERE user_id = $1 AND session_id = $2 AND removed_at IS NULL ORDER BY context_key",
    )
    .bind::<diesel::sql_types::Integer, _>(SHOWN.0)
    .bind::<Text, _>(SHOWN.1)
    .load(&mut connection)
    .await
    .context("the contexts cannot be read back")
}
