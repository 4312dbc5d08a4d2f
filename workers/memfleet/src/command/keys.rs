//! `memfleet keys`

use std::path::PathBuf;
use std::time::Duration;

use ::keys::{KEK, Keys, RotationReport};
use anyhow::{Context, ensure};
use chrono::{DateTime, SecondsFormat, Utc};
use clap::{Args, Subcommand};
use cli::database;
use cli::key_file::add_key;
use cli::output::{out_json, printable};
use cli::signal::interrupted;
use cli::table::{Align, Table, grouped};
use cli::{errln, outln};
use config::ProviderName;
use config::Settings;
use contract::UserId;
use trust::KeyRing;

use super::revocations;

/// Creates, lists and rotates encryption keys of fields and payloads.
///
/// Fields are encrypted with data keys, one per user, which are wrapped with a key-encryption key (KEK). Data keys are
/// in the key store (keys.url); KEKs are in a file, in Vault or in AWS KMS (keys.provider).
#[derive(Debug, Args)]
pub struct KeysArgs {
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// Apply pending migrations of the key store.
    Migrate,
    /// Add the next version of a key to a key ring file; creates the file if it does not exist.
    Generate(GenerateArgs),
    /// Show how many data keys each key-encryption key wraps.
    List {
        /// Print one JSON object per line.
        #[arg(long)]
        json: bool,
    },
    /// Re-wrap data keys with the current key-encryption key, or create new data keys. Workers keep running.
    Rotate(RotateArgs),
}

#[derive(Debug, Args)]
struct GenerateArgs {
    /// The key ring file. Default: keys.ring_file for `kek`, trust.payload_ring_file for a service.
    #[arg(value_name = "FILE")]
    file: Option<PathBuf>,
    /// The key's name: `kek`, or the service whose payloads it encrypts.
    #[arg(long, default_value = KEK)]
    name: String,
}

#[derive(Debug, Args)]
struct RotateArgs {
    /// Create new data keys and re-encrypt all fields with them. The old keys are kept to read backups.
    #[arg(long)]
    data: bool,
    /// Rotate only the data keys of this user.
    #[arg(long, requires = "data", value_name = "ID", value_parser = clap::value_parser!(i32).range(0..))]
    user: Option<i32>,
    /// Rotate only data keys created before this time (RFC 3339); default: all. To resume an interrupted rotation, pass
    /// the time it printed.
    #[arg(long, requires = "data", value_name = "TIME")]
    before: Option<DateTime<Utc>>,
}

/// Runs `memfleet keys`.
///
/// # Errors
/// If a key, the key store or the database cannot be used, or a rotation is interrupted.
pub async fn execute(args: KeysArgs, settings: &Settings) -> anyhow::Result<()> {
    match args.action {
        Action::Migrate => migrate(settings).await,
        Action::Generate(args) => generate(&args, settings),
        Action::List { json } => list(settings, json).await,
        Action::Rotate(args) => tokio::select! {
            rotated = rotate(&args, settings) => rotated,
            stopped = interrupted() => {
                stopped?;
                anyhow::bail!("interrupted; all fields stay readable and completed work is kept")
            }
        },
    }
}

async fn migrate(settings: &Settings) -> anyhow::Result<()> {
    let connection = database::connect(&settings.keys.url, "keys.url", "the key store").await?;
    let names = ::keys::SCHEMA.up(connection).await?;
    for name in &names {
        outln!("up  {name}");
    }
    if names.is_empty() {
        outln!("nothing to do: the key store is up to date");
        return Ok(());
    }
    // A key store that is new or of an earlier version knows nothing of what was revoked.
    if let Err(error) = bring_revocations(settings).await {
        errln!("{error:#}; run `memfleet security sync` later, to bring to the key store what was revoked");
    }
    Ok(())
}

async fn bring_revocations(settings: &Settings) -> anyhow::Result<()> {
    let mut main = database::connect(&settings.postgres.url, "postgres.url", "the database").await?;
    revocations::sync(&mut main, settings).await.map(drop)
}

fn generate(args: &GenerateArgs, settings: &Settings) -> anyhow::Result<()> {
    // A payload key in the key ring of the KEK would never be used.
    let (option, configured) = if args.name == KEK {
        ("keys.ring_file", &settings.keys.ring_file)
    } else {
        ("trust.payload_ring_file", &settings.trust.payload_ring_file)
    };
    let file = args.file.clone().or_else(|| configured.as_ref().map(PathBuf::from));
    let file = file.with_context(|| format!("no key ring file: pass FILE or set {option}"))?;
    ensure!(
        trust::is_ring_name(&args.name),
        "{:?} is not a valid key name: use {KEK} or a service name (1 to 64 characters of a-z 0-9 -)",
        args.name
    );
    let ring = if file.exists() { KeyRing::read(&file)? } else { KeyRing::default() };
    let version = ring.current(&args.name).map_or(1, |key| key.version() + 1);
    add_key(&file, &args.name, version)?;
    outln!("added key {}.{version} to {}", args.name, file.display());
    if args.name != KEK {
        outln!("Distribute the file to every worker first, then to the service.");
    } else if version > 1 {
        outln!("When every replica has this file, run `memfleet keys rotate` to re-wrap the data keys.");
    }
    Ok(())
}

