//! `memfleet replay`

use anyhow::{Context, bail};
use clap::Args;
use cli::outln;
use cli::table::grouped;
use config::Settings;
use contract::UserId;

use crate::replay::{Replayed, replay};

/// Rebuilds a user's contexts, in all tiers, from the events in the database alone, and compares them with what the tables hold.
///
/// It is done in a scratch schema, in a transaction that is rolled back: nothing changes. Run it as an administrator, whom
/// row-level security hides nothing from. The exit status is 1 if anything differs. With --as-of the contexts are those of an
/// earlier moment, and what has changed since is what differs.
#[derive(Debug, Args)]
pub struct ReplayArgs {
    /// Whose contexts.
    #[arg(long, value_parser = clap::value_parser!(i32).range(0..))]
    user: i32,
    /// Up to the event with this number; by default up to the last one.
    #[arg(long, value_name = "NUMBER", value_parser = clap::value_parser!(i64).range(0..))]
    as_of: Option<i64>,
    /// Print one JSON object.
    #[arg(long)]
    json: bool,
}

/// Carries out `memfleet replay`.
///
/// # Errors
/// If the database cannot be reached, an event cannot be replayed, or anything differs.
pub async fn execute(args: ReplayArgs, settings: &Settings) -> anyhow::Result<()> {
    let user = UserId::new(args.user).map_err(anyhow::Error::msg)?;
    let mut connection = store::connect(&settings.postgres.url).await?;
    let replayed = replay(&mut connection, user, args.as_of.unwrap_or(i64::MAX))
        .await
        .context("nothing was compared")?;
    if args.json {
        outln!("{}", serde_json::to_string(&replayed)?);
    } else {
        show(&replayed, user);
    }
    match replayed.differences.len() {
        0 => Ok(()),
        _ if args.as_of.is_some() => bail!("what the events said then is not what the tables hold now"),
        _ => bail!("the events and the tables do not say the same"),
    }
}

fn show(replayed: &Replayed, user: UserId) {
    let Replayed { events, as_of, contexts, differences } = replayed;
    outln!("{} events of user {user}, the last one with the number {as_of}", grouped(*events));
    for (table, rows) in contexts {
        outln!("  {table:<22} {:>8} contexts", grouped(*rows));
    }
    for one in differences {
        outln!("{} {}\n  - events: {}\n  + table:  {}", one.table_name, one.context, one.replayed, one.live);
    }
    if differences.is_empty() {
        outln!("no difference");
    }
}
