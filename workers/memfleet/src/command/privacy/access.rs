//! `memfleet privacy access` and `memfleet privacy open`

use std::path::{Path, PathBuf};

use anyhow::Context;
use clap::{ArgGroup, Args};
use cli::output::out_json;
use cli::table::grouped;
use cli::{errln, outln};
use config::Settings;
use contract::UserId;
use privacy::access::{
    self, DEFAULT_PART_BYTES, MAX_PART_BYTES, MIN_PART_BYTES, NewExport, Opener, Recipient,
};
use secrecy::SecretString;
use trust::text::secret_content;

/// Exports all that is stored of a person.
///
/// Reads the tables, the key store, Qdrant, the archives and the streams, with encrypted fields in clear. The export is encrypted for the person,
/// in parts of a size that can be sent. `index.txt` in it lists what it has and what was left out, and why. `memfleet privacy open` opens it, and so
/// does the program `age`: each part is a tar archive of its own.
#[derive(Debug, Args)]
#[command(group = ArgGroup::new("for").required(true).args(["recipient", "passphrase_file"]))]
pub(super) struct AccessArgs {
    /// The user.
    user: UserId,
    /// Write the parts into this folder. It is created, for its owner alone, if it does not exist.
    #[arg(long, value_name = "FOLDER")]
    out: PathBuf,
    /// Encrypt for the holder of the private key of this public key of age, `age1...`. The person creates the pair with `age-keygen`.
    #[arg(long, value_name = "AGE_PUBLIC_KEY")]
    recipient: Option<String>,
    /// Encrypt with the passphrase in this file, 12 to 1024 characters. Takes about a second for each part.
    #[arg(long, value_name = "FILE")]
    passphrase_file: Option<PathBuf>,
    /// Why, 1 to 2048 characters, such as the letter of the person.
    #[arg(long, value_name = "TEXT", value_parser = super::reason)]
    reason: Option<String>,
    /// The most MiB of a part, 1 to 256.
    #[arg(long, value_name = "MIB", default_value_t = default_part_size(), value_parser = clap::value_parser!(u32).range(part_sizes()))]
    part_size: u32,
    /// Print one JSON object: {"request": "...", "exported_at": "...", "parts": [{"file", "bytes", "sha256"}], "rows": N, "unreadable": N}.
    #[arg(long)]
    json: bool,
}

/// Opens an export of `memfleet privacy access`.
///
/// Decrypts its parts, checks that all of them are there and undamaged, and writes the files into a folder. Needs no server and no settings.
#[derive(Debug, Args)]
#[command(group = ArgGroup::new("with").required(true).args(["identity", "passphrase_file"]))]
pub(super) struct OpenArgs {
    /// All parts of one export, in any order.
    #[arg(required = true, value_name = "FILE")]
    parts: Vec<PathBuf>,
    /// The file with the private key, as `age-keygen` writes it.
    #[arg(long, value_name = "FILE")]
    identity: Option<PathBuf>,
    /// The file with the passphrase.
    #[arg(long, value_name = "FILE")]
    passphrase_file: Option<PathBuf>,
    /// Write the files into this folder, which must be new or empty.
    #[arg(long, value_name = "FOLDER")]
    out: PathBuf,
    /// Print one JSON object: {"export": "...", "parts": N, "files": N, "rows": N}.
    #[arg(long)]
    json: bool,
}

const MIB: usize = 1024 * 1024;
/// The service of requests that operators file.
const SERVICE: &str = "operator";

fn in_mib(bytes: usize) -> u32 {
    u32::try_from(bytes / MIB).unwrap_or(u32::MAX)
}

fn default_part_size() -> u32 {
    in_mib(DEFAULT_PART_BYTES)
}

fn part_sizes() -> std::ops::RangeInclusive<i64> {
    i64::from(in_mib(MIN_PART_BYTES))..=i64::from(in_mib(MAX_PART_BYTES))
}

pub(super) async fn execute(args: &AccessArgs, settings: &Settings) -> anyhow::Result<()> {
    let recipient = recipient(args)?;
    super::connect(settings).await?;
    let new = NewExport {
        user: args.user,
        service: SERVICE.to_owned(),
        reason: args.reason.clone(),
        folder: args.out.clone(),
        recipient,
        part_bytes: usize::try_from(args.part_size).unwrap_or(usize::MAX).saturating_mul(MIB),
    };
    let user = args.user;
    let export = access::export(settings, new).await.with_context(|| format!("cannot export user {user}"))?;
    if args.json {
        out_json(serde_json::to_string(&export)?);
        return Ok(());
    }
    for part in &export.parts {
        outln!("{} ({} bytes)", args.out.join(&part.file).display(), grouped(part.bytes));
    }
    let (rows, parts) = (grouped(export.rows), export.parts.len());
    outln!(
        "exported: {rows} rows, points and messages of user {user} in {parts} parts, request {}",
        export.request
    );
    if export.unreadable > 0 {
        let count = grouped(export.unreadable);
        errln!("warning: {count} encrypted fields could not be decrypted; their lines in the export say why");
    }
    Ok(())
}

fn recipient(args: &AccessArgs) -> anyhow::Result<Recipient> {
    match (&args.recipient, &args.passphrase_file) {
        // Not by the parser of arguments, which repeats what it refuses: it may be a private key.
        (Some(key), _) => Recipient::key(key).map_err(|problem| anyhow::anyhow!("--recipient: {problem}")),
        (None, Some(file)) => {
            let text = secret(file)?;
            Recipient::passphrase(&text).with_context(|| file.display().to_string())
        }
        (None, None) => anyhow::bail!("give --recipient or --passphrase-file"),
    }
}

/// The content of a file that only its owner can read.
fn secret(file: &Path) -> anyhow::Result<String> {
    Ok(secret_content(file)?)
}

pub(super) fn open(args: &OpenArgs) -> anyhow::Result<()> {
    let opener = match (&args.identity, &args.passphrase_file) {
        (Some(file), _) => {
            let content = SecretString::from(secret(file)?);
            Opener::identities(&content).with_context(|| file.display().to_string())?
        }
        (None, Some(file)) => {
            let text = secret(file)?;
            Opener::passphrase(&text).with_context(|| file.display().to_string())?
        }
        (None, None) => anyhow::bail!("give --identity or --passphrase-file"),
    };
    let opened = access::open(&args.parts, &opener, &args.out).context("cannot open the export")?;
    if args.json {
        out_json(serde_json::to_string(&opened)?);
        return Ok(());
    }
    let (rows, files, folder) = (grouped(opened.rows), opened.files, args.out.display());
    outln!("opened: {rows} rows, points and messages in {files} files; {folder}/index.txt lists them");
    Ok(())
}
