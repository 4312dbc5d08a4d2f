//! `memfleet privacy show`

use std::collections::BTreeMap;

use anyhow::bail;
use chrono::{DateTime, Utc};
use clap::Args;
use cli::output::{out_json, printable};
use cli::table::{Align, Table, grouped};
use cli::{out, outln};
use config::Settings;
use serde::Serialize;
use serde_json::value::RawValue;
use uuid::Uuid;

use super::requests::{self, Erased, Filter, Request, time};

#[derive(Debug, Args)]
pub(super) struct ShowArgs {
    /// The id of the request, which is that of the erasure and of its receipt.
    request: Uuid,
    /// Print one JSON object: {"request": {...}, "counts": {...}}, or {"erased": {...}} of a complete erasure.
    #[arg(long)]
    json: bool,
}

pub(super) async fn execute(args: &ShowArgs, settings: &Settings) -> anyhow::Result<()> {
    let mut connection = super::connect(settings).await?;
    let filter = Filter { id: Some(args.request), ..Filter::default() };
    let found = requests::requests(&mut connection, filter, 1).await?;
    if let Some(request) = found.into_iter().next() {
        show_request(&request, args.json);
        return Ok(());
    }
    let Some(erased) = requests::erased(&mut connection, args.request).await? else {
        bail!("there is no request {}; `memfleet privacy list` has the ids", args.request);
    };
    show_erased(&erased, args.json)
}

fn show_request(request: &Request, json: bool) {
    let counts = request.counts();
    if json {
        let counts: serde_json::Map<String, serde_json::Value> = counts
            .into_iter()
            .map(|(table, (before, deleted))| {
                (table, serde_json::json!({ "before": before, "deleted": deleted }))
            })
            .collect();
        out_json(serde_json::json!({ "request": request, "counts": counts }).to_string());
        return;
    }
    let line = |name: &str, value: &str| outln!("{name:<12} {}", printable(value));
    line("request", &request.id.to_string());
    line("user", &request.user_id.to_string());
    line("status", &request.status);
    // An export has no steps.
    if request.request_type == "access" {
        line("type", "access");
    } else {
        line("step", request.step.as_deref().unwrap_or("not begun"));
    }
    line("requested", &time(request.requested_at));
    line("due", &time(request.due_at));
    let rest = [
        ("reason", request.reason.clone()),
        ("hold", request.hold_id.map(|id| id.to_string())),
        ("held for", request.hold_reason.clone()),
        ("last error", request.last_error.clone()),
        ("next attempt", request.retry_at.map(time)),
        ("ended", request.completed_at.map(time)),
    ];
    for (name, value) in rest {
        if let Some(value) = value {
            line(name, &value);
        }
    }
    let mut table =
        Table::new([("table", Align::Left), ("rows before", Align::Right), ("deleted", Align::Right)]);
    for (name, (before, deleted)) in counts.iter().filter(|(_, (before, _))| *before > 0) {
        table.row([name.clone(), grouped(*before), grouped(*deleted)]);
    }
    if counts.values().any(|(before, _)| *before > 0) {
        out!("\n{table}");
    }
}

/// A complete erasure as JSON. The receipt is in it byte by byte: cut out, it verifies.
#[derive(Serialize)]
struct ErasedLine<'a> {
    erasure: Uuid,
    erased_at: DateTime<Utc>,
    receipt: Option<&'a RawValue>,
}

fn show_erased(erased: &Erased, json: bool) -> anyhow::Result<()> {
    if json {
        let Erased { erasure, erased_at, .. } = *erased;
        let line = BTreeMap::from([("erased", ErasedLine { erasure, erased_at, receipt: erased.receipt() })]);
        out_json(serde_json::to_string(&line)?);
        return Ok(());
    }
    outln!("erasure      {}", erased.erasure);
    outln!("erased       {}", time(erased.erased_at));
    match erased.receipt() {
        Some(receipt) => outln!("receipt      {}", printable(receipt.get())),
        None => outln!("receipt      not signed yet"),
    }
    Ok(())
}
