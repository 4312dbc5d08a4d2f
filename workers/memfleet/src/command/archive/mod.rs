//! `memfleet archive`

mod forget;
mod list;
mod load;
mod query;
mod restore;
mod rows;
mod verify;

use clap::{Args, Subcommand};
use cli::database;
use config::Settings;
use store::Connection;

use forget::ForgetArgs;
use list::{CleanArgs, ListArgs};
use query::QueryArgs;
use restore::RestoreArgs;
use verify::VerifyArgs;

use crate::visibility;

const HELP: &str = "\
Rows are archived if a retention policy says so (policy.put with the action archive), to the folder or bucket of archive.url:

  memfleet archive list
  memfleet archive verify
  memfleet archive query --user 42 --table simple_chat_context
  memfleet archive restore 0193c0de-0000-7000-8000-000000000001

An archive is a folder of Parquet files, which DuckDB or pandas read as they are, with a signed manifest.";

/// Lists, verifies and restores archives, and searches them.
///
/// Reads the database, with a role that bypasses row-level security, and the target of archive.url.
#[derive(Debug, Args)]
#[command(after_help = HELP)]
pub struct ArchiveArgs {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, Subcommand)]
enum What {
    /// List archives, oldest first; with --orphans, the files that no archive has.
    List(ListArgs),
    /// Read archives and check signatures, hashes, columns and every row.
    Verify(VerifyArgs),
    /// Restore the rows of an archive that are not in the database and that nothing newer replaces.
    Restore(RestoreArgs),
    /// Print archived rows.
    Query(QueryArgs),
    /// Delete files that are named as those of archives and that no archive has. A run that was killed leaves them. Complete archives stay
    /// without --complete.
    Clean(CleanArgs),
    /// Have the database forget archives whose files are lost.
    Forget(ForgetArgs),
}

/// Runs `memfleet archive`.
///
/// # Errors
/// If the database or the target is unreachable, or an archive is not as it was written.
pub async fn execute(args: ArchiveArgs, settings: &Settings) -> anyhow::Result<()> {
    match args.what {
        What::List(args) => list::execute(&args, settings).await,
        What::Verify(args) => verify::execute(&args, settings).await,
        What::Restore(args) => restore::execute(&args, settings).await,
        What::Query(args) => query::execute(&args, settings).await,
        What::Clean(args) => list::clean(&args, settings).await,
        What::Forget(args) => forget::execute(&args, settings).await,
    }
}

async fn connect(settings: &Settings) -> anyhow::Result<Connection> {
    let mut connection =
        database::connect(&settings.postgres.url, "postgres.url", "the database with the archives").await?;
    visibility::check_sees_all(&mut connection, &["archive_restores"], "rows").await?;
    Ok(connection)
}
