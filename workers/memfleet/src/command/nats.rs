//! `memfleet nats`

use std::path::{Path, PathBuf};

use anyhow::Context;
use async_nats::jetstream;
use clap::{Args, Subcommand};
use cli::{out, outln};
use config::Settings;
use runtime::broker;
use topology::{Change, Document, INCLUDED_NKEYS, Service, Topology};

/// Creates and updates the broker's streams and consumers, and generates its accounts and keys.
///
/// Streams and consumers follow from the workers of this program; `--dir` names a folder of files to use instead. Only the fields
/// that they name are compared and changed. Nothing is ever deleted, and applying twice does nothing the second time.
#[derive(Debug, Args)]
pub struct NatsArgs {
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// Show what `apply` would do, and do nothing.
    ///
    /// One line for each change: `+` is created, `~` is changed, from the broker's value to the new one.
    Diff {
        #[command(flatten)]
        source: Source,
        /// Exit with 1 if there is a difference.
        #[arg(long)]
        check: bool,
    },
    /// Print accounts.conf: who may publish and subscribe where, for the server's configuration.
    Render {
        /// The services, in the form of nats/services.json; that file by default.
        #[arg(long, value_name = "FILE")]
        services: Option<PathBuf>,
        /// Write `accounts.conf`, `streams/*.json` and `consumers/*.json` into this folder instead.
        #[arg(long, value_name = "DIR")]
        folder: Option<PathBuf>,
    },
    /// Create a key for every identity that has none yet, and print nkeys.conf with the public keys.
    Keys {
        /// The services, in the form of nats/services.json; that file by default.
        #[arg(long, value_name = "FILE")]
        services: Option<PathBuf>,
        /// The folder of the private keys, a file <name>.nk each. Give each service and worker its own and no other.
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
    /// Folder with `streams/*.json` and `consumers/*.json`, instead of the streams and consumers of this program.
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
    /// Servers that store each stream (`num_replicas`): 3 for a production cluster.
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
        Action::Render { services, folder } => {
            let services = services_of(services.as_deref())?;
            match folder {
                Some(folder) => write_all(folder, &topology::documents(&services)?)?,
                None => out!("{}", topology::render(&services, INCLUDED_NKEYS)),
            }
            return Ok(());
        }
        Action::Keys { services, dir } => {
            let services = services_of(services.as_deref())?;
            out!("{}", topology::make_nkeys(dir, &topology::identities(&services))?);
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
        outln!("nothing to do: the broker's streams and consumers are up to date");
    } else if to_apply {
        let done = topology::apply(&jetstream, &topology).await?;
        outln!("applied {} {}", done.len(), if done.len() == 1 { "change" } else { "changes" });
    } else if check {
        anyhow::bail!("the broker's streams or consumers differ; `memfleet nats apply` updates them");
    }
    Ok(())
}

fn services_of(file: Option<&Path>) -> anyhow::Result<Vec<Service>> {
    Ok(match file {
        Some(file) => Service::read(file)?,
        None => Service::shipped()?,
    })
}

/// Writes documents into a folder, which it creates.
fn write_all(folder: &Path, documents: &[Document]) -> anyhow::Result<()> {
    for Document { path, text } in documents {
        let file = folder.join(path);
        let written = file.parent().map_or(Ok(()), std::fs::create_dir_all);
        written
            .and_then(|()| std::fs::write(&file, text))
            .with_context(|| format!("cannot write {}", file.display()))?;
    }
    outln!("wrote {} files to {}", documents.len(), folder.display());
    Ok(())
}

fn show(changes: &[Change]) {
    for change in changes {
        outln!("{change}");
    }
}
