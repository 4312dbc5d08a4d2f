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

use crate::demo_experts::{Consulted, consult};
use crate::demo_search::{Searched, run_searches};
use crate::ingest::{IngestOptions, Ingested, Source, ingest};
use crate::private_fleet::PrivateFleet;
use crate::this_program;

const HELP: &str = "\
Starts private NATS, PostgreSQL and vector store with all workers, publishes 40 conversations of 12 fictional users, waits \
until everything is committed, compares the contents of PostgreSQL with what was published, asks a group of agents three \
questions, and removes everything again. Requires only the server programs that `make setup` downloads. With --running, \
publishes the same to the configured servers, as users 1 to 12.";

/// Publishes sample conversations to private servers, then shows the stored contexts, search results and what agents agree on.
#[derive(Debug, Args)]
#[command(after_help = HELP)]
pub struct DemoArgs {
    /// Publish to the configured servers and their running workers, and keep the data there.
    #[arg(long)]
    running: bool,

    /// Print one JSON object, on the last line of standard output, instead of tables.
    #[arg(long)]
    json: bool,
}

/// The user and the conversation whose contexts are shown.
const SHOWN: (i32, &str) = (1, "garden-01");

/// What is shown at the end.
struct Shown {
    ingested: Ingested,
    /// The contexts of one conversation.
    memories: Vec<Memory>,
    found: Vec<Searched>,
    consulted: Consulted,
}

/// Runs `memfleet demo`.
///
/// # Errors
/// If a server cannot be started, or not all published requests were stored.
pub async fn execute(args: DemoArgs, settings: &Settings) -> anyhow::Result<()> {
    let shown = if args.running { on_running(settings).await? } else { on_private(settings).await? };
    if args.json {
        outln!("{}", serde_json::to_string(&shown.ingested)?);
    } else {
        show(&shown);
    }
    // Shared servers contain other data too, so their contents are not compared with what was sent.
    let problems = if args.running { shown.ingested.dead_letters() } else { shown.ingested.missing() };
    check(problems, &shown)
}

async fn on_running(settings: &Settings) -> anyhow::Result<Shown> {
    tokio::select! {
        shown = ingest_sample(settings, Vec::new()) => shown,
        stopped = interrupted() => { stopped?; bail!("interrupted; published requests remain in the stream") }
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
    let memories = step("reading stored contexts", stored_contexts(&settings.postgres.url)).await?;
    let found = match vectors {
        true => step("running sample searches", run_searches(settings)).await?,
        false => Vec::new(),
    };
    let consulted = step("asking a group of agents", consult(settings)).await?;
    Ok(Shown { ingested, memories, found, consulted })
}

fn show(Shown { ingested, memories, found, consulted }: &Shown) {
    let (user, session) = SHOWN;
    let mut table = Table::new([("context", Align::Left), ("value", Align::Left), ("version", Align::Right)]);
    for memory in memories {
        table.row([memory.context_key.clone(), memory.context_value.clone(), memory.version.to_string()]);
    }
    outln!();
    outln!("{}", ingested.tables());
    outln!("Contexts of user {user} in PostgreSQL at the end of conversation {session}:\n\n{table}");
    found.iter().for_each(Searched::show);
    consulted.show();
    let program = this_program();
    outln!("Next steps:");
    outln!("  {program} dev      runs the same servers and workers until Ctrl-C, and prints their addresses");
    outln!("  {program} publish  publishes your own requests; try an invalid one to see the error");
    outln!("  docs/PUBLISHING.md  all requests, with examples");
}

fn check(mut problems: Vec<String>, shown: &Shown) -> anyhow::Result<()> {
    let Shown { memories, found, consulted, .. } = shown;
    problems.extend(consulted.problems());
    let empty = found.iter().filter(|searched| searched.answer.hits.is_empty());
    problems.extend(empty.map(|searched| format!("no search results for {:?}", searched.query)));
    if memories.is_empty() {
        problems.push(format!("no contexts are stored for conversation {}", SHOWN.1));
    }
    if problems.is_empty() {
        return Ok(());
    }
    bail!("the result is incomplete: {}", problems.join("; "))
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

/// The stored contexts of the conversation [`SHOWN`].
async fn stored_contexts(url: &str) -> anyhow::Result<Vec<Memory>> {
    let mut connection = store::connect(url).await?;
    diesel::sql_query(
        "SELECT context_key::text, context_value::text, version FROM simple_chat_context \
         WHERE user_id = $1 AND session_id = $2 AND removed_at IS NULL ORDER BY context_key",
    )
    .bind::<diesel::sql_types::Integer, _>(SHOWN.0)
    .bind::<Text, _>(SHOWN.1)
    .load(&mut connection)
    .await
    .context("cannot read the stored contexts")
}
