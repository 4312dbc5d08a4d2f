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

#[derive(Debug, Subcommand)]
pub(super) enum ServiceCommand {
    /// Register a service, or change what it may do. A disabled one is enabled again.
    Put(PutArgs),
    /// Register the services of a file as nats/services.json is; that file by default. Rates stay, and a service that is
    /// disabled stays so.
    Load {
        /// The file.
        file: Option<PathBuf>,
    },
    /// Disable a service: reject all its tokens, on every replica within one second.
    Disable {
        /// Its name.
        service: Service,
    },
    /// List the services that are registered and not disabled.
    List,
}

#[derive(Debug, Args)]
pub(super) struct PutArgs {
    /// Its name: 1 to 64 of a-z 0-9 -.
    service: Service,
    /// What its tokens may allow, as noun:verb, noun:* or *:*; several times for several.
    #[arg(long = "scope", required = true, value_name = "SCOPE")]
    scopes: Vec<Scope>,
    /// The most requests a second that one replica of a worker lets through; trust.service_per_second by default.
    #[arg(long, value_name = "RATE", value_parser = rate())]
    per_second: Option<u32>,
    /// The same for one noun and verb; trust.scope_per_second by default.
    #[arg(long, value_name = "RATE", value_parser = rate())]
    scope_per_second: Option<u32>,
    /// The same for one user; trust.user_per_second by default.
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
            registry::put_service(&mut connection, &args.service, &entry).await?;
            outln!("{} may do {}", args.service, Scope::list(&entry.scopes));
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
        ("for a scope", Align::Right),
        ("for a user", Align::Right),
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
