//! `memfleet keys`

use std::fs::OpenOptions;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use ::keys::{KEK, Keys, ProviderName, Renewed};
use anyhow::{Context, ensure};
use chrono::{DateTime, SecondsFormat, Utc};
use clap::{Args, Subcommand};
use contract::UserId;
use runtime::Settings;
use trust::{CipherKey, KeyRing};

use crate::command::run::interrupted;
use crate::table::{Align, Table, grouped};
use crate::{errln, outln};

/// Looks after the keys that encrypt fields and payloads.
///
/// A key-encryption key wraps the data keys of users, and those encrypt fields. Data keys are in the key store (keys.url);
/// key-encryption keys are in a file, in Vault or in AWS KMS (keys.provider).
#[derive(Debug, Args)]
pub struct KeysArgs {
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// Bring the key store's schema up to date.
    Migrate,
    /// Add the next version of a key to a ring's file, which is made if it is not there.
    Generate(GenerateArgs),
    /// Show how many data keys each key-encryption key has wrapped.
    List {
        /// Print one JSON object a line.
        #[arg(long)]
        json: bool,
    },
    /// Wrap data keys anew with the current key-encryption key, or make new data keys. Workers go on meanwhile.
    Rotate(RotateArgs),
}

#[derive(Debug, Args)]
struct GenerateArgs {
    /// The file. By default that of key-encryption keys (keys.ring_file).
    #[arg(value_name = "FILE")]
    file: Option<PathBuf>,
    /// The name of the key: `kek`, or the service whose payloads it encrypts.
    #[arg(long, default_value = KEK)]
    name: String,
}

#[derive(Debug, Args)]
struct RotateArgs {
    /// Make new data keys, and encrypt with them what the old ones have encrypted. The old ones stay for what is in backups.
    #[arg(long)]
    data: bool,
    /// Of one user only.
    #[arg(long, requires = "data", value_name = "ID", value_parser = clap::value_parser!(i32).range(0..))]
    user: Option<i32>,
    /// Only data keys that were made before then; by default all. Given again after an interruption, it goes on where it was.
    #[arg(long, requires = "data", value_name = "TIME")]
    before: Option<DateTime<Utc>>,
}

/// Carries out `memfleet keys`.
///
/// # Errors
/// What happened, to what, and what to do about it.
pub async fn execute(args: KeysArgs, settings: &Settings) -> anyhow::Result<()> {
    match args.action {
        Action::Migrate => migrate(settings).await,
        Action::Generate(args) => generate(&args, settings),
        Action::List { json } => list(settings, json).await,
        Action::Rotate(args) => tokio::select! {
            rotated = rotate(&args, settings) => rotated,
            stopped = interrupted() => {
                stopped?;
                anyhow::bail!("interrupted; everything can be read as before, and the same command goes on where it was")
            }
        },
    }
}

async fn migrate(settings: &Settings) -> anyhow::Result<()> {
    let connection = store::connect(&settings.keys.url)
        .await
        .context("migrating needs the key store that keys.url names")?;
    let names = ::keys::SCHEMA.up(connection).await?;
    for name in &names {
        outln!("up  {name}");
    }
    if names.is_empty() {
        outln!("nothing to do: the key store is up to date");
    }
    Ok(())
}

fn generate(args: &GenerateArgs, settings: &Settings) -> anyhow::Result<()> {
    let configured = settings.keys.ring_file.as_ref().map(PathBuf::from);
    let file = args.file.clone().or(configured).context("name a file, or set keys.ring_file")?;
    ensure!(
        trust::text::is_key_name(&args.name),
        "{:?} is no name of a key; it has 1 to 32 of a-z 0-9 -",
        args.name
    );
    let ring = if file.exists() { KeyRing::read(&file)? } else { KeyRing::default() };
    let version = ring.current(&args.name).map_or(1, |key| key.version() + 1);
    append(&file, &KeyRing::expose_line(&args.name, &CipherKey::generate(version)?))
        .with_context(|| format!("{} cannot be written", file.display()))?;
    outln!("{} has the key {}.{version} now", file.display(), args.name);
    if args.name == KEK && version > 1 {
        outln!("When every replica has this file, `memfleet keys rotate` wraps the data keys with it.");
    }
    Ok(())
}

