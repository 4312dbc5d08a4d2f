//! `memfleet migrate`

use anyhow::Context;
use clap::{Args, Subcommand};
use runtime::Settings;
use store::migration;

use crate::outln;

/// Brings the schema of the configured database up to date, or takes it back.
#[derive(Debug, Args)]
pub struct MigrateArgs {
    #[command(subcommand)]
    action: Action,
}

#[derive(Clone, Copy, Debug, Subcommand)]
enum Action {
    /// Run every migration that has not run.
    Up,
    /// Take back the latest migrations. Their tables go, and what they hold.
    Down {
        /// How many.
        #[arg(default_value_t = 1, value_name = "COUNT")]
        count: usize,
    },
    /// List the migrations and whether they have run.
    Status,
}

/// Carries out `memfleet migrate`.
///
/// # Errors
/// If the database cannot be reached or a migration fails.
pub async fn execute(args: MigrateArgs, settings: &Settings) -> anyhow::Result<()> {
    let connection = store::connect(&settings.postgres.url)
        .await
        .context("migrating needs the database that postgres.url names")?;
    match args.action {
        Action::Up => {
            tell("up", &migration::up(connection).await?, "nothing to do: the schema is up to date");
        }
        Action::Down { count } => {
            tell("down", &migration::down(connection, count).await?, "nothing to do: no migration has run");
        }
        Action::Status => {
            for state in migration::status(connection).await? {
                outln!("{}  {}", if state.applied { "up     " } else { "waiting" }, state.name);
            }
        }
    }
    Ok(())
}

fn tell(direction: &str, names: &[String], nothing: &str) {
    for name in names {
        outln!("{direction}  {name}");
    }
    if names.is_empty() {
        outln!("{nothing}");
    }
}
