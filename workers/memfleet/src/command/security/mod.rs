//! `memfleet security`

mod attack;
mod validate;

use std::path::PathBuf;

use anyhow::{Context, ensure};
use clap::{Args, Subcommand};
use cli::{key_file, outln};
use config::Settings;
use trust::GrantKey;

use validate::ValidateArgs;

use super::revocations;

const HELP: &str = "\
Workers access rows and data keys of users with grants. Issuers, the database and the key store share the key that
authenticates them:

  memfleet security key generate main --out grant.key
  memfleet security key add grant.key
  MEMFLEET_TRUST__GRANT_KEY_FILE=grant.key memfleet run token-issuer";

/// Tests the isolation of the database, manages grant keys, and brings revocations to the key store.
#[derive(Debug, Args)]
#[command(after_help = HELP)]
pub struct SecurityArgs {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, Subcommand)]
enum What {
    /// Create a grant key, register one in the database and the key store, or retire one.
    #[command(subcommand)]
    Key(Key),
    /// Attack the configured database with every worker's role, and report what succeeds. Changes nothing.
    Validate(ValidateArgs),
    /// Bring what was revoked from the database to the key store, if that was unreachable or was restored from a backup.
    Sync,
}

#[derive(Debug, Subcommand)]
enum Key {
    /// Print a new grant key, or write it to a file. Store it where only the workers can read it.
    Generate {
        /// The key's name: 1 to 32 characters of a-z 0-9 -.
        name: String,
        /// Create this file, which only its owner can read, instead of printing the key. An existing file is not
        /// overwritten.
        #[arg(long, value_name = "FILE")]
        out: Option<PathBuf>,
    },
    /// Register a grant key in the configured database and key store, which then accept its grants. Replaces a key of the
    /// same name.
    Add {
        /// The file that holds the key.
        file: PathBuf,
    },
    /// Retire a grant key: the database and the key store reject its grants, also where they are in use.
    Retire {
        /// The key's name.
        name: String,
    },
}

/// Runs `memfleet security`.
///
/// # Errors
/// If the key is invalid, the database is unreachable or rejects the key, or validation reports findings.
pub async fn execute(args: SecurityArgs, settings: &Settings) -> anyhow::Result<()> {
    let key = match args.what {
        What::Key(key) => key,
        What::Validate(args) => return validate::execute(&args, settings).await,
        What::Sync => return sync(settings).await,
    };
    match key {
        Key::Generate { name, out } => {
            key_file::write_new(out.as_deref(), &GrantKey::generate(&name)?.expose_line())?;
        }
        Key::Add { file } => {
            let key = GrantKey::read(&file)?;
            add(&key, settings).await?;
            outln!("registered grant key {}; the database and the key store accept its grants", key.name());
        }
        Key::Retire { name } => {
            let mut connection = database(settings).await?;
            let retired = store::security::retire_grant_key(&mut connection, &name).await;
            ensure!(
                retired.context("cannot retire the key; is postgres.url an administrator?")?,
                "no grant key {name} is registered"
            );
            outln!("retired grant key {name}; its grants are rejected");
            revocations::sync_after(&mut connection, settings).await?;
        }
    }
    Ok(())
}

async fn database(settings: &Settings) -> anyhow::Result<store::Connection> {
    cli::database::connect(&settings.postgres.url, "postgres.url", "the database").await
}

async fn sync(settings: &Settings) -> anyhow::Result<()> {
    let found = revocations::sync(&mut database(settings).await?, settings).await?;
    for phrase in found.phrases() {
        outln!("the key store was told of {phrase}");
    }
    if found.is_none() {
        outln!("nothing to do: the key store knows what was revoked");
    }
    Ok(())
}

/// Registers a grant key in the key store and in the database, in this order: a grant that the database accepts and the
/// key store does not would hold up requests with secrets.
async fn add(key: &GrantKey, settings: &Settings) -> anyhow::Result<()> {
    let mut connection = database(settings).await?;
    let mut key_store = cli::database::connect(&settings.keys.url, "keys.url", "the key store").await?;
    store::security::add_grant_key(&mut key_store, key.name(), key.expose()).await.context(
        "cannot register the key in the key store, nor was it in the database; does `memfleet keys migrate` report it up \
         to date, and is keys.url an administrator?",
    )?;
    store::security::add_grant_key(&mut connection, key.name(), key.expose()).await.context(
        "cannot register the key in the database; is it migrated, and postgres.url an administrator?",
    )
}
