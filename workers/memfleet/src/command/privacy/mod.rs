//! `memfleet privacy`

mod access;
mod cancel;
mod erase;
pub(crate) mod hints;
mod list;
mod reapply;
mod rectify;
mod requests;
mod restrict;
mod run;
mod show;
mod statistics;
mod verify;

use std::path::PathBuf;

use clap::{Args, Subcommand};
use cli::database;
use config::Settings;
use privacy::{Removal, receipt};
use store::Connection;

use access::{AccessArgs, OpenArgs};
use cancel::CancelArgs;
use erase::EraseArgs;
use list::ListArgs;
use reapply::ReapplyArgs;
use rectify::{RectifyArgs, RejectArgs};
use restrict::{LiftArgs, RestrictArgs};
use run::RunArgs;
use show::ShowArgs;
use statistics::StatisticsArgs;
use verify::VerifyArgs;

use crate::visibility;

const HELP: &str = "\
A process with the rights of an operator erases; its receipts are signed with a key of its own:

  memfleet audit key generate receipt --out receipt.key
  MEMFLEET_PRIVACY__RECEIPT_KEY_FILE=receipt.key MEMFLEET_PRIVACY__RECEIPT_URL=file:///var/lib/memfleet/receipts \\
    memfleet privacy run --follow
  memfleet privacy erase 42 --reason 'letter of 3 May'
  memfleet privacy access 42 --recipient age1... --out /var/lib/memfleet/exports
  memfleet privacy verify /var/lib/memfleet/receipts/0193c0de-0000-7000-8000-000000000001.json

The data of a person who is restricted stay, and no worker reads or writes them:

  memfleet privacy restrict 42 --while wait --reason 'letter of 3 May'
  memfleet privacy lift 42

What services request for a person (privacy.access, privacy.restrict, privacy.erase ...) is carried out by the same process. A correction waits for an
operator:

  memfleet privacy list --open
  memfleet privacy show 0193c0de-0000-7000-8000-000000000001
  memfleet privacy rectify 0193c0de-0000-7000-8000-000000000001
  memfleet privacy rectify 42 --table users --set 'email=\"ada@example.org\"' --reason 'letter of 3 May'

After a restore of the database, run `memfleet privacy reapply` before any worker starts.";

/// Erases persons from all stores, and proves it; exports all that is stored of a person; restricts the processing of their data, and corrects them.
///
/// Needs roles that bypass row-level security as postgres.url and keys.url.
#[derive(Debug, Args)]
#[command(after_help = HELP)]
pub struct PrivacyArgs {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, Subcommand)]
enum What {
    /// List requests of persons: erasures that are not complete, restrictions, exports and corrections.
    List(ListArgs),
    /// Show a request: of an erasure its step, what stops it, what it has deleted, or its receipt; of a correction, what is wrong.
    Show(ShowArgs),
    /// Erase a person. Everything of the person is deleted for good, and the id is refused from then on.
    Erase(EraseArgs),
    /// Anonymise a person: as `erase`, and what the rows count is added to sums over all anonymised persons.
    Anonymise(EraseArgs),
    /// Restrict the processing of a person's data: the database refuses them to every worker until it is lifted. Nothing is deleted.
    Restrict(RestrictArgs),
    /// Lift the restriction of a person.
    Lift(LiftArgs),
    /// Correct wrong data of a person, as a service has requested it, or without a request.
    Rectify(RectifyArgs),
    /// Refuse a correction, a restriction or an export that a service has requested.
    Reject(RejectArgs),
    /// Print the sums over anonymised persons, by month. Sums of fewer than five persons are left out.
    Statistics(StatisticsArgs),
    /// Do what is due of all erasures, and of restrictions and exports that services have requested.
    Run(RunArgs),
    /// Check a receipt, and count again what is there of the person.
    Verify(VerifyArgs),
    /// Erase again, in a restored database, whoever has a receipt.
    Reapply(ReapplyArgs),
    /// Stop an erasure that has not deleted anything yet.
    Cancel(CancelArgs),
    /// Export all that is stored of a person, encrypted for the person.
    Access(AccessArgs),
    /// Open an export of `access`.
    Open(OpenArgs),
    /// Export the key of tombstones.
    #[command(subcommand)]
    Key(Key),
}

#[derive(Debug, Subcommand)]
enum Key {
    /// Write the key with which this database computes tombstones to a file. `privacy reapply` needs it for a backup from before the
    /// migration that made the key. Whoever has it and a receipt can find out whose receipt it is.
    Export {
        /// Create this file, which only its owner can read. An existing file is not overwritten.
        #[arg(long, value_name = "FILE")]
        out: PathBuf,
    },
}

/// Runs `memfleet privacy`.
///
/// # Errors
/// If a server is unreachable, a request is refused or cannot go on, or a receipt is not genuine or not true.
pub async fn execute(args: PrivacyArgs, settings: &Settings) -> anyhow::Result<()> {
    match args.what {
        What::List(args) => list::execute(&args, settings).await,
        What::Show(args) => show::execute(&args, settings).await,
        What::Erase(args) => erase::execute(&args, Removal::Erase, settings).await,
        What::Anonymise(args) => erase::execute(&args, Removal::Anonymise, settings).await,
        What::Restrict(args) => restrict::restrict(&args, settings).await,
        What::Lift(args) => restrict::lift(&args, settings).await,
        What::Rectify(args) => rectify::rectify(&args, settings).await,
        What::Reject(args) => rectify::execute_reject(&args, settings).await,
        What::Statistics(args) => statistics::execute(&args, settings).await,
        What::Run(args) => run::execute(&args, settings).await,
        What::Verify(args) => verify::execute(&args, settings).await,
        What::Reapply(args) => reapply::execute(&args, settings).await,
        What::Cancel(args) => cancel::execute(&args, settings).await,
        What::Access(args) => access::execute(&args, settings).await,
        What::Open(args) => access::open(&args),
        What::Key(Key::Export { out }) => reapply::export_key(&out, settings).await,
    }
}

/// A reason as it is stored.
fn reason(text: &str) -> Result<String, String> {
    let text = text.trim();
    match text.chars().count() {
        1..=2_048 if !text.contains('\0') => Ok(text.to_owned()),
        _ => Err("a reason has 1 to 2048 characters".to_owned()),
    }
}

/// Fails before anything begins if no receipt could be signed and filed at the end.
fn check_receipts(settings: &Settings) -> anyhow::Result<()> {
    receipt::signing_key(&settings.privacy)?;
    receipt::target(settings, None)?;
    Ok(())
}

async fn connect_to_key_store(settings: &Settings) -> anyhow::Result<Connection> {
    database::connect(&settings.keys.url, "keys.url", "the key store").await
}

async fn connect(settings: &Settings) -> anyhow::Result<Connection> {
    let mut connection =
        database::connect(&settings.postgres.url, "postgres.url", "the database with the erasures").await?;
    visibility::check_sees_all(&mut connection, &["privacy_requests"], "requests").await?;
    Ok(connection)
}
