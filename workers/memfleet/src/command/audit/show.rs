//! `memfleet audit trail`

use anyhow::Context;
use audit::TrailEntry;
use chrono::SecondsFormat;
use clap::Args;
use cli::out;
use cli::output::out_json;
use cli::table::{Align, Table};
use config::Settings;
use contract::UserId;
use serde_json::json;

use super::database;

/// Shows the audit trail of a user: what was written, by which role and service, for which request.
#[derive(Debug, Args)]
pub struct TrailArgs {
    /// The user.
    #[arg(long, value_name = "USER")]
    user: UserId,

    /// Maximum number of entries.
    #[arg(long, default_value_t = 50, value_name = "COUNT", value_parser = clap::value_parser!(u32).range(1..=10_000))]
    limit: u32,

    /// Print one JSON object, on the last line of standard output, instead of a table.
    #[arg(long)]
    json: bool,
}

pub(super) async fn execute(args: &TrailArgs, settings: &Settings) -> anyhow::Result<()> {
    let mut connection = database(settings).await?;
    let user = args.user;
    let entries = audit::trail(&mut connection, user.get(), args.limit).await?.with_context(|| {
        format!("the audit trail has no user {user}: the user never existed, or was erased completely")
    })?;
    if args.json {
        out_json(json!({ "user": user.get(), "deeds": entries }));
        return Ok(());
    }
    let mut table = Table::new([
        ("when", Align::Left),
        ("operation", Align::Left),
        ("object", Align::Left),
        ("row", Align::Left),
        ("service", Align::Left),
        ("role", Align::Left),
        ("request", Align::Left),
        ("details", Align::Left),
    ]);
    for entry in &entries {
        table.row(line(entry));
    }
    out!("{table}");
    Ok(())
}

fn line(entry: &TrailEntry) -> [String; 8] {
    let id = |id: Option<uuid::Uuid>| id.map_or_else(String::new, |id| id.to_string());
    [
        entry.occurred_at.to_rfc3339_opts(SecondsFormat::Millis, true),
        entry.operation.clone(),
        entry.object.clone().unwrap_or_default(),
        id(entry.row_id),
        entry.service.clone().unwrap_or_default(),
        entry.role_name.clone().unwrap_or_default(),
        id(entry.request_id),
        entry.details.join(", "),
    ]
}
