//! `memfleet sync`

mod list;
mod load;
mod show;
mod undo;

use clap::{Args, Subcommand};
use cli::database;
use cli::table::grouped;
use config::Settings;
use store::Connection;

use crate::visibility;

use list::ListArgs;
use show::ShowArgs;
use undo::UndoArgs;

/// Lists, shows and undoes syncs: the memory of one session carried into another.
///
/// Reads the database, with a role that bypasses row-level security. Values that are stored encrypted are not decrypted; `memfleet
/// ask sync.history` with "reveal" does that.
#[derive(Debug, Args)]
pub struct SyncArgs {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, Subcommand)]
enum What {
    /// List syncs, the latest first.
    List(ListArgs),
    /// Show a sync: what it did to each key, which rule decided, and what was lost.
    Show(ShowArgs),
    /// Take back what a sync wrote, key by key, where nothing newer depends on it.
    ///
    /// Publishes sync.undo and waits for its outcome. Keys that stay are printed with what depends on them; undo that first, or
    /// leave them. A sync that still runs is stopped. Another sync of the same sessions brings the same again.
    Undo(UndoArgs),
}

/// Runs `memfleet sync`.
///
/// # Errors
/// If the database is unreachable, there is no such sync, or nothing of it can be taken back.
pub async fn execute(args: SyncArgs, settings: &Settings) -> anyhow::Result<()> {
    match args.what {
        What::List(args) => list::execute(&args, settings).await,
        What::Show(args) => show::execute(&args, settings).await,
        What::Undo(args) => undo::execute(args, settings).await,
    }
}

async fn connect(settings: &Settings) -> anyhow::Result<Connection> {
    let mut connection =
        database::connect(&settings.postgres.url, "postgres.url", "the database with the syncs").await?;
    visibility::check_sees_all(&mut connection, &["cross_service_memory_sync", "sync_changes"], "syncs")
        .await?;
    Ok(connection)
}

/// A number with its noun: `1 key`, `2,000 keys`.
fn counted(number: u64, noun: &str) -> String {
    format!("{} {noun}{}", grouped(number), if number == 1 { "" } else { "s" })
}
