//! `memfleet privacy show`

use std::collections::BTreeMap;

use anyhow::bail;
use chrono::{DateTime, Utc};
use clap::Args;
use cli::output::{out_json, printable};
use cli::table::{Align, Table, grouped};
use cli::{out, outln};
use config::Settings;
use privacy::Removal;
use serde::Serialize;
use serde_json::Value;
use serde_json::value::RawValue;
use uuid::Uuid;

use super::requests::{self, Erased, Filter, Request, time};

#[derive(Debug, Args)]
pub(super) struct ShowArgs {
    /// The id of the request, which of an erasure is that of its receipt.
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
        let counts: serde_json::Map<String, Value> = counts
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
    line("type", &request.request_type);
    line("status", &request.status);
    if Removal::from_name(&request.request_type).is_some() {
        line("step", request.step.as_deref().unwrap_or("not begun"));
    }
    if let Some(service) = &request.service {
        line("service", service);
    }
    line("requested", &time(request.requested_at));
    line("due", &time(request.due_at));
    let rest = [
        ("while", request.meanwhile.clone()),
        ("recipient", request.recipient.clone()),
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
    show_corrections(request);
    let mut table =
        Table::new([("table", Align::Left), ("rows before", Align::Right), ("deleted", Align::Right)]);
    for (name, (before, deleted)) in counts.iter().filter(|(_, (before, _))| *before > 0) {
        table.row([name.clone(), grouped(*before), grouped(*deleted)]);
    }
    if counts.values().any(|(before, _)| *before > 0) {
        out!("\n{table}");
    }
}

/// What is wrong, or what was corrected. A service has written it: it need not have the form that it should have.
fn show_corrections(request: &Request) {
    let text = |one: &Value, field: &str| one[field].as_str().unwrap_or("?").to_owned();
    for (name, list) in [("correct", &request.corrections), ("corrected", &request.corrected)] {
        for one in list.iter().filter_map(Value::as_array).flatten() {
            let row = one["row"].as_str().map(|row| format!(" of {row}")).unwrap_or_default();
            let was = one.get("was").map(|was| format!(", instead of {was}")).unwrap_or_default();
            let value = one.get("value").map(|value| format!(": {value}{was}")).unwrap_or_default();
            let place = format!("{}.{}{row}{value}", text(one, "table"), text(one, "column"));
            outln!("{name:<12} {}", printable(&place));
        }
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
