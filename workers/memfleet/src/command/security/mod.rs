//! `memfleet security`

mod attack;
mod validate;

use std::path::PathBuf;

use anyhow::Context;
use clap::{Args, Subcommand};
use cli::{out, outln};
use config::Settings;
use trust::GrantKey;

use validate::ValidateArgs;

const HELP: &str = "\
Workers write under grants. A key that the database knows too seals them:

  memfleet security key generate main > grant.key
  memfleet security key add grant.key
  MEMFLEET_TRUST__GRANT_KEY_FILE=grant.key memfleet run context-writer";

/// Tests the isolation of the database, and manages the keys that seal grants.
#[derive(Debug, Args)]
#[command(after_help = HELP)]
pub struct SecurityArgs {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, Subcommand)]
enum What {
    /// Create a key, or register one in the database.
    #[command(subcommand)]
    Key(Key),
    /// Attack the configured database with every worker's role, and report what succeeds. Changes nothing.
    Validate(ValidateArgs),
}

#[derive(Debug, Subcommand)]
enum Key {
    /// Print a new key. Keep it where only the workers can read it.
    Generate {
        /// Its name: 1 to 32 of a-z 0-9 -.
        name: String,
    },
    /// Register a key in the configured database, which then accepts grants sealed with it. A key of the same name is replaced.
    Add {
        /// The file that holds it.
        file: PathBuf,
    },
}

/// Runs `memfleet security`.
///
/// # Errors
/// If the key is none, or the database cannot be reached or refuses.
pub async fn execute(args: SecurityArgs, settings: &Settings) -> anyhow::Result<()> {
    let key = match args.what {
        What::Key(key) => key,
        What::Validate(args) => return validate::execute(&args, settings).await,
    };
    match key {
        Key::Generate { name } => out!("{}", GrantKey::generate(&name)?.expose_line()),
        Key::Add { file } => {
            let key = GrantKey::read(&file)?;
            let mut connection = store::connect(&settings.postgres.url)
                .await
                .context("the key goes to the database that postgres.url names")?;
            store::security::add_grant_key(&mut connection, key.name(), key.expose())
                .await
                .context("the database does not take the key; it needs its schema and an administrator")?;
            outln!("the database accepts grants of the key {}", key.name());
        }
    }
    Ok(())
}
