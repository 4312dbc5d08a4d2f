//! `memfleet privacy reapply` and `memfleet privacy key export`

use std::path::{Path, PathBuf};

use anyhow::{Context, ensure};
use clap::Args;
use cli::confirm::confirm;
use cli::key_file;
use cli::output::{out_json, printable};
use cli::{errln, outln};
use config::Settings;
use privacy::process::Stores;
use privacy::reapply::{self, Reapplied, Reapply};
use privacy::{keys, receipt};

/// Erases again, in a restored database, whoever has a receipt.
///
/// Reads and verifies all receipts, and looks for their persons in the main database, the key store, the archives and the streams. Whoever is
/// found is fenced and erased, with a new receipt; of the others, the database gets the tombstones. To be run before any worker starts.
#[derive(Debug, Args)]
pub(super) struct ReapplyArgs {
    /// The folder or bucket of the receipts, file:///path or s3://bucket/prefix. Default: privacy.receipt_url.
    #[arg(long, value_name = "URL")]
    receipts: Option<String>,
    /// Keys of tombstones of another database, as `privacy key export` writes them. Needed if the backup is older than its own key.
    #[arg(long, value_name = "FILE")]
    tombstone_key: Option<PathBuf>,
    /// Only print what would be done.
    #[arg(long)]
    dry_run: bool,
    /// Do not ask for confirmation.
    #[arg(long)]
    yes: bool,
    /// Go on although workers are connected to the database.
    #[arg(long)]
    force: bool,
    /// Print one JSON object: {"receipts": 3, "tombstones_added": 2, "found": {...}, "requests": [...], "stopped": {...}, "left": {...}}.
    #[arg(long)]
    json: bool,
}

pub(super) async fn execute(args: &ReapplyArgs, settings: &Settings) -> anyhow::Result<()> {
    super::connect(settings).await?;
    if !args.dry_run {
        super::check_receipts(settings)?;
        confirm("this deletes everything of the persons of all receipts permanently", args.yes)?;
    }
    let tombstone_keys = args
        .tombstone_key
        .as_ref()
        .map(|file| std::fs::read_to_string(file).with_context(|| format!("cannot read {}", file.display())))
        .transpose()?;
    let target = receipt::target(settings, args.receipts.as_deref())?;
    let receipts = receipt::read_all(&target, &receipt::public_keys(&settings.privacy)?).await?;
    let options = Reapply { tombstone_keys, dry_run: args.dry_run, force: args.force };
    let mut stores = Stores::open(settings).await?;
    let done = reapply::reapply(&mut stores, receipts, &options).await?;
    if args.json {
        out_json(json(&done));
    } else {
        show(&done, args.dry_run);
    }
    ensure!(
        done.left.is_empty(),
        "something of {} persons is still there; see above, and run the command again",
        done.left.len()
    );
    Ok(())
}

fn json(done: &Reapplied) -> String {
    let report = serde_json::json!({
        "receipts": done.receipts, "tombstones_added": done.tombstones, "found": done.found, "requests": done.requests,
        "stopped": done.stopped, "left": done.left
    });
    report.to_string()
}

fn show(done: &Reapplied, dry_run: bool) {
    outln!("{} receipts; of {} of their persons something is there", done.receipts, done.found.len());
    for (user, places) in &done.found {
        outln!("  user {user}: {}", places.join(", "));
    }
    if dry_run {
        outln!("nothing was erased (--dry-run)");
        return;
    }
    outln!("{} tombstones added, {} erasures filed again", done.tombstones, done.requests.len());
    for (request, reason) in &done.stopped {
        errln!("warning: the erasure {request} is not complete: {}", printable(reason));
    }
    for (user, places) in &done.left {
        errln!("user {user} is still in {}", places.join(", "));
    }
}

pub(super) async fn export_key(file: &Path, settings: &Settings) -> anyhow::Result<()> {
    let mut connection = super::connect(settings).await?;
    let exported = keys::export(&mut connection).await?;
    ensure!(!exported.is_empty(), "the database has no key of tombstones; `memfleet migrate up` makes it");
    key_file::write_new(Some(file), &exported)
}
