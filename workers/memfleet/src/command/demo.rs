//! `memfleet demo`

use anyhow::{Context, bail};
use clap::Args;
use diesel::QueryableByName;
use diesel::sql_types::{BigInt, Text};
use diesel_async::RunQueryDsl;
use runtime::Settings;

use crate::carry::{Carried, Order, PrivateFleet, Source, carry, step};
use crate::fleet::WorkerName;
use crate::table::{Align, Table};

const HELP: &str = "\
It starts a NATS server and a PostgreSQL of its own with every worker, publishes 40 conversations of 12 invented people, \
waits until everything is committed, compares what PostgreSQL holds with what was published, and removes everything \
again. It needs the servers' programs, which `make setup` fetches, and nothing else.";

/// Carries a sample of conversations through private servers and shows what came out.
#[derive(Debug, Args)]
#[command(after_help = HELP)]
pub struct DemoArgs {
    /// Print one JSON object, on the last line of standard output, instead of tables.
    #[arg(long)]
    json: bool,
}

/// The conversation whose memory is shown, and who speaks.
const SHOWN: (i32, &str) = (1, "garden-01");

const NEXT: &str = "\
What you could look at next:
  memfleet dev            keeps the same servers and workers running, and says how to reach them
  memfleet publish        publishes requests of your own: try one that is wrong, and read what comes back
  docs/PUBLISHING.md      every request, with examples
";

/// Carries out `memfleet demo`.
///
/// # Errors
/// If a server cannot be started, or not everything that was published came out.
pub async fn execute(args: DemoArgs, settings: &Settings) -> anyhow::Result<()> {
    let mut fleet = step("starting private NATS and PostgreSQL", PrivateFleet::start(settings)).await?;
    let inner = fleet.settings().clone();
    let stats = fleet.stats(WorkerName::ContextWriter);
    let work = async {
        let order = Order { source: Source::Sample, users: 1, wait: true };
        eprintln!("publishing the sample conversations while the workers write them to PostgreSQL");
        let carried = carry(&inner, stats, &order).await?;
        let memories = step("reading back what is remembered", remembered(&inner.postgres.url)).await?;
        Ok((carried, memories))
    };
    let shown = fleet.during(work).await;
    let stopped = step("stopping everything", fleet.stop()).await;
    let (carried, memories) = shown?;
    stopped?;
    if args.json {
        println!("{}", serde_json::to_string(&carried)?);
    } else {
        show(&carried, &memories);
    }
    check(&carried, &memories)
}

fn show(carried: &Carried, memories: &[Memory]) {
    let (user, session) = SHOWN;
    let mut table = Table::new([("context", Align::Left), ("value", Align::Left), ("version", Align::Right)]);
    for memory in memories {
        table.row([memory.context_key.clone(), memory.context_value.clone(), memory.version.to_string()]);
    }
    println!();
    println!("{}", carried.tables());
    println!("What PostgreSQL remembers of user {user} at the end of the conversation {session}:\n\n{table}");
    print!("{NEXT}");
}

fn check(carried: &Carried, memories: &[Memory]) -> anyhow::Result<()> {
    let mut problems = carried.missing();
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
