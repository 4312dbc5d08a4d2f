//! `memfleet status`

mod broker_part;
mod database_part;

use broker_part::BrokerStatus;
use clap::Args;
use cli::outln;
use cli::output::{out_json, printable};
use config::{Settings, without_password};
use database_part::DatabaseStatus;
use serde::Serialize;

/// Shows streams, lag, consumers, dead letters, database and versions.
///
/// If a server is unreachable, the error is shown in its place and the exit status is 1. It is 1 also if a stream,
/// consumer or schedule is missing that a worker needs.
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

/// The status of a server, or why it could not be read.
#[derive(Debug, Serialize)]
#[serde(untagged)]
enum Part<T> {
    Available(T),
    Unavailable { error: String },
}

impl<T> From<anyhow::Result<T>> for Part<T> {
    fn from(result: anyhow::Result<T>) -> Self {
        match result {
            Ok(part) => Self::Available(part),
            Err(error) => Self::Unavailable { error: format!("{error:#}") },
        }
    }
}

/// Runs `memfleet status`.
///
/// # Errors
/// If a server is unreachable, or the broker lacks a stream, a consumer or a schedule. What is known is printed first.
pub async fn execute(args: StatusArgs, settings: &Settings) -> anyhow::Result<()> {
    let (nats, postgres) = tokio::join!(broker_part::read(settings), database_part::read(settings));
    let status = Status {
        version: env!("CARGO_PKG_VERSION"),
        nats_url: without_password(&settings.nats.url),
        postgres_url: without_password(&settings.postgres.url),
        nats: nats.into(),
        postgres: postgres.into(),
    };
    if args.json {
        out_json(serde_json::to_string(&status)?);
    } else {
        show(&status);
    }
    let unavailable: Vec<&str> = [
        ("NATS", matches!(status.nats, Part::Unavailable { .. })),
        ("PostgreSQL", matches!(status.postgres, Part::Unavailable { .. })),
    ]
    .into_iter()
    .filter_map(|(name, is_unavailable)| is_unavailable.then_some(name))
    .collect();
    anyhow::ensure!(unavailable.is_empty(), "{} unavailable; see above", unavailable.join(" and "));
    if let Part::Available(nats) = &status.nats {
        anyhow::ensure!(
            nats.missing.is_empty(),
            "NATS lacks {}; `memfleet nats apply` creates what is missing",
            nats.missing.join(", ")
        );
    }
    Ok(())
}

fn show(status: &Status) {
    outln!("memfleet    {}", status.version);
    match &status.nats {
        Part::Available(part) => {
            outln!("NATS        {}, {}", part.version, status.nats_url);
            part.show();
        }
        Part::Unavailable { error } => outln!("NATS        unavailable: {}", printable(error)),
    }
    outln!();
    match &status.postgres {
        Part::Available(part) => {
            outln!("PostgreSQL  {}, {}", part.version, status.postgres_url);
            part.show();
        }
        Part::Unavailable { error } => {
            outln!("PostgreSQL  unavailable: {} ({})", status.postgres_url, printable(error));
        }
    }
}
