//! `memfleet token key`

use std::path::PathBuf;

use anyhow::{Context, ensure};
use clap::Subcommand;
use cli::table::{Align, Table};
use cli::{key_file, outln};
use config::Settings;
use store::registry;
use trust::PrivateKey;

/// To rotate keys without downtime: generate a key with a new name, add it, switch the issuers to it, and retire the
/// old key once its last token has expired and all messages stored with such tokens have been processed.
#[derive(Debug, Subcommand)]
pub(super) enum KeyCommand {
    /// Print a new private key, or write it to a file. Store it where only token issuers can read it.
    Generate {
        /// The key's name: 1 to 32 characters of a-z 0-9 -. A name is never reused for another key.
        name: String,
        /// Create this file, which only its owner can read, instead of printing the key. An existing file is not
        /// overwritten.
        #[arg(long, value_name = "FILE")]
        out: Option<PathBuf>,
    },
    /// Register a signing key: accept tokens it signs. Only its public key is stored in the database.
    Add {
        /// The file that holds the private key.
        file: PathBuf,
    },
    /// Retire a signing key: reject every token it signed, on all replicas within one second.
    Retire {
        /// The key's name.
        name: String,
    },
    /// List the registered signing keys.
    List,
}

pub(super) async fn execute(command: KeyCommand, settings: &Settings) -> anyhow::Result<()> {
    match command {
        KeyCommand::Generate { name, out } => {
            key_file::write_new(out.as_deref(), &PrivateKey::generate(&name)?.expose_line())?;
        }
        KeyCommand::Add { file } => {
            let key = PrivateKey::read(&file)?.public();
            let mut connection = super::registry(settings).await?;
            let added = registry::add_token_key(&mut connection, &key).await;
            let added = added.context(
                "cannot register the key; is the database migrated, and postgres.url an administrator?",
            )?;
            ensure!(
                added,
                "another key is registered as {}, or this key under another name; generate a key with a new name",
                key.name()
            );
            outln!("registered signing key {}; its tokens are accepted", key.name());
        }
        KeyCommand::Retire { name } => {
            let mut connection = super::registry(settings).await?;
            ensure!(
                registry::retire_token_key(&mut connection, &name).await?,
                "no signing key {name}; `memfleet token key list` shows all"
            );
            outln!("retired signing key {name}; its tokens are rejected");
        }
        KeyCommand::List => {
            let mut connection = super::registry(settings).await?;
            let state = registry::trust_state(&mut connection).await?;
            let mut keys: Vec<_> = state.keys.values().collect();
            keys.sort_by_key(|key| key.name().to_owned());
            let mut table = Table::new([("key", Align::Left), ("public key", Align::Left)]);
            for key in keys {
                table.row([key.name().to_owned(), trust::text::to_hex(&key.to_bytes())]);
            }
            outln!("{table}");
        }
    }
    Ok(())
}
