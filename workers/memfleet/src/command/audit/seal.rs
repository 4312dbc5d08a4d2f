//! `memfleet audit seal`

use anyhow::bail;
use clap::Args;
use cli::outln;
use cli::signal::interrupted;
use cli::table::grouped;
use config::Settings;
use fleet::sealer::{self, Sealed, seal_key};

/// Seals every row of the audit trail whose transaction has finished.
///
/// A transaction that stays open, in any database of the server, holds back all later rows. If rows older than a minute
/// cannot be sealed, it is named, and the exit status is 1; with --follow, it is logged once a minute.
///
/// Nothing is sealed, and the exit status is 1, if the seals of the database are not those that NATS has anchors of, if the
/// last seal is not genuine, or if a session keeps the lock of the sealers.
#[derive(Debug, Args)]
pub struct SealArgs {
    /// Repeat every audit.seal_every_s seconds until SIGTERM or Ctrl-C, also after failures.
    #[arg(long)]
    follow: bool,
}

pub(super) async fn execute(args: &SealArgs, settings: &Settings) -> anyhow::Result<()> {
    seal_key(settings)?;
    if !args.follow {
        let Sealed { seals, rows, held_back } = sealer::seal(settings).await?;
        outln!("sealed {} rows under {} seals", grouped(rows), grouped(seals));
        return match held_back {
            Some(held) => bail!("{held}"),
            None => Ok(()),
        };
    }
    tokio::select! {
        () = sealer::follow(settings) => Ok(()),
        stopped = interrupted() => stopped,
    }
}
