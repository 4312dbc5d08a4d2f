//! `memfleet audit`

pub mod seal;
mod show;
mod verify;

use std::path::{Path, PathBuf};

use anyhow::Context;
use clap::{Args, Subcommand};
use cli::out;
use config::Settings;
use fleet::sealer::seal_key;
use store::Connection;
use trust::{PrivateKey, PublicKey};

use show::TrailArgs;
use verify::VerifyArgs;

const HELP: &str = "\
Seals are signed with a key that the database cannot read, and told to the broker:

  memfleet audit key generate main > seal.key
  memfleet audit key public seal.key > seal.pub
  MEMFLEET_AUDIT__SEAL_KEY_FILE=seal.key memfleet audit seal --follow
  MEMFLEET_AUDIT__PUBLIC_KEYS_FILE=seal.pub memfleet audit verify";

/// The audit trail: its seals, its proof, and what it tells of a user.
#[derive(Debug, Args)]
#[command(after_help = HELP)]
pub struct AuditArgs {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, Subcommand)]
enum What {
    /// Seal what is finished, and tell the broker of the seals.
    Seal(seal::SealArgs),
    /// Recompute every seal, and name what is not as it was sealed.
    Verify(VerifyArgs),
    /// Show what the trail tells of a user, the newest first.
    Trail(TrailArgs),
    /// Make a key of seals, or show its public half.
    #[command(subcommand)]
    Key(Key),
}

#[derive(Debug, Subcommand)]
enum Key {
    /// Print a new private key. Keep it where the database cannot read it.
    Generate {
        /// Its name: 1 to 32 of a-z 0-9 -.
        name: String,
    },
    /// Print the public half of a private key, for whoever verifies.
    Public {
        /// The file that holds the private key.
        file: PathBuf,
    },
}

/// Carries out `memfleet audit`.
///
/// # Errors
/// If a key is none, the database or the broker cannot be reached, or the trail is not as it was sealed.
pub async fn execute(args: AuditArgs, settings: &Settings) -> anyhow::Result<()> {
    match args.what {
        What::Seal(args) => seal::execute(&args, settings).await,
        What::Verify(args) => verify::execute(&args, settings).await,
        What::Trail(args) => show::execute(&args, settings).await,
        What::Key(Key::Generate { name }) => {
            out!("{}", PrivateKey::generate(&name)?.expose_line());
            Ok(())
        }
        What::Key(Key::Public { file }) => {
            out!("{}", PrivateKey::read(&file)?.public().line());
            Ok(())
        }
    }
}

async fn database(settings: &Settings) -> anyhow::Result<Connection> {
    store::connect(&settings.postgres.url)
        .await
        .context("cannot read the audit trail of postgres.url; for local servers, run `memfleet dev`")
}

/// The keys whose signatures are good.
fn public_keys(settings: &Settings) -> anyhow::Result<Vec<PublicKey>> {
    match &settings.audit.public_keys_file {
        Some(file) => PublicKey::read_all(Path::new(file)).context("audit.public_keys_file"),
        None if settings.audit.seal_key_file.is_some() => Ok(vec![seal_key(settings)?.public()]),
        None => anyhow::bail!(
            "audit.public_keys_file is not set: it names the keys whose signatures are good; without one nothing is proven"
        ),
    }
}
