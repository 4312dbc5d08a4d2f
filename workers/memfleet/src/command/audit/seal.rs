//! `memfleet audit seal`

use anyhow::Context;
use clap::Args;
use config::Settings;
use tokio::time::{MissedTickBehavior, interval};

use super::{anchors, database, seal_key};
use crate::command::run::interrupted;
use crate::outln;
use crate::table::grouped;

/// Seals every row of the trail whose transaction is finished.
#[derive(Debug, Args)]
pub struct SealArgs {
    /// Go on every audit.seal_every_s seconds until SIGTERM or Ctrl-C, also after a failure.
    #[arg(long)]
    follow: bool,
}

pub(super) async fn execute(args: &SealArgs, settings: &Settings) -> anyhow::Result<()> {
    seal_key(settings)?;
    if !args.follow {
        let (seals, rows) = once(settings).await?;
        outln!("sealed {} rows under {} seals", grouped(rows), grouped(seals));
        return Ok(());
    }
    tokio::select! {
        () = follow(settings) => Ok(()),
        stopped = interrupted() => stopped,
    }
}

/// Seals again and again. It never ends by itself: a database or a broker that is away comes back.
pub async fn follow(settings: &Settings) {
    let mut ticks = interval(settings.audit.seal_every());
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        match once(settings).await {
            Ok((0, _)) => {}
            Ok((seals, rows)) => tracing::info!(seals, rows, "sealed"),
            Err(error) => tracing::error!("nothing is sealed: {error:#}"),
        }
    }
}

/// Seals on connections of its own, which are few enough at this pace.
async fn once(settings: &Settings) -> anyhow::Result<(u64, u64)> {
    let key = seal_key(settings)?;
    let mut connection = database(settings).await?;
    let anchors = anchors(settings).await?;
    audit::seal_all(&mut connection, &anchors, &key).await.context("the trail cannot be sealed")
}
