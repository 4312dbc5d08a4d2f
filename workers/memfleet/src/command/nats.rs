//! `memfleet nats`

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context;
use async_nats::jetstream;
use clap::{Args, Subcommand};
use cli::output::printable;
use cli::{out, outln};
use config::Settings;
use runtime::broker;
use topology::{Change, Document, INCLUDED_NKEYS, Service, Topology};

const DAY: Duration = Duration::from_secs(24 * 60 * 60);

/// Creates and updates the broker's streams and consumers, and generates its accounts, keys and certificates.
///
/// Streams and consumers are derived from the workers of this program; `--dir` reads them from files instead. Only
/// fields set there are compared and changed. Nothing is ever deleted, and applying twice changes nothing the second
/// time.
#[derive(Debug, Args)]
pub struct NatsArgs {
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// Show what `apply` would change, without changing anything.
    ///
    /// Prints one line per change: `+` creates, `~` updates from the broker's value to the new one.
    Diff {
        #[command(flatten)]
        source: Source,
        /// Exit with 1 if there is a difference.
        #[arg(long)]
        check: bool,
    },
    /// Print accounts.conf for the NATS server: the publish and subscribe permissions of each identity.
    Render {
        /// The services, in the form of nats/services.json; that file by default.
        #[arg(long, value_name = "FILE")]
        services: Option<PathBuf>,
        /// Write `accounts.conf`, `streams/*.json` and `consumers/*.json` into this folder instead.
        #[arg(long, value_name = "DIR")]
        folder: Option<PathBuf>,
    },
    /// Create an nkey for each identity without one, and print nkeys.conf with the public keys.
    Keys {
        /// The services, in the form of nats/services.json; that file by default.
        #[arg(long, value_name = "FILE")]
        services: Option<PathBuf>,
        /// Folder for the private keys, one file <name>.nk each. Give each service and worker only its own file.
        #[arg(value_name = "DIR")]
        dir: PathBuf,
    },
    /// Create a certificate for the NATS servers with these names: server.pem and server.key, signed by ca.pem.
    ///
    /// The CA (ca.pem, ca.key) is created if it is missing and is kept otherwise; earlier server files are replaced. Give
    /// the servers server.pem, server.key and ca.pem, the clients ca.pem (nats.ca_file). Keep ca.key apart from all of
    /// them.
    Certificates {
        /// Folder for the files.
        #[arg(value_name = "DIR")]
        dir: PathBuf,
        /// A name or an IP address by which clients or other servers reach a server; may be repeated.
        #[arg(long, value_name = "HOST", required = true)]
        host: Vec<String>,
        /// Days until the certificate expires.
        #[arg(long, value_name = "DAYS", default_value_t = 825, value_parser = clap::value_parser!(u16).range(1..=3650))]
        days: u16,
    },
    /// Show the differences, then create and update streams and consumers.
    Apply {
        #[command(flatten)]
        source: Source,
    },
}

#[derive(Debug, Args)]
struct Source {
    /// Folder with `streams/*.json` and `consumers/*.json` to use instead of the built-in streams and consumers.
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
    /// Replicas of each stream (`num_replicas`); use 3 in a production cluster.
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

/// Runs `memfleet nats`.
///
/// # Errors
/// If a file cannot be read or written, the broker is unreachable or rejects a change, or `diff --check` finds a
/// difference.
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
        Action::Certificates { dir, host, days } => {
            topology::make_certificates(dir, host, DAY * u32::from(*days))?;
            outln!("wrote server.pem and server.key to {}, valid for {days} days", dir.display());
            return Ok(());
        }
    };
    let topology = source.topology()?;
    let client = broker::connect_operator(&settings.nats, "provision").await?;
    let jetstream = jetstream::new(client);
    let changes = topology::diff(&jetstream, &topology).await.context(
        "cannot read the streams; is JetStream enabled, and may these credentials manage streams?",
    )?;
    show(&changes);
    if changes.is_empty() {
        outln!("nothing to do: the broker's streams and consumers are up to date");
    } else if to_apply {
        let done = topology::apply(&jetstream, &topology).await?;
        outln!("applied {} {}", done.len(), if done.len() == 1 { "change" } else { "changes" });
    } else if check {
        anyhow::bail!("the broker's streams or consumers differ; run `memfleet nats apply` to update them");
    }
    Ok(())
}

fn services_of(file: Option<&Path>) -> anyhow::Result<Vec<Service>> {
    Ok(match file {
        Some(file) => Service::read(file)?,
        None => Service::shipped()?,
    })
}

/// Writes documents into a folder, which is created if missing.
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
        outln!("{}", printable(&change.to_string()));
    }
}
