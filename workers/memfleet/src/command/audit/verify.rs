//! `memfleet audit verify`

use anyhow::{Context, bail};
use audit::{Accepted, Report};
use clap::Args;
use cli::outln;
use cli::output::{out_json, printable};
use cli::table::grouped;
use config::Settings;
use fleet::sealer::anchors;
use privacy::Receipts;

use super::{database, public_keys, receipt_keys};

/// Recomputes all seals of the audit trail. Exits with 1 if anything differs; the first line names the earliest
/// difference.
///
/// A row in the audit trail about the change or removal of an event does not excuse it: it is named, with the role,
/// service, request and time of that row. An erasure excuses what its receipt says, and is named; until it has one, for a month at most, it
/// is named as under way.
///
/// It exits with 1 also if the database does not show what it stores: a view in the place of a table, a column of another
/// type. Whoever can replace programs of the server can still mislead it; verify a copy that is restored on a server of your
/// own if that matters.
#[derive(Debug, Args)]
pub struct VerifyArgs {
    /// Do not compare with the anchors in NATS. Seals removed from the end are then not detected.
    #[arg(long)]
    without_broker: bool,

    /// Print one JSON object, on the last line of standard output, instead of text.
    #[arg(long)]
    json: bool,
}

pub(super) async fn execute(args: &VerifyArgs, settings: &Settings) -> anyhow::Result<()> {
    let (seals, receipts) = (public_keys(settings)?, receipt_keys(settings)?);
    let erasures = Receipts { settings, keys: &receipts };
    let keys = Accepted { seals: &seals, receipts: &receipts, erasures: Some(&erasures) };
    let mut connection = database(settings).await?;
    let anchors = if args.without_broker { None } else { Some(anchors(settings).await?) };
    let report = audit::verify(&mut connection, anchors.as_ref(), keys)
        .await
        .context("cannot verify the audit trail")?;
    if args.json {
        out_json(serde_json::to_string(&report)?);
    } else {
        show(&report);
    }
    match report.broken_seals {
        0 if report.findings.is_empty() => Ok(()),
        0 => bail!("the audit trail cannot be relied on: see the findings above"),
        1 => bail!("the audit trail was changed after it was sealed"),
        count => bail!("the audit trail was changed after it was sealed, at {} seals", grouped(count)),
    }
}

/// The erasures that are named at most: those under way first.
const ERASURES_NAMED: usize = 20;

fn show_erasures(report: &Report) {
    let mut erasures: Vec<_> = report.erasures.iter().collect();
    erasures.sort_by_key(|(id, erased)| (!erased.is_under_way, **id));
    for (id, erased) in erasures.iter().take(ERASURES_NAMED) {
        let under_way = if erased.is_under_way { ", which is under way" } else { "" };
        outln!("  {} by the erasure {id}{under_way}", grouped(erased.rows));
    }
    if let Some(more) = erasures.len().checked_sub(ERASURES_NAMED).filter(|more| *more > 0) {
        outln!("  the rest by {more} other erasures; --json names all");
    }
}

fn show(report: &Report) {
    for finding in &report.findings {
        outln!("{}", printable(&finding.to_string()));
    }
    let line = |what: &str, count: u64| outln!("{what:<21} {:>12}", grouped(count));
    line("rows sealed", report.rows);
    line("seals", report.seals);
    if let Some(anchored) = report.anchored {
        line("anchored in NATS", anchored);
    }
    line("edited", report.edited);
    line("missing", report.missing);
    line("excused with proof", report.accounted);
    line("excused without proof", report.excused_without_proof);
    show_erasures(report);
    // Neither happens unless somebody wrote into the trail by hand.
    for (what, count) in [("added", report.added), ("misdated", report.misdated)] {
        if count > 0 {
            line(what, count);
        }
    }
    line("not sealed yet", report.unsealed);
    if report.findings.is_empty() {
        outln!("All sealed rows are unchanged.");
    }
}
