//! `memfleet replay`

use anyhow::{Context, bail};
use clap::Args;
use cli::outln;
use cli::output::{out_json, printable};
use cli::table::grouped;
use config::Settings;
use contract::UserId;

use crate::replay::{Replayed, replay};

/// Rebuilds a user's contexts in all tiers from the events in the database, and compares them with the tables.
///
/// Runs in a scratch schema, in a transaction that is rolled back: nothing changes. Needs a role that bypasses
/// row-level security. The exit status is 1 if anything differs. With --as-of, the contexts are rebuilt as of an
/// earlier event, and the differences show what has changed since.
#[derive(Debug, Args)]
pub struct ReplayArgs {
    /// The user whose contexts are rebuilt.
    #[arg(long, value_parser = clap::value_parser!(i32).range(0..))]
    user: i32,
    /// Replay up to and including this event sequence number. Default: the last event.
    #[arg(long, value_name = "NUMBER", value_parser = clap::value_parser!(i64).range(0..))]
    as_of: Option<i64>,
    /// Print one JSON object.
    #[arg(long)]
    json: bool,
}

/// Runs `memfleet replay`.
///
/// # Errors
/// If the database is unreachable, an event cannot be replayed, or anything differs.
pub async fn execute(args: ReplayArgs, settings: &Settings) -> anyhow::Result<()> {
    let user = UserId::new(args.user).map_err(anyhow::Error::msg)?;
    let mut connection =
        cli::database::connect(&settings.postgres.url, "postgres.url", "the database with the events")
            .await?;
    let replayed =
        replay(&mut connection, user, args.as_of.unwrap_or(i64::MAX)).await.context("the replay failed")?;
    if args.json {
        out_json(serde_json::to_string(&replayed)?);
    } else {
        show(&replayed, user);
    }
    match replayed.differences.len() {
        0 => Ok(()),
        _ if args.as_of.is_some() => bail!("the contexts have changed since that event"),
        _ => bail!("the tables differ from the contexts rebuilt from the events"),
    }
}

fn show(replayed: &Replayed, user: UserId) {
    let Replayed { events, as_of, contexts, differences } = replayed;
    outln!("replayed {} events of user {user}, up to sequence number {as_of}", grouped(*events));
    for (table, rows) in contexts {
        outln!("  {table:<22} {:>8} contexts", grouped(*rows));
    }
    for one in differences {
        outln!("{} {}", one.table_name, printable(&one.context));
        outln!("  - events: {}", printable(&one.replayed));
        outln!("  + table:  {}", printable(&one.live));
    }
    if differences.is_empty() {
        outln!("no differences");
    }
}
