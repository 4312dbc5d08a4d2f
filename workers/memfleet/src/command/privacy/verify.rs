//! `memfleet privacy verify`

use std::path::PathBuf;

use anyhow::{Context, ensure};
use clap::Args;
use cli::output::{out_json, printable};
use cli::table::{Align, Table, grouped};
use cli::{errln, outln};
use config::Settings;
use contract::UserId;
use privacy::process::Stores;
use privacy::receipt::Receipt;
use privacy::verify::{self, Verification};

#[derive(Debug, Args)]
pub(super) struct VerifyArgs {
    /// The file of the receipt.
    receipt: PathBuf,
    /// Only check the signature and the seal, with the keys of privacy.public_keys_file and audit.public_keys_file. Needs no server.
    #[arg(long)]
    offline: bool,
    /// Also check that it is the receipt of this user, and count what is there of the user.
    #[arg(long, value_name = "ID", conflicts_with = "offline")]
    user: Option<UserId>,
    /// Print one JSON object: {"erasure": "...", "findings": [...], "stores": [...], "unknown": [...]}.
    #[arg(long)]
    json: bool,
}

/// The longest receipt, in bytes.
const LONGEST: u64 = 2 * 1024 * 1024;

pub(super) async fn execute(args: &VerifyArgs, settings: &Settings) -> anyhow::Result<()> {
    let file = args.receipt.display();
    let length = std::fs::metadata(&args.receipt).with_context(|| format!("cannot read {file}"))?.len();
    ensure!(length <= LONGEST, "{file} has more than {LONGEST} bytes, and is no receipt");
    let content = std::fs::read(&args.receipt).with_context(|| format!("cannot read {file}"))?;
    if args.offline {
        let receipt = verify::check(settings, &content).with_context(|| file.to_string())?;
        show_signed(&receipt, args.json);
        return Ok(());
    }
    super::connect(settings).await?;
    let mut stores = Stores::open(settings).await?;
    let verification =
        verify::verify(&mut stores, &content, args.user).await.with_context(|| file.to_string())?;
    if args.json {
        out_json(serde_json::to_string(&verification)?);
    } else {
        show(&verification);
    }
    ensure!(
        verification.findings.is_empty(),
        "the receipt is not true, or something came back: {} findings above",
        verification.findings.len()
    );
    Ok(())
}

fn show_signed(receipt: &Receipt, json: bool) {
    let body = &receipt.body;
    if json {
        out_json(
            serde_json::json!({ "erasure": body.erasure, "findings": [], "stores": body.stores, "unknown": [] })
                .to_string(),
        );
        return;
    }
    outln!(
        "signed: the receipt of the erasure {} of {}",
        body.erasure,
        super::requests::time(body.erased_at)
    );
    outln!("not compared with any store (--offline)");
}

fn show(verification: &Verification) {
    let mut table = Table::new([
        ("store", Align::Left),
        ("", Align::Left),
        ("before", Align::Right),
        ("now", Align::Right),
    ]);
    for line in &verification.stores {
        let now = line.now.map_or_else(|| "unknown".to_owned(), grouped);
        table.row([line.store.clone(), line.name.clone(), grouped(line.before), now]);
    }
    outln!("{}", table.to_string().trim_end());
    for problem in &verification.unknown {
        errln!("warning: nobody can tell whose rows are there: {}", printable(problem));
    }
    for finding in &verification.findings {
        errln!("{}", printable(finding));
    }
    if verification.findings.is_empty() {
        let is_partial =
            !verification.unknown.is_empty() || verification.stores.iter().any(|line| line.now.is_none());
        let uncounted = if is_partial { "; what is unknown above was not counted" } else { "" };
        outln!(
            "The receipt of the erasure {} is genuine, and nothing of the person is there{uncounted}.",
            verification.erasure
        );
    }
}
