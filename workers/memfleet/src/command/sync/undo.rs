//! `memfleet sync undo`

use std::time::Duration;

use anyhow::{Context, bail, ensure};
use clap::Args;
use cli::outln;
use cli::output::printable;
use cli::tokens::Tokens;
use client::{Client, ClientOptions};
use config::Settings;
use contract::{OutcomeStatus, Service, SyncProblem, SyncUndo, SyncUndone, Text, UserId};
use runtime::broker;
use store::Connection;
use uuid::Uuid;

use super::counted;
use super::load::{self, Sync};

#[derive(Debug, Args)]
pub(super) struct UndoArgs {
    /// The id of the sync.
    #[arg(value_name = "SYNC")]
    sync: Uuid,
    /// Its user, if several users have a sync with this id.
    #[arg(long, value_name = "ID")]
    user: Option<UserId>,
    /// Why, for the record.
    #[arg(long, value_name = "TEXT", value_parser = |text: &str| Text::<1, 2048>::new(text))]
    reason: Option<Text<1, 2048>>,
    /// The service to act as. Default: the service that started the sync.
    #[arg(long)]
    service: Option<Service>,
    /// The service token. Default: a new one, signed with trust.token_key_file and trust.grant_key_file.
    #[arg(long, env = "MEMFLEET_TOKEN", hide_env_values = true, value_name = "TOKEN")]
    token: Option<String>,
    /// Seconds to wait for the outcome, 1 to 3600.
    #[arg(long, value_name = "SECONDS", default_value_t = 30, value_parser = clap::value_parser!(u64).range(1..=3600))]
    timeout: u64,
}

pub(super) async fn execute(args: UndoArgs, settings: &Settings) -> anyhow::Result<()> {
    let mut connection = super::connect(settings).await?;
    let sync = load::one(&mut connection, args.sync, args.user).await?;
    let service = match args.service {
        Some(service) => service,
        None => {
            let started_by = &sync.info.service;
            let service = started_by.parse();
            service.with_context(|| format!("the sync was started by {started_by:?}; pass --service"))?
        }
    };
    let tokens = Tokens::open(settings, args.token).await?;
    ensure!(
        !tokens.is_none(),
        "no service token: pass --token, or set trust.token_key_file and trust.grant_key_file"
    );
    let nats = broker::connect(&settings.nats, service.as_str()).await?;
    let options = ClientOptions {
        payload_ring_file: settings.trust.payload_ring_file.clone().map(Into::into),
        outcome_timeout: Duration::from_secs(args.timeout),
        ..ClientOptions::new(&settings.nats.url, service.clone())
    };
    let client = Client::over(nats, tokens.of_service(service), &options)?;
    let request = SyncUndo { sync_id: args.sync, reason: args.reason };
    let outcome = client.user(sync.user_id).send(request).await?;
    match outcome.status {
        OutcomeStatus::Unchanged | OutcomeStatus::Dead => bail!(
            "nothing of sync {} was undone: {}",
            args.sync,
            printable(outcome.reason.as_deref().unwrap_or("no reason given"))
        ),
        OutcomeStatus::Applied => {
            let id = outcome.request_id.context("the outcome names no request")?;
            report(&mut connection, &sync, id).await
        }
    }
}

async fn report(connection: &mut Connection, sync: &Sync, request: Uuid) -> anyhow::Result<()> {
    let undone = load::undone(connection, sync, request).await?;
    let (restored, nodes) = undone.iter().fold((0, 0), |(keys, nodes), event: &SyncUndone| {
        (keys + event.restored.len(), nodes + event.nodes.len())
    });
    let has_undone = restored + nodes > 0;
    if has_undone {
        outln!(
            "{} of session {} restored as before sync {}",
            counted(restored as u64, "key"),
            printable(&sync.info.target_session_id),
            sync.info.sync_id
        );
    }
    if nodes > 0 {
        outln!("{} removed", counted(nodes as u64, "reference"));
    }
    let named: Vec<&SyncProblem> = undone.iter().flat_map(|event| &event.dependents).collect();
    let staying = undone.iter().map(|event| event.staying).max().unwrap_or(0);
    if staying > 0 {
        outln!("{} not restored, because something newer depends on it:", counted(staying, "key"));
    }
    for problem in &named {
        outln!("    {}", printable(&problem.reason));
    }
    let omitted = staying.saturating_sub(named.len() as u64);
    if omitted > 0 {
        outln!("    and {} more", counted(omitted, "key"));
    }
    ensure!(
        has_undone,
        "nothing of sync {} was undone: something newer depends on what is left of it",
        sync.info.sync_id
    );
    Ok(())
}
