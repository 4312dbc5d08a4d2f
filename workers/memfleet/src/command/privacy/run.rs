//! `memfleet privacy run`

use anyhow::ensure;
use chrono::Utc;
use clap::Args;
use cli::outln;
use cli::signal::interrupted;
use config::Settings;
use privacy::Carried;
use privacy::process::{self, Passed};
use uuid::Uuid;

/// Does what is due of all erasures: each goes on from the step that it is at. Then looks for messages and points of erased persons that came
/// late. Restrictions and exports that services have requested are carried out, exports into privacy.export_folder.
///
/// The exit status is 1 if a step or a request failed; `memfleet privacy list` has the reason.
#[derive(Debug, Args)]
pub(super) struct RunArgs {
    /// Repeat every privacy.every_s seconds until SIGTERM or Ctrl-C, also after failures.
    #[arg(long)]
    follow: bool,
}

pub(super) async fn execute(args: &RunArgs, settings: &Settings) -> anyhow::Result<()> {
    super::connect(settings).await?;
    if args.follow {
        super::check_receipts(settings)?;
        return tokio::select! {
            () = fleet::privacy::follow(settings) => Ok(()),
            stopped = interrupted() => stopped,
        };
    }
    let (passed, others) = process::run_once(settings, Uuid::now_v7(), Utc::now()).await?;
    let Passed { done, waiting, failed } = passed;
    outln!("{done} erasures completed, {waiting} wait, {failed} failed");
    if others != Carried::default() {
        let Carried { restricted, exported, waiting, failed } = others;
        outln!("{restricted} restrictions and {exported} exports completed, {waiting} wait, {failed} failed");
    }
    ensure!(failed == 0, "{failed} erasures failed at a step; `memfleet privacy list` has the reasons");
    let failed = others.failed;
    ensure!(failed == 0, "{failed} requests of services failed; `memfleet privacy list` has the reasons");
    Ok(())
}
