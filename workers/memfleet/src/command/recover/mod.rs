//! `memfleet recover`

mod events;
mod plan;
mod report;
mod requests;
mod scan;

use std::collections::HashMap;
use std::time::Duration;

use anyhow::{Context, ensure};
use async_nats::jetstream;
use chrono::{DateTime, Utc};
use clap::Args;
use cli::output::{out_json, step};
use config::{Settings, without_password};
use contract::{WORKERS, WorkerInfo};
use runtime::broker;
use store::{Connection, recovery};

use crate::command::privacy::hints;

use events::Vanished;
use plan::Plan;
use report::Report;
use requests::{Dead, Requests};

/// Has requests applied again whose effects a restored or promoted database lacks.
///
/// Compares the requests that the broker keeps with the inbox of the database, and prints what is missing: the plan.
/// With --yes, resets each worker's consumer to the oldest missing request, waits until the workers have processed
/// everything up to now, and reports what was applied again. The inbox recognizes requests that the database has, so
/// none takes effect twice; their events are published again under the same ids. Ticks of jobs are left alone, since the
/// next tick does all that is due.
///
/// Also lists events that were published and vanished with their effects, each with the event that replaces it.
/// Subscribers have received both. Needs a role that bypasses row-level security. Point the workers to the new primary
/// first. If anybody was erased since, run `memfleet privacy reapply` before.
#[derive(Debug, Args)]
#[command(group = clap::ArgGroup::new("from").required(true).args(["since", "after_restore"]))]
pub struct RecoverArgs {
    /// Consider requests and events that the broker stored at this time or later, such as 2026-11-29T10:00:00Z.
    #[arg(long, value_name = "TIME")]
    since: Option<DateTime<Utc>>,
    /// Consider everything that the broker keeps.
    #[arg(long)]
    after_restore: bool,
    /// Reset the consumers. Without it, nothing is changed.
    #[arg(long)]
    yes: bool,
    /// Seconds to wait for the workers, 1 to 86400.
    #[arg(long, value_name = "SECONDS", default_value_t = 3_600,
        value_parser = clap::value_parser!(u64).range(1..=86_400))]
    wait: u64,
    /// Print one JSON object.
    #[arg(long)]
    json: bool,
}

/// The broker and the database of the recovery, and the earliest time that is considered.
struct Recovery {
    jetstream: jetstream::Context,
    connection: Connection,
    since: Option<DateTime<Utc>>,
}

/// Runs `memfleet recover`.
///
/// # Errors
/// If a server is unreachable, the database is a standby, hides rows from the role or lacks erasures of which there are
/// receipts, `--since` is later than now or earlier than what the inbox remembers, the broker refuses a reset, or
/// requests are still missing at the end.
pub async fn execute(args: RecoverArgs, settings: &Settings) -> anyhow::Result<()> {
    if let Some(since) = args.since {
        ensure!(since <= Utc::now(), "--since {since} is in the future");
    }
    let mut recovery = Recovery::open(settings, args.since).await?;
    let dead = step("reading dead letters", Dead::read(&recovery.jetstream)).await?;
    let mut requests = Vec::new();
    for worker in WORKERS {
        requests.extend(recovery.requests_of(worker, &dead).await?);
    }
    let vanished = step("comparing events", recovery.vanished()).await?;
    let plan = Plan { requests, vanished };
    if let Some(since) = args.since {
        plan.ensure_remembered(since)?;
    }
    if !args.yes {
        if args.json {
            out_json(serde_json::to_string(&plan)?);
        } else {
            plan.show();
        }
        return Ok(());
    }
    if !args.json {
        plan.show();
    }
    let report = recovery.carry_out(plan, Duration::from_secs(args.wait)).await?;
    if args.json {
        out_json(serde_json::to_string(&report)?);
    } else {
        report.show();
    }
    report.ensure_complete()
}

impl Recovery {
    async fn open(settings: &Settings, since: Option<DateTime<Utc>>) -> anyhow::Result<Self> {
        let url = &settings.postgres.url;
        let mut connection = cli::database::connect(url, "postgres.url", "the restored database").await?;
        let access = recovery::access(&mut connection).await.context("cannot query the database")?;
        ensure!(
            !access.is_standby,
            "PostgreSQL at {} (postgres.url) is a standby, which accepts no writes; promote it first",
            without_password(url)
        );
        ensure!(
            !access.is_restricted,
            "postgres.url names a role that row-level security hides rows from; use a role that bypasses it"
        );
        let unapplied = hints::unapplied(&mut connection, settings).await?;
        ensure!(unapplied == 0, "{}", hints::advice(unapplied));
        let jetstream = jetstream::new(broker::connect_operator(&settings.nats, "recover").await?);
        Ok(Self { jetstream, connection, since })
    }

    /// The requests of a worker that its consumer has delivered. `None` for a worker without requests.
    async fn requests_of(&mut self, worker: &WorkerInfo, dead: &Dead) -> anyhow::Result<Option<Requests>> {
        let Some(stream) = worker.stream else { return Ok(None) };
        let description = format!("comparing {stream} with the inbox of {}", worker.name);
        let requests = Requests::open(&self.jetstream, worker.name, stream).await?;
        let compared = requests.compare(&self.jetstream, &mut self.connection, self.since, dead);
        step(&description, compared).await.map(Some)
    }

    async fn vanished(&mut self) -> anyhow::Result<Vanished> {
        let mut vanished = Vanished::find(&self.jetstream, &mut self.connection, self.since).await?;
        vanished.find_replacements(&mut self.connection).await?;
        Ok(vanished)
    }

    /// Resets the consumers and waits until the workers have processed what they had before.
    async fn carry_out(&mut self, plan: Plan, wait: Duration) -> anyhow::Result<Report> {
        if let Some(number) = plan.vanished.last_number() {
            let advanced = recovery::number_events_after(&mut self.connection, number).await;
            advanced.context("cannot advance the sequence of event numbers")?;
        }
        let deadline = tokio::time::Instant::now() + wait;
        let mut reset = Vec::new();
        for requests in plan.requests.iter().filter(|requests| requests.reset_to().is_some()) {
            requests.reset(&self.jetstream).await?;
            reset.push(requests);
        }
        let mut unfinished = HashMap::new();
        for requests in reset {
            let description = format!("waiting for {}", requests.worker);
            if let Some(left) = step(&description, requests.wait(&self.jetstream, deadline)).await? {
                unfinished.insert(requests.worker, left);
            }
        }
        let dead = Dead::read(&self.jetstream).await?;
        let mut workers = Vec::new();
        for before in plan.requests {
            let after = if before.reset_to().is_some() {
                before.compare_again(&self.jetstream, &mut self.connection, &dead).await?
            } else {
                before.clone()
            };
            let unfinished = unfinished.remove(before.worker).unwrap_or_default();
            workers.push(report::WorkerReport::new(&before, &after, unfinished));
        }
        let mut vanished = plan.vanished;
        vanished.find_replacements(&mut self.connection).await?;
        Ok(Report { workers, vanished })
    }
}
