//! `memfleet nats`

use std::path::{Path, PathBuf};

use anyhow::Context;
use async_nats::jetstream;
use clap::{Args, Subcommand};
use cli::{out, outln};
use config::Settings;
use runtime::broker;
use topology::{Change, INCLUDED_NKEYS, Service, Topology};

/// Makes the broker's streams and consumers what the files say, and the files that say who may connect.
///
/// The files are built into the program; `--dir` names others. Only what a file names is compared and changed.
/// Nothing is ever deleted, and applying twice does nothing the second time.
#[derive(Debug, Args)]
pub struct NatsArgs {
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// Show what `apply` would do, and do nothing.
    ///
    /// A line each: `+` is created, `~` is changed, from what the broker has to what the file says.
    Diff {
        #[command(flatten)]
        source: Source,
        /// Exit with 1 if there is a difference.
        #[arg(long)]
        check: bool,
    },
    /// Print accounts.conf: who may publish and hear what, for the server's configuration.
    Render {
        /// The services, as nats/services.json is; that file by default.
        #[arg(long, value_name = "FILE")]
        services: Option<PathBuf>,
    },
    /// Make a key for everybody who may connect and has none yet, and print nkeys.conf with the public ones.
    Keys {
        /// The services, as nats/services.json is; that file by default.
        #[arg(long, value_name = "FILE")]
        services: Option<PathBuf>,
        /// Where the private keys are kept, a file <name>.nk each. Give each service and worker its own and no other.
        #[arg(value_name = "DIR")]
        dir: PathBuf,
    },
    /// Show the difference, then create and update streams and consumers.
    Apply {
        #[command(flatten)]
        source: Source,
    },
}

#[derive(Debug, Args)]
struct Source {
    /// Folder that holds `streams/*.json` and `consumers/*.json`, instead of the files that are built in.
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
    /// Servers that keep each stream, in place of the files' `num_replicas`: 3 for a production cluster.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u8).range(1..=5))]
    replicas: Option<u8>,
}

impl Source {
    fn topology(&self) -> anyhow::Result<Topology> {
        let topology = match &self.dir {
            Some(folder) => Topology::read(folder)?,
            None => Topology::shipped()?,
        };
        Ok(match self.replicas {
            Some(replicas) => topology.with_replicas(replicas.into()),
            None => topology,
        })
    }
}

/// Carries out `memfleet nats`.
///
/// # Errors
/// If a file cannot be read, the broker cannot be reached or refuses; with `diff --check` if there is a difference.
pub async fn execute(args: NatsArgs, settings: &Settings) -> anyhow::Result<()> {
    let (source, check, to_apply) = match &args.action {
        Action::Diff { source, check } => (source, *check, false),
        Action::Apply { source } => (source, false, true),
        Action::Render { services } => {
            out!(
                "{}",
                topology::render(&Topology::shipped()?, &services_of(services.as_deref())?, INCLUDED_NKEYS)
            );
            return Ok(());
        }
        Action::Keys { services, dir } => {
            let services = services_of(services.as_deref())?;
            out!("{}", topology::make_nkeys(dir, &topology::identities(&Topology::shipped()?, &services))?);
            return Ok(());
        }
    };
    let topology = source.topology()?;
    let client = broker::connect_operator(&settings.nats, "provision").await?;
    let jetstream = jetstream::new(client);
    let changes = topology::diff(&jetstream, &topology)
        .await
        .context("is JetStream enabled on this server, and may these credentials manage streams?")?;
    show(&changes);
    if changes.is_empty() {
        outln!("nothing to do: the broker has every stream and consumer as the files say");
    } else if to_apply {
        let done = topology::apply(&jetstream, &topology).await?;
        outln!("applied {} {}", done.len(), if done.len() == 1 { "change" } else { "changes" });
    } else if check {
        anyhow::bail!("the broker differs from the files; `memfleet nats apply` makes it what they say");
    }
    Ok(())
}

fn services_of(file: Option<&Path>) -> anyhow::Result<Vec<Service>> {
    Ok(match file {
        Some(file) => Service::read(file)?,
        None => Service::shipped()?,
    })
}

fn show(changes: &[Change]) {
    for change in changes {
        outln!("{change}");
    }
}
