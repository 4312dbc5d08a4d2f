//! `memfleet migrate`

use anyhow::Context;
use clap::{Args, Subcommand};
use cli::outln;
use config::Settings;
use store::{migration, partition};

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
    /// Make the partitions of this month and the next ones, where they are missing. `up` does so too; run it once a month.
    Partitions {
        /// How many months after this one.
        #[arg(long, default_value_t = partition::MONTHS_AHEAD, value_name = "COUNT", value_parser = clap::value_parser!(i32).range(0..=120))]
        months: i32,
    },
    /// List the migrations and whether they have run.
    Status,
}

/// Carries out `memfleet migrate`.
///
/// # Errors
/// If the database cannot be reached or a migration fails.
pub async fn execute(args: MigrateArgs, settings: &Settings) -> anyhow::Result<()> {
    let url = &settings.postgres.url;
    let mut connection =
        store::connect(url).await.context("migrating needs the database that postgres.url names")?;
    match args.action {
        Action::Up => {
            tell("up", &migration::MAIN.up(connection).await?, "nothing to do: the schema is up to date");
            partition::create_ahead(&mut store::connect(url).await?, partition::MONTHS_AHEAD).await?;
        }
        Action::Down { count } => {
            tell(
                "down",
                &migration::MAIN.down(connection, count).await?,
                "nothing to do: no migration has run",
            );
        }
        Action::Partitions { months } => {
            let made = partition::create_ahead(&mut connection, months).await?;
            outln!("made {made} partitions");
        }
        Action::Status => {
            for state in migration::MAIN.status(connection).await? {
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
