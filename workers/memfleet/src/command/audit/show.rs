//! `memfleet audit trail`

use anyhow::Context;
use audit::TrailEntry;
use chrono::SecondsFormat;
use clap::Args;
use cli::table::{Align, Table};
use cli::{out, outln};
use config::Settings;
use contract::UserId;
use serde_json::json;

use super::database;

/// Shows what the trail tells of a user: what was written, by which role and service, for which request.
#[derive(Debug, Args)]
pub struct TrailArgs {
    /// The user.
    #[arg(long, value_name = "USER")]
    user: UserId,

    /// The most rows.
    #[arg(long, default_value_t = 50, value_name = "COUNT", value_parser = clap::value_parser!(u32).range(1..=10_000))]
    limit: u32,

    /// Print one JSON object, on the last line of standard output, instead of a table.
    #[arg(long)]
    json: bool,
}

pub(super) async fn execute(args: &TrailArgs, settings: &Settings) -> anyhow::Result<()> {
    let mut connection = database(settings).await?;
    let user = args.user;
    let deeds = audit::trail(&mut connection, user.get(), args.limit).await?.with_context(|| {
        format!("the trail knows no user {user}: there never was one, or all was erased and nothing tells whose its rows are")
    })?;
    if args.json {
        outln!("{}", json!({ "user": user.get(), "deeds": deeds }));
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
    for deed in &deeds {
        table.row(line(deed));
    }
    out!("{table}");
    Ok(())
}

fn line(deed: &TrailEntry) -> [String; 8] {
    let id = |id: Option<uuid::Uuid>| id.map_or_else(String::new, |id| id.to_string());
    [
        deed.occurred_at.to_rfc3339_opts(SecondsFormat::Millis, true),
        deed.operation.clone(),
        deed.object.clone().unwrap_or_default(),
        id(deed.row_id),
        deed.service.clone().unwrap_or_default(),
        deed.role_name.clone().unwrap_or_default(),
        id(deed.request_id),
        deed.details.join(", "),
    ]
}
