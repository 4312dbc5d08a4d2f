//! `memfleet maintenance`

mod needs;
mod report;
mod run;

use anyhow::Context;
use clap::{Args, Subcommand};
use cli::database;
use config::Settings;
use diesel::QueryableByName;
use diesel::sql_types::Text;
use diesel_async::RunQueryDsl;
use store::Connection;

pub(in crate::command) use report::{LastRun, last_runs};

/// The name of a run in `job_runs`.
pub(in crate::command) const RUN: &str = "maintenance-run";

/// Reports what tables and indexes need, and does it: partitions, VACUUM, ANALYZE, REINDEX.
///
/// It uses the role of postgres.url, which owns the tables. What needs no owner, the job `maintenance` of retention-cleaner does. Have
/// a scheduler run `memfleet maintenance run` once a day.
#[derive(Debug, Args)]
pub struct MaintenanceArgs {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, Subcommand)]
enum What {
    /// Show dead rows, bloat and use of indexes, the size of JSON and the growth of tables. Changes nothing. Exits with 1 if a partition
    /// is missing.
    Report {
        /// Print one JSON object.
        #[arg(long)]
        json: bool,
    },
    /// Create partitions, drop empty ones of past months, vacuum and analyze tables and rebuild indexes that need it. Exits with 1 if a
    /// step fails; the others are done.
    Run {
        /// Only print what would be done.
        #[arg(long)]
        dry_run: bool,
        /// Print one JSON object: {"steps": [...]}.
        #[arg(long)]
        json: bool,
    },
}

/// Runs `memfleet maintenance`.
///
/// # Errors
/// If the database is unreachable, another run is under way, a step fails, or a partition is missing.
pub async fn execute(args: MaintenanceArgs, settings: &Settings) -> anyhow::Result<()> {
    let mut connection =
        database::connect(&settings.postgres.url, "postgres.url", "the database to look after").await?;
    match args.what {
        What::Report { json } => report::execute(&mut connection, json).await,
        What::Run { dry_run, json } => run::execute(&mut connection, dry_run, json).await,
    }
}

/// What is wrong with the partitions, a line each.
pub(in crate::command) async fn alarms(connection: &mut Connection) -> anyhow::Result<Vec<String>> {
    #[derive(QueryableByName)]
    struct Alarm {
        #[diesel(sql_type = Text)]
        alarm: String,
    }
    let query = "SELECT alarm FROM sec.partition_alarms_at(now()) AS alarm";
    let alarms: Vec<Alarm> = diesel::sql_query(query)
        .load(connection)
        .await
        .context("cannot look at the partitions; has `memfleet migrate up` been run?")?;
    Ok(alarms.into_iter().map(|row| row.alarm).collect())
}
