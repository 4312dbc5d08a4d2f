//! `memfleet keys`

use std::path::PathBuf;
use std::time::Duration;

use ::keys::{KEK, Keys, RotationReport};
use anyhow::{Context, ensure};
use chrono::{DateTime, SecondsFormat, Utc};
use clap::{Args, Subcommand};
use cli::key_file::add_key;
use cli::signal::interrupted;
use cli::table::{Align, Table, grouped};
use cli::{errln, outln};
use config::ProviderName;
use config::Settings;
use contract::UserId;
use trust::KeyRing;

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
    /// The file. By default keys.ring_file, and for a service trust.payload_ring_file.
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
    /// Only data keys that were made before then; by default all. With the time that an interrupted rotation has printed, it goes
    /// on where that one was.
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
                anyhow::bail!("interrupted; everything can be read as before, and nothing of what is done is lost")
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
    // A service's key in the ring of key-encryption keys would wrap nothing and open nothing.
    let (option, configured) = if args.name == KEK {
        ("keys.ring_file", &settings.keys.ring_file)
    } else {
        ("trust.payload_ring_file", &settings.trust.payload_ring_file)
    };
    let file = args.file.clone().or_else(|| configured.as_ref().map(PathBuf::from));
    let file = file.with_context(|| format!("name a file, or set {option}"))?;
    ensure!(
        trust::is_ring_name(&args.name),
        "{:?} is no name of a key; it is {KEK}, or the name of a service: 1 to 64 of a-z 0-9 -",
        args.name
    );
    let ring = if file.exists() { KeyRing::read(&file)? } else { KeyRing::default() };
    let version = ring.current(&args.name).map_or(1, |key| key.version() + 1);
    add_key(&file, &args.name, version)?;
    outln!("{} has the key {}.{version} now", file.display(), args.name);
    if args.name != KEK {
        outln!("Bring it to every worker first, and then to the service.");
    } else if version > 1 {
        outln!("When every replica has this file, `memfleet keys rotate` wraps the data keys with it.");
    }
    Ok(())
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
    let mut connection =
        store::connect(&settings.keys.url).await.context("data keys are where keys.url says")?;
    let usage = ::keys::kek_usage(&mut connection).await?;
    let oldest = |at: Option<DateTime<Utc>>| at.map(|at| at.to_rfc3339_opts(SecondsFormat::Secs, true));
    if json {
        for one in usage {
            outln!(
                "{}",
                serde_json::json!({ "kek": one.kek, "data_keys": one.data_keys, "users": one.users, "oldest": oldest(one.oldest) })
            );
        }
        return Ok(());
    }
    if usage.is_empty() {
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
    for one in usage {
        table.row([one.kek, count(one.data_keys), count(one.users), oldest(one.oldest).unwrap_or_default()]);
    }
    outln!("{table}");
    Ok(())
}

async fn rotate(args: &RotateArgs, settings: &Settings) -> anyhow::Result<()> {
    let keys = open(settings)?;
    let failed =
        if args.data { rotate_data(args, settings, &keys).await? } else { rewrap(settings, &keys).await? };
    ensure!(
        failed == 0,
        "{} could not be opened and stay as they were; see above which",
        grouped(failed as u64)
    );
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
    let of_whom = user.map_or_else(String::new, |user| format!(" --user {user}"));
    errln!(
        "should this be interrupted, go on with: memfleet keys rotate --data{of_whom} --before {}",
        before.to_rfc3339_opts(SecondsFormat::Micros, true)
    );
    let mut main = store::connect(&settings.postgres.url)
        .await
        .context("the fields are in the database that postgres.url names")?;
    ::keys::check_bypasses_rls(&mut main).await?;
    let made = ::keys::rotate_data_keys(keys, before, user).await?;
    outln!("made {} new data keys", grouped(made as u64));
    let first = ::keys::reencrypt(&mut main, keys, user).await?;
    outln!("encrypted {} fields anew", grouped(first.done as u64));
    let wait = longest_use(settings);
    errln!("waiting {} s for replicas that still write with the old keys", wait.as_secs());
    tokio::time::sleep(wait).await;
    let second = ::keys::reencrypt(&mut main, keys, user).await?;
    outln!("encrypted {} fields anew that were written meanwhile", grouped(second.done as u64));
    Ok(told(&second))
}

/// How long a replica may still write with a key that is not the current one: as long as it keeps keys, and then as long as a
/// batch takes that had just asked for its own.
fn longest_use(settings: &Settings) -> Duration {
    let postgres = &settings.postgres;
    settings.keys.cache() + Duration::from_millis(postgres.connect_timeout_ms + postgres.statement_timeout_ms)
}

/// Says what could not be opened.
fn told(renewed: &RotationReport) -> usize {
    for problem in &renewed.problems {
        errln!("{problem}");
    }
    renewed.failed
}
