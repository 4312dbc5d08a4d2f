//! `memfleet status`

mod broker_part;
mod database_part;

use broker_part::BrokerStatus;
use clap::Args;
use cli::outln;
use config::{Settings, without_password};
use database_part::DatabaseStatus;
use serde::Serialize;

/// Shows streams, lag, consumers, dead letters, database and versions.
///
/// A server that cannot be reached is reported as such, the rest is shown, and the exit status is 1.
#[derive(Debug, Args)]
pub struct StatusArgs {
    /// Print one JSON object instead of tables.
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Serialize)]
struct Status {
    version: &'static str,
    nats_url: String,
    postgres_url: String,
    nats: Part<BrokerStatus>,
    postgres: Part<DatabaseStatus>,
}

/// A server's part, or why there is none.
#[derive(Debug, Serialize)]
#[serde(untagged)]
enum Part<T> {
    Reached(T),
    Away { error: String },
}

impl<T> From<anyhow::Result<T>> for Part<T> {
    fn from(result: anyhow::Result<T>) -> Self {
        match result {
            Ok(part) => Self::Reached(part),
            Err(error) => Self::Away { error: format!("{error:#}") },
        }
    }
}

/// Runs `memfleet status`.
///
/// # Errors
/// If a server cannot be reached, after the rest has been shown.
pub async fn execute(args: StatusArgs, settings: &Settings) -> anyhow::Result<()> {
    let (nats, postgres) = tokio::join!(broker_part::ask(settings), database_part::ask(settings));
    let status = Status {
        version: env!("CARGO_PKG_VERSION"),
        nats_url: without_password(&settings.nats.url),
        postgres_url: without_password(&settings.postgres.url),
        nats: nats.into(),
        postgres: postgres.into(),
    };
    if args.json {
        outln!("{}", serde_json::to_string(&status)?);
    } else {
        show(&status);
    }
    let away: Vec<&str> = [
        ("NATS", matches!(status.nats, Part::Away { .. })),
        ("PostgreSQL", matches!(status.postgres, Part::Away { .. })),
    ]
    .into_iter()
    .filter_map(|(name, is_away)| is_away.then_some(name))
    .collect();
    anyhow::ensure!(away.is_empty(), "{} could not be asked; see above", away.join(" and "));
    Ok(())
}

fn show(status: &Status) {
    outln!("memfleet    {}", status.version);
    match &status.nats {
        Part::Reached(part) => {
            outln!("NATS        {}, {}", part.version, status.nats_url);
            part.show();
        }
        Part::Away { error } => outln!("NATS        away: {error}"),
    }
    outln!();
    match &status.postgres {
        Part::Reached(part) => {
            outln!("PostgreSQL  {}, {}", part.version, status.postgres_url);
            part.show();
        }
        Part::Away { error } => outln!("PostgreSQL  away: {} ({error})", status.postgres_url),
    }
}
