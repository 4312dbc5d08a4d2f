//! `memfleet sync list`

use anyhow::Context;
use chrono::SecondsFormat;
use clap::Args;
use clap::builder::{PossibleValuesParser, TypedValueParser};
use cli::output::{out_json, printable};
use cli::table::{Align, Table, grouped};
use cli::{errln, outln};
use config::Settings;
use contract::{SessionId, SyncEnd, SyncStatus, UserId};

use super::load::{self, Found, Sync, UNREADABLE, Unreadable, Which};

#[derive(Debug, Args)]
pub(super) struct ListArgs {
    /// Only syncs of this user.
    #[arg(long, value_name = "ID")]
    user: Option<UserId>,
    /// Only syncs from or into this session.
    #[arg(long, value_name = "ID", value_parser = |id: &str| SessionId::new(id))]
    session: Option<SessionId>,
    /// Only syncs with this status.
    #[arg(long, value_parser = statuses())]
    status: Option<SyncStatus>,
    /// Maximum number of syncs, 1 to 10000.
    #[arg(long, default_value_t = 50, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    limit: u32,
    /// Print one JSON object: {"syncs": [...], "unreadable": [those whose rows cannot be read], "more": whether there are more}.
    #[arg(long)]
    json: bool,
}

fn statuses() -> impl TypedValueParser<Value = SyncStatus> {
    let known = SyncStatus::ALL.iter().map(|status| status.as_str());
    PossibleValuesParser::new(known).try_map(|word| {
        let status = SyncStatus::ALL.iter().find(|status| status.as_str() == word);
        status.copied().ok_or_else(|| format!("no status {word:?}"))
    })
}

pub(super) async fn execute(args: &ListArgs, settings: &Settings) -> anyhow::Result<()> {
    let mut connection = super::connect(settings).await?;
    let which = Which {
        user: args.user,
        session: args.session.as_ref().map(SessionId::as_str),
        status: args.status,
        ..Which::default()
    };
    let Found { syncs, unreadable, more } = load::syncs(&mut connection, &which, args.limit).await?;
    for Unreadable { user_id, sync_id, problem } in &unreadable {
        errln!("warning: the sync {sync_id} of user {user_id} {UNREADABLE}: {}", printable(problem));
    }
    if args.json {
        let listed = Listed { syncs: &syncs, unreadable: &unreadable, more };
        out_json(serde_json::to_string(&listed).context("cannot serialize the syncs")?);
    } else if syncs.is_empty() && unreadable.is_empty() {
        outln!("no syncs");
    } else {
        outln!("{}", table(&syncs).to_string().trim_end());
        if more {
            outln!("showing the latest {}; use --limit for more", grouped(args.limit.into()));
        }
    }
    Ok(())
}

#[derive(serde::Serialize)]
struct Listed<'a> {
    syncs: &'a [Sync],
    unreadable: &'a [Unreadable],
    more: bool,
}

fn table(syncs: &[Sync]) -> Table {
    let mut table = Table::new([
        ("sync", Align::Left),
        ("user", Align::Right),
        ("from", Align::Left),
        ("into", Align::Left),
        ("type", Align::Left),
        ("state", Align::Left),
        ("keys", Align::Right),
        ("conflicts", Align::Right),
        ("failed", Align::Right),
        ("started", Align::Left),
    ]);
    for Sync { user_id, info } in syncs {
        let counts = &info.transferred;
        table.row([
            info.sync_id.to_string(),
            user_id.to_string(),
            info.source_session_id.clone(),
            info.target_session_id.clone(),
            info.sync_type.as_str().to_owned(),
            state(info.sync_status, info.end_reason),
            grouped(counts.created + counts.fast_forwarded + counts.merged + counts.references),
            grouped(counts.conflicts + counts.disputes),
            grouped(counts.failed),
            info.created_at.to_rfc3339_opts(SecondsFormat::Secs, true),
        ]);
    }
    table
}

/// The status, and why it carries no more.
pub(super) fn state(status: SyncStatus, end: Option<SyncEnd>) -> String {
    match end {
        Some(SyncEnd::Carried) | None => status.as_str().to_owned(),
        Some(end) => format!("{} ({})", status.as_str(), end.as_str()),
    }
}
