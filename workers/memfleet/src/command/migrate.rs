//! `memfleet migrate`

use clap::{Args, Subcommand};
use cli::confirm::confirm;
use cli::output::printable;
use cli::{errln, outln};
use config::Settings;
use store::{migration, partition};

use crate::command::privacy::hints;
use crate::server_warnings;

/// Applies or rolls back migrations of the database at `postgres.url`, and creates monthly partitions.
#[derive(Debug, Args)]
pub struct MigrateArgs {
    #[command(subcommand)]
    action: Action,
}

#[derive(Clone, Copy, Debug, Subcommand)]
enum Action {
    /// Apply all pending migrations.
    Up,
    /// Roll back the latest migrations. DROPS their tables and all data in them.
    Down {
        /// Number of migrations to roll back.
        #[arg(default_value_t = 1, value_name = "COUNT")]
        count: usize,
        /// Do not ask for confirmation.
        #[arg(long)]
        yes: bool,
    },
    /// Create missing partitions for this month and the following ones. Run it once a month; `up` does the same.
    Partitions {
        /// Number of months after the current one.
        #[arg(long, default_value_t = partition::MONTHS_AHEAD, value_name = "COUNT", value_parser = clap::value_parser!(i32).range(0..=120))]
        months: i32,
    },
    /// List migrations and whether each has been applied.
    Status,
}

/// Runs `memfleet migrate`.
///
/// # Errors
/// If the database cannot be reached or a migration fails.
pub async fn execute(args: MigrateArgs, settings: &Settings) -> anyhow::Result<()> {
    let url = &settings.postgres.url;
    let mut connection = cli::database::connect(url, "postgres.url", "the database to migrate").await?;
    // Migrations work in any language; workers do not start.
    if let Err(problem) = store::language::check_english(&mut connection).await {
        errln!("warning: {problem}");
    }
    match args.action {
        Action::Up => {
            print_names(
                "up",
                &migration::MAIN.up(connection).await?,
                "nothing to do: the schema is up to date",
            );
            let mut connection = store::connect(url).await?;
            partition::create_ahead(&mut connection, partition::MONTHS_AHEAD).await?;
            server_warnings::print(&mut connection).await;
            if let Some(warning) = hints::unapplied_warning(&mut connection, settings).await {
                errln!("warning: {}", printable(&warning));
            }
        }
        Action::Down { count, yes } => {
            let states = migration::MAIN.status(connection).await?;
            let applied: Vec<&str> =
                states.iter().rev().filter(|state| state.applied).map(|state| state.name.as_str()).collect();
            let latest = &applied[..applied.len().min(count)];
            if !latest.is_empty() {
                let names = latest.join(", ");
                confirm(
                    &format!("rolling back {names} drops their tables and all data in them permanently"),
                    yes,
                )?;
            }
            let connection = store::connect(url).await?;
            print_names(
                "down",
                &migration::MAIN.down(connection, count).await?,
                "nothing to do: no migration is applied",
            );
        }
        Action::Partitions { months } => {
            let created = partition::create_ahead(&mut connection, months).await?;
            outln!("created {created} partitions");
        }
        Action::Status => {
            for state in migration::MAIN.status(connection).await? {
                outln!("{}  {}", if state.applied { "up     " } else { "pending" }, state.name);
            }
        }
    }
    Ok(())
}

fn print_names(direction: &str, names: &[String], if_empty: &str) {
    for name in names {
        outln!("{direction}  {name}");
    }
    if names.is_empty() {
        outln!("{if_empty}");
    }
}
