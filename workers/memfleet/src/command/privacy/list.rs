//! `memfleet privacy list`

use clap::Args;
use cli::outln;
use cli::output::{out_json, printable};
use cli::table::{Align, Table};
use config::Settings;
use contract::UserId;

use super::requests::{self, Filter, time};

#[derive(Debug, Args)]
pub(super) struct ListArgs {
    /// Only requests that are neither complete nor cancelled.
    #[arg(long)]
    open: bool,
    /// Only requests that should be complete by now.
    #[arg(long)]
    overdue: bool,
    /// Only restrictions that last.
    #[arg(long)]
    restricted: bool,
    /// Only those of this user.
    #[arg(long, value_name = "ID")]
    user: Option<UserId>,
    /// Maximum number of requests, 1 to 10000.
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    limit: u32,
    /// Print one JSON object: {"requests": [...]}.
    #[arg(long)]
    json: bool,
}

pub(super) async fn execute(args: &ListArgs, settings: &Settings) -> anyhow::Result<()> {
    let mut connection = super::connect(settings).await?;
    let filter = Filter {
        user: args.user.map(UserId::get),
        is_open: args.open,
        is_overdue: args.overdue,
        lasts: args.restricted,
        ..Filter::default()
    };
    let requests = requests::requests(&mut connection, filter, i64::from(args.limit)).await?;
    if args.json {
        out_json(serde_json::json!({ "requests": requests }).to_string());
        return Ok(());
    }
    if requests.is_empty() {
        outln!("no requests");
        return Ok(());
    }
    let mut table = Table::new([
        ("request", Align::Left),
        ("user", Align::Right),
        ("type", Align::Left),
        ("status", Align::Left),
        ("step", Align::Left),
        ("requested", Align::Left),
        ("due", Align::Left),
        ("what stops it", Align::Left),
    ]);
    for one in requests {
        let stops = one.hold_reason.or(one.last_error).unwrap_or_default();
        table.row([
            one.id.to_string(),
            one.user_id.to_string(),
            one.request_type,
            one.status,
            one.step.unwrap_or_default(),
            time(one.requested_at),
            time(one.due_at),
            printable(&stops).to_string(),
        ]);
    }
    outln!("{}", table.to_string().trim_end());
    Ok(())
}
