//! `memfleet token service`

use std::path::PathBuf;

use anyhow::ensure;
use clap::{Args, Subcommand};
use cli::outln;
use cli::services;
use cli::table::{Align, Table};
use config::Settings;
use contract::Service;
use store::registry::{self, Rates, ServiceEntry};
use trust::{MAX_SCOPES, Scope};

use crate::command::revocations;

#[derive(Debug, Subcommand)]
pub(super) enum ServiceCommand {
    /// Register a service, or replace its scopes and rates. Re-enables a disabled service.
    Put(PutArgs),
    /// Register all services of a file. Keeps existing rates, and keeps disabled services disabled.
    Load {
        /// The file, in the format of nats/services.json; default: the built-in copy of that file.
        file: Option<PathBuf>,
    },
    /// Disable a service: reject all its tokens, on all replicas within one second.
    Disable {
        /// The service's name.
        service: Service,
    },
    /// List registered services that are not disabled.
    List,
}

#[derive(Debug, Args)]
pub(super) struct PutArgs {
    /// The service's name: 1 to 64 characters of a-z 0-9 -.
    service: Service,
    /// A scope its tokens may have, as noun:verb, noun:* or *:*; may be repeated.
    #[arg(long = "scope", required = true, value_name = "SCOPE")]
    scopes: Vec<Scope>,
    /// Rate limit of the service: requests per second at each worker replica. Default: trust.service_per_second.
    #[arg(long, value_name = "RATE", value_parser = rate())]
    per_second: Option<u32>,
    /// Rate limit per noun and verb. Default: trust.scope_per_second.
    #[arg(long, value_name = "RATE", value_parser = rate())]
    scope_per_second: Option<u32>,
    /// Rate limit per user. Default: trust.user_per_second.
    #[arg(long, value_name = "RATE", value_parser = rate())]
    user_per_second: Option<u32>,
}

fn rate() -> clap::builder::RangedI64ValueParser<u32> {
    clap::value_parser!(u32).range(1..=1_000_000)
}

pub(super) async fn execute(command: ServiceCommand, settings: &Settings) -> anyhow::Result<()> {
    let mut connection = super::registry(settings).await?;
    match command {
        ServiceCommand::Put(args) => {
            ensure!(args.scopes.len() <= MAX_SCOPES, "a service has at most {MAX_SCOPES} scopes");
            let rates = Rates {
                of_service: args.per_second,
                of_scope: args.scope_per_second,
                of_user: args.user_per_second,
            };
            let entry = ServiceEntry { scopes: args.scopes, rates };
            let was_disabled = registry::is_disabled(&mut connection, &args.service).await?;
            registry::put_service(&mut connection, &args.service, &entry).await?;
            outln!("registered {} with scopes {}", args.service, Scope::list(&entry.scopes));
            if was_disabled {
                revocations::sync_after(&mut connection, settings).await?;
            }
        }
        ServiceCommand::Load { file } => {
            let services = match file {
                Some(file) => topology::Service::read(&file)?,
                None => topology::Service::shipped()?,
            };
            let names: Vec<String> = services.iter().map(|service| service.service.clone()).collect();
            let disabled = services::register(&mut connection, services).await?;
            outln!("registered {}", names.join(", "));
            if !disabled.is_empty() {
                outln!("still disabled: {}; `memfleet token service put` enables one", disabled.join(", "));
            }
        }
        ServiceCommand::Disable { service } => {
            ensure!(
                registry::disable_service(&mut connection, &service).await?,
                "the service {service} is not registered"
            );
            outln!("{service} is disabled; its tokens are rejected");
            revocations::sync_after(&mut connection, settings).await?;
        }
        ServiceCommand::List => list(registry::trust_state(&mut connection).await?),
    }
    Ok(())
}

fn list(state: registry::TrustState) {
    let mut services: Vec<_> = state.services.into_iter().collect();
    services.sort_by(|a, b| a.0.cmp(&b.0));
    let mut table = Table::new([
        ("service", Align::Left),
        ("scopes", Align::Left),
        ("requests/s", Align::Right),
        ("per scope", Align::Right),
        ("per user", Align::Right),
    ]);
    let rate = |rate: Option<u32>| rate.map_or_else(|| "-".to_owned(), |rate| rate.to_string());
    for (service, entry) in services {
        let Rates { of_service, of_scope, of_user } = entry.rates;
        table.row([
            service.to_string(),
            Scope::list(&entry.scopes),
            rate(of_service),
            rate(of_scope),
            rate(of_user),
        ]);
    }
    outln!("{table}");
}