/// Time limit for connecting to the key store.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// Opens the key store as the operator, who connects with `keys.url` and not `keys.worker_url`.
fn open(settings: &Settings) -> anyhow::Result<Keys> {
    let mut keys = settings.keys.clone();
    keys.worker_url = None;
    Ok(Keys::open(&keys, "", "keys", CONNECT_TIMEOUT)?)
}

async fn list(settings: &Settings, json: bool) -> anyhow::Result<()> {
    let mut connection = database::connect(&settings.keys.url, "keys.url", "the key store").await?;
    let usage = ::keys::kek_usage(&mut connection).await?;
    let oldest = |at: Option<DateTime<Utc>>| at.map(|at| at.to_rfc3339_opts(SecondsFormat::Secs, true));
    if json {
        for one in usage {
            out_json(
                serde_json::json!({ "kek": one.kek, "data_keys": one.data_keys, "users": one.users, "oldest": oldest(one.oldest) }),
            );
        }
        return Ok(());
    }
    if usage.is_empty() {
        outln!("no data keys: no field has been encrypted yet");
        return Ok(());
    }
    let mut table = Table::new([
        ("key-encryption key", Align::Left),
        ("data keys", Align::Right),
        ("users", Align::Right),
        ("oldest created", Align::Left),
    ]);
    let count = |count: i64| grouped(u64::try_from(count).unwrap_or_default());
    for one in usage {
        table.row([one.kek, count(one.data_keys), count(one.users), oldest(one.oldest).unwrap_or_default()]);
    }
    outln!("{table}");
    let (added, users) = ::keys::added_later(&mut connection).await?;
    if added > 0 {
        outln!(
            "{} data keys of {} users were added by workers because an earlier one did not open; see \"Data keys that do not \
             open\" in docs/OPERATIONS.md",
            count(added),
            count(users)
        );
    }
    Ok(())
}

async fn rotate(args: &RotateArgs, settings: &Settings) -> anyhow::Result<()> {
    let keys = open(settings)?;
    let failed =
        if args.data { rotate_data(args, settings, &keys).await? } else { rewrap(settings, &keys).await? };
    ensure!(
        failed == 0,
        "{} could not be decrypted and are unchanged; they are listed above",
        grouped(failed as u64)
    );
    Ok(())
}

async fn rewrap(settings: &Settings, keys: &Keys) -> anyhow::Result<usize> {
    let renewed = ::keys::rewrap(keys).await?;
    outln!("re-wrapped {} data keys", grouped(renewed.done as u64));
    let failed = print_problems(&renewed);
    if settings.keys.provider == ProviderName::Ring && failed == 0 {
        outln!("Keep the old key-encryption keys: existing backups of the key store still need them.");
    }
    Ok(failed)
}

async fn rotate_data(args: &RotateArgs, settings: &Settings, keys: &Keys) -> anyhow::Result<usize> {
    let before = args.before.unwrap_or_else(Utc::now);
    let user = args.user.map(UserId::new).transpose()?;
    if let Some(user) = user {
        ensure!(
            ::keys::has_data_key(keys, user).await?,
            "user {user} has no data key, so no encrypted field"
        );
    }
    let user_option = user.map_or_else(String::new, |user| format!(" --user {user}"));
    errln!(
        "to resume after an interruption: memfleet keys rotate --data{user_option} --before {}",
        before.to_rfc3339_opts(SecondsFormat::Micros, true)
    );
    let mut main =
        database::connect(&settings.postgres.url, "postgres.url", "the database with the encrypted fields")
            .await?;
    ::keys::check_bypasses_rls(&mut main).await?;
    let created = ::keys::rotate_data_keys(keys, before, user).await?;
    outln!("created {} new data keys", grouped(created as u64));
    let first = ::keys::reencrypt(&mut main, keys, user).await?;
    outln!("re-encrypted {} fields", grouped(first.done as u64));
    let wait = longest_use(settings);
    errln!("waiting {} s for replicas that still write with cached old keys", wait.as_secs());
    tokio::time::sleep(wait).await;
    let second = ::keys::reencrypt(&mut main, keys, user).await?;
    outln!("re-encrypted {} fields that were written meanwhile", grouped(second.done as u64));
    Ok(print_problems(&second))
}

/// How long a replica may still write with an old data key: the lifetime of its key cache plus the longest batch that
/// read a key from the cache just before it expired.
fn longest_use(settings: &Settings) -> Duration {
    let postgres = &settings.postgres;
    settings.keys.cache() + Duration::from_millis(postgres.connect_timeout_ms + postgres.statement_timeout_ms)
}

/// Prints what could not be decrypted, and returns how many.
fn print_problems(renewed: &RotationReport) -> usize {
    for problem in &renewed.problems {
        errln!("{}", printable(problem));
    }
    renewed.failed
}