/// Adds a line to a file that only its owner can read.
fn append(file: &Path, line: &str) -> std::io::Result<()> {
    let mut file = OpenOptions::new().append(true).create(true).mode(0o600).open(file)?;
    file.write_all(line.as_bytes())?;
    file.sync_all()
}

/// How long an operator's command waits for a connection.
const PATIENCE: Duration = Duration::from_secs(10);

/// The keys as an operator has them, who connects by `keys.url`.
fn open(settings: &Settings) -> anyhow::Result<Keys> {
    let mut keys = settings.keys.clone();
    keys.worker_url = None;
    Ok(Keys::open(&keys, "", "keys", PATIENCE)?)
}

async fn list(settings: &Settings, json: bool) -> anyhow::Result<()> {
    let census = ::keys::census(&open(settings)?).await?;
    let oldest = |at: Option<DateTime<Utc>>| at.map(|at| at.to_rfc3339_opts(SecondsFormat::Secs, true));
    if json {
        for one in census {
            outln!(
                "{}",
                serde_json::json!({ "kek": one.kek, "data_keys": one.data_keys, "users": one.users, "oldest": oldest(one.oldest) })
            );
        }
        return Ok(());
    }
    if census.is_empty() {
        outln!("no data keys: nothing was ever encrypted");
        return Ok(());
    }
    let mut table = Table::new([
        ("key-encryption key", Align::Left),
        ("data keys", Align::Right),
        ("users", Align::Right),
        ("the oldest made", Align::Left),
    ]);
    let count = |count: i64| grouped(u64::try_from(count).unwrap_or_default());
    for one in census {
        table.row([one.kek, count(one.data_keys), count(one.users), oldest(one.oldest).unwrap_or_default()]);
    }
    outln!("{table}");
    Ok(())
}

async fn rotate(args: &RotateArgs, settings: &Settings) -> anyhow::Result<()> {
    let keys = open(settings)?;
    let failed =
        if args.data { rotate_data(args, settings, &keys).await? } else { rewrap(settings, &keys).await? };
    ensure!(failed == 0, "{failed} could not be opened and stay as they were; see above which");
    Ok(())
}

async fn rewrap(settings: &Settings, keys: &Keys) -> anyhow::Result<usize> {
    let renewed = ::keys::rewrap(keys).await?;
    outln!("wrapped {} data keys anew", grouped(renewed.done as u64));
    let failed = told(&renewed);
    if settings.keys.provider == ProviderName::Ring && failed == 0 {
        outln!(
            "Old key-encryption keys are still needed for backups of the key store that were made before."
        );
    }
    Ok(failed)
}

async fn rotate_data(args: &RotateArgs, settings: &Settings, keys: &Keys) -> anyhow::Result<usize> {
    let before = args.before.unwrap_or_else(Utc::now);
    let user = args.user.map(UserId::new).transpose()?;
    errln!(
        "should this be interrupted, go on with --before {}",
        before.to_rfc3339_opts(SecondsFormat::Micros, true)
    );
    let made = ::keys::renew(keys, before, user).await?;
    outln!("made {} new data keys", grouped(made as u64));
    let mut main = store::connect(&settings.postgres.url)
        .await
        .context("the fields are in the database that postgres.url names")?;
    let first = ::keys::reencrypt(&mut main, keys, user).await?;
    outln!("encrypted {} fields anew", grouped(first.done as u64));
    if made == 0 && first.done == 0 {
        return Ok(told(&first));
    }
    // Replicas go on with a key that they know for as long as keys.cache_s.
    // A batch that took its keys at the last moment is still on its way then.
    let wait = keys.life() + Duration::from_secs(3);
    errln!("waiting {} s for replicas that still write with the old keys", wait.as_secs());
    tokio::time::sleep(wait).await;
    let second = ::keys::reencrypt(&mut main, keys, user).await?;
    outln!("encrypted {} fields anew that were written meanwhile", grouped(second.done as u64));
    Ok(told(&second))
}

/// Says what could not be opened.
fn told(renewed: &Renewed) -> usize {
    for problem in &renewed.failed {
        errln!("{problem}");
    }
    renewed.failed.len()
}
