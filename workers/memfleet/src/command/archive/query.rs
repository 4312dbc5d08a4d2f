//! `memfleet archive query`

use anyhow::ensure;
use archive::{Rows, Value};
use chrono::{DateTime, SecondsFormat, Utc};
use clap::Args;
use cli::outln;
use cli::output::out_json;
use cli::table::{Align, Table};
use config::Settings;
use contract::UserId;

use super::load::{self, Archive, Filter, PAGE, Source};

#[derive(Debug, Args)]
pub(super) struct QueryArgs {
    /// Only rows of this table.
    #[arg(long, value_name = "TABLE", value_parser = load::table_name)]
    table: Option<String>,
    /// Only rows of this user.
    #[arg(long, value_name = "ID")]
    user: Option<UserId>,
    /// Only rows of this session.
    #[arg(long, value_name = "ID")]
    session: Option<String>,
    /// Only rows that were created at this time or later, such as 2027-01-01T00:00:00Z.
    #[arg(long, value_name = "TIME")]
    from: Option<DateTime<Utc>>,
    /// Only rows that were created before this time.
    #[arg(long, value_name = "TIME")]
    to: Option<DateTime<Utc>>,
    /// Maximum number of rows, 1 to 100000.
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    limit: u32,
    /// Print each row as a JSON object on a line of its own, with all values. Encrypted values stay encrypted.
    #[arg(long)]
    json: bool,
}

/// The most characters of a value in a table.
const SHOWN: usize = 60;

pub(super) async fn execute(args: &QueryArgs, settings: &Settings) -> anyhow::Result<()> {
    if let (Some(from), Some(to)) = (args.from, args.to) {
        ensure!(from < to, "--from {from} is not before --to {to}");
    }
    let mut connection = super::connect(settings).await?;
    let source = Source::open(settings)?;
    let mut filter = Filter {
        table: args.table.clone(),
        users: args.user.iter().map(|user| user.get()).collect(),
        from: args.from,
        to: args.to,
        ..Filter::default()
    };
    let mut left = usize::try_from(args.limit).unwrap_or(usize::MAX);
    let mut table = Table::new([
        ("created", Align::Left),
        ("table", Align::Left),
        ("user", Align::Right),
        ("session", Align::Left),
        ("what", Align::Left),
        ("value", Align::Left),
    ]);
    let mut any = false;
    'pages: loop {
        let page = load::archives(&mut connection, &filter, PAGE).await?;
        let Some(last) = page.last() else { break };
        filter.after = Some((last.created_at, last.id));
        for archive in &page {
            let mut rows = source.removed(archive).await?;
            rows.retain(|rows, row| is_asked(args, rows, row));
            for row in 0..rows.len().min(left) {
                any = true;
                if args.json {
                    out_json(json(archive, &rows, row));
                } else {
                    table.row(cells(archive, &rows, row));
                }
            }
            left = left.saturating_sub(rows.len());
            if left == 0 {
                break 'pages;
            }
        }
    }
    if !args.json {
        outln!(
            "{}",
            if any { table.to_string().trim_end().to_owned() } else { "no archived rows".to_owned() }
        );
    }
    Ok(())
}

fn is_asked(args: &QueryArgs, rows: &Rows, row: usize) -> bool {
    let created = rows.get(row, "created_at").time();
    load::is_of(rows, row, args.user, args.session.as_deref())
        && args.from.is_none_or(|from| created.is_some_and(|created| created >= from))
        && args.to.is_none_or(|to| created.is_some_and(|created| created < to))
}

fn json(archive: &Archive, rows: &Rows, row: usize) -> String {
    let line =
        serde_json::json!({ "archive": archive.id, "table": archive.table_name, "row": rows.to_json(row) });
    line.to_string()
}

fn cells(archive: &Archive, rows: &Rows, row: usize) -> [String; 6] {
    // The column that says what the row is, and the one that its value is in.
    let (what, value) = match archive.table_name.as_str() {
        "simple_chat_context" | "agent_context_states" => ("context_key", "context_value"),
        "chat_mode_sessions" => ("chat_mode", "session_metadata"),
        "router_decision_log" => ("model_used", "user_request"),
        _ => ("event_type", "event_payload"),
    };
    let shown = |column: &str| shorten(rows.get(row, column));
    [
        rows.get(row, "created_at")
            .time()
            .map(|time| time.to_rfc3339_opts(SecondsFormat::Secs, true))
            .unwrap_or_default(),
        archive.table_name.clone(),
        shown("user_id"),
        shown("session_id"),
        shown(what),
        shown(value),
    ]
}

fn shorten(value: &Value) -> String {
    let text = value.to_text().unwrap_or_default();
    match text.char_indices().nth(SHOWN) {
        Some((end, _)) => format!("{}…", text.get(..end).unwrap_or_default()),
        None => text,
    }
}
