//! `memfleet token key`

use std::path::PathBuf;

use anyhow::{Context, ensure};
use clap::Subcommand;
use cli::table::{Align, Table};
use cli::{out, outln};
use config::Settings;
use store::registry;
use trust::PrivateKey;

/// To change keys without a pause: generate a new one under a new name, add it, have the issuers use it, and retire the old
/// one when the last of its tokens has ended and the messages that were stored with it are written.
#[derive(Debug, Subcommand)]
pub(super) enum KeyCommand {
    /// Print a new private key. Keep it where only the issuers can read it.
    Generate {
        /// Its name: 1 to 32 of a-z 0-9 -. A name stands for one key for ever.
        name: String,
    },
    /// Have tokens believed that a key signs. Only its public half goes to the database.
    Add {
        /// The file that holds the private key.
        file: PathBuf,
    },
    /// Have tokens believed no more that a key signed, on every replica within a second.
    Retire {
        /// Its name.
        name: String,
    },
    /// List the keys in use.
    List,
}

pub(super) async fn execute(command: KeyCommand, settings: &Settings) -> anyhow::Result<()> {
    match command {
        KeyCommand::Generate { name } => out!("{}", PrivateKey::generate(&name)?.expose_line()),
        KeyCommand::Add { file } => {
            let key = PrivateKey::read(&file)?.public();
            let mut connection = super::registry(settings).await?;
            let added = registry::add_token_key(&mut connection, &key).await;
            let added = added.context("the key is not taken; it needs the schema and an administrator")?;
            ensure!(
                added,
                "another key has the name {}, or this key has another name; give a new key a new name",
                key.name()
            );
            outln!("tokens of the key {} are believed", key.name());
        }
        KeyCommand::Retire { name } => {
            let mut connection = super::registry(settings).await?;
            ensure!(registry::retire_token_key(&mut connection, &name).await?, "there is no key {name}");
            outln!("tokens of the key {name} are believed no more");
        }
        KeyCommand::List => {
            let mut connection = super::registry(settings).await?;
            let state = registry::trust_state(&mut connection).await?;
            let mut keys: Vec<_> = state.keys.values().collect();
            keys.sort_by_key(|key| key.name().to_owned());
            let mut table = Table::new([("key", Align::Left), ("public half", Align::Left)]);
            for key in keys {
                table.row([key.name().to_owned(), trust::text::to_hex(&key.to_bytes())]);
            }
            outln!("{table}");
        }
    }
    Ok(())
}
