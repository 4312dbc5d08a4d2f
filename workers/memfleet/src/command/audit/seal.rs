//! `memfleet audit seal`

use clap::Args;
use cli::outln;
use cli::signal::interrupted;
use cli::table::grouped;
use config::Settings;
use fleet::sealer::{self, seal_key};

/// Seals every row of the audit trail whose transaction has finished.
#[derive(Debug, Args)]
pub struct SealArgs {
    /// Repeat every audit.seal_every_s seconds until SIGTERM or Ctrl-C, also after failures.
    #[arg(long)]
    follow: bool,
}

pub(super) async fn execute(args: &SealArgs, settings: &Settings) -> anyhow::Result<()> {
    seal_key(settings)?;
    if !args.follow {
        let (seals, rows) = sealer::seal(settings).await?;
        outln!("sealed {} rows under {} seals", grouped(rows), grouped(seals));
        return Ok(());
    }
    tokio::select! {
        () = sealer::follow(settings) => Ok(()),
        stopped = interrupted() => stopped,
    }
}
