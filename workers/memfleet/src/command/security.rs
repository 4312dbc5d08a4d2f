//! `memfleet security`

mod attack;
mod validate;

use std::path::PathBuf;

use anyhow::Context;
use clap::{Args, Subcommand};
use config::Settings;
use trust::GrantKey;

use crate::{out, outln};
use validate::ValidateArgs;

const HELP: &str = "\
Workers write under grants, which a key seals that the database knows too:

  memfleet security key generate main > grant.key
  memfleet security key add grant.key
  MEMFLEET_TRUST__GRANT_KEY_FILE=grant.key memfleet run context-writer";

/// Keys of the grants under which workers write, and whether isolation holds.
#[derive(Debug, Args)]
#[command(after_help = HELP)]
pub struct SecurityArgs {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, Subcommand)]
enum What {
    /// Make a key, or tell the database of one.
    #[command(subcommand)]
    Key(Key),
    /// Attack the configured database with every worker's role, and say what goes through. Changes nothing.
    Validate(ValidateArgs),
}

#[derive(Debug, Subcommand)]
enum Key {
    /// Print a new key. Keep it where only the workers can read it.
    Generate {
        /// Its name: 1 to 32 of a-z 0-9 -.
        name: String,
    },
    /// Make the configured database accept grants that a key seals. A key of the same name is replaced.
    Add {
        /// The file that holds it.
        file: PathBuf,
    },
}

/// Carries out `memfleet security`.
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
