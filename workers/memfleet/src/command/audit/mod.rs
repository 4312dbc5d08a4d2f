//! `memfleet audit`

pub mod retention;
pub mod retire;
pub mod seal;
mod show;
mod verify;

use std::path::{Path, PathBuf};

use anyhow::Context;
use clap::{Args, Subcommand};
use cli::{key_file, out};
use config::Settings;
use fleet::sealer::seal_key;
use store::Connection;
use trust::{PrivateKey, PublicKey};

use show::TrailArgs;
use verify::VerifyArgs;

const HELP: &str = "\
Seals are signed with a key that the database cannot read, and anchored in NATS:

  memfleet audit key generate main --out seal.key
  memfleet audit key public seal.key > seal.pub
  MEMFLEET_AUDIT__SEAL_KEY_FILE=seal.key memfleet audit seal --follow
  MEMFLEET_AUDIT__PUBLIC_KEYS_FILE=seal.pub memfleet audit verify";

/// Seals and verifies the audit trail, and shows the entries of a user.
#[derive(Debug, Args)]
#[command(after_help = HELP)]
pub struct AuditArgs {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, Subcommand)]
enum What {
    /// Seal the rows of finished transactions, and anchor the seals in NATS.
    Seal(seal::SealArgs),
    /// Recompute every seal, and report rows that were changed, removed or added after sealing.
    Verify(VerifyArgs),
    /// Show how long the trail is kept and what is due, or set it.
    Retention(retention::RetentionArgs),
    /// Remove rows whose retention is over, and state it under the seal key.
    Retire(retire::RetireArgs),
    /// Show the audit trail of a user, newest entries first.
    Trail(TrailArgs),
    /// Create a seal key, or print its public key.
    #[command(subcommand)]
    Key(Key),
}

#[derive(Debug, Subcommand)]
enum Key {
    /// Print a new private key, or write it to a file. Store it where the database cannot read it.
    Generate {
        /// The key's name: 1 to 32 characters of a-z 0-9 -.
        name: String,
        /// Create this file, which only its owner can read, instead of printing the key. An existing file is not
        /// overwritten.
        #[arg(long, value_name = "FILE")]
        out: Option<PathBuf>,
    },
    /// Print the public key of a private key, for `audit verify`.
    Public {
        /// The file that holds the private key.
        file: PathBuf,
    },
}

/// Runs `memfleet audit`.
///
/// # Errors
/// If a key is invalid, the database or the broker is unreachable, or verification finds a difference.
pub async fn execute(args: AuditArgs, settings: &Settings) -> anyhow::Result<()> {
    match args.what {
        What::Seal(args) => seal::execute(&args, settings).await,
        What::Verify(args) => verify::execute(&args, settings).await,
        What::Retention(args) => retention::execute(&args, settings).await,
        What::Retire(args) => retire::execute(&args, settings).await,
        What::Trail(args) => show::execute(&args, settings).await,
        What::Key(Key::Generate { name, out }) => {
            key_file::write_new(out.as_deref(), &PrivateKey::generate(&name)?.expose_line())
        }
        What::Key(Key::Public { file }) => {
            out!("{}", PrivateKey::read(&file)?.public().line());
            Ok(())
        }
    }
}

async fn database(settings: &Settings) -> anyhow::Result<Connection> {
    cli::database::connect(&settings.postgres.url, "postgres.url", "the audit trail").await
}

/// The public keys whose signatures are accepted.
fn public_keys(settings: &Settings) -> anyhow::Result<Vec<PublicKey>> {
    match &settings.audit.public_keys_file {
        Some(file) => PublicKey::read_all(Path::new(file)).context("audit.public_keys_file"),
        None if settings.audit.seal_key_file.is_some() => Ok(vec![seal_key(settings)?.public()]),
        None => anyhow::bail!(
            "audit.public_keys_file is not set; verification needs the public keys that the seals are signed with"
        ),
    }
}

/// The public keys of receipts of erasures; none if nothing is configured, and nothing was erased.
fn receipt_keys(settings: &Settings) -> anyhow::Result<Vec<PublicKey>> {
    privacy::receipt::public_keys(&settings.privacy).context("the keys of receipts cannot be read")
}
