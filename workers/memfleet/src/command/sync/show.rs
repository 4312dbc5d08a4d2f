//! `memfleet sync show`

use anyhow::Context;
use chrono::{DateTime, SecondsFormat, Utc};
use clap::Args;
use cli::outln;
use cli::output::{out_json, printable};
use cli::table::grouped;
use config::Settings;
use contract::{Json, SyncCandidate, SyncChangeInfo, SyncConflict, SyncCounts, UserId};
use uuid::Uuid;

use super::list::state;
use super::load::{self, Sync};

#[derive(Debug, Args)]
pub(super) struct ShowArgs {
    /// The id of the sync.
    #[arg(value_name = "SYNC")]
    sync: Uuid,
    /// Its user, if several users have a sync with this id.
    #[arg(long, value_name = "ID")]
    user: Option<UserId>,
    /// Only keys in which a rule decided something, which are disputed, or which cannot be merged.
    #[arg(long)]
    conflicts: bool,
    /// Maximum number of keys, the latest first, 1 to 10000.
    #[arg(long, default_value_t = 50, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    limit: u32,
    /// Print one JSON object: {"sync": …, "changes": [...], "more": whether there are more}.
    #[arg(long)]
    json: bool,
}

/// The most characters of a value that are shown.
const SHOWN: usize = 60;

pub(super) async fn execute(args: &ShowArgs, settings: &Settings) -> anyhow::Result<()> {
    let mut connection = super::connect(settings).await?;
    let sync = load::one(&mut connection, args.sync, args.user).await?;
    let mut changes = load::changes(&mut connection, &sync, args.conflicts, args.limit).await?;
    let limit = usize::try_from(args.limit)?;
    let more = changes.len() > limit;
    changes.truncate(limit);
    if args.json {
        let shown = Shown { sync: &sync, changes: &changes, more };
        out_json(serde_json::to_string(&shown).context("cannot serialize the sync")?);
        return Ok(());
    }
    head(&sync);
    for change in &changes {
        print(change);
    }
    if more {
        outln!("showing the latest {}; use --limit for more", super::counted(args.limit.into(), "key"));
    }
    Ok(())
}

#[derive(serde::Serialize)]
struct Shown<'a> {
    sync: &'a Sync,
    changes: &'a [SyncChangeInfo],
    more: bool,
}

fn time(time: DateTime<Utc>) -> String {
    time.to_rfc3339_opts(SecondsFormat::Secs, true)
}

fn head(Sync { user_id, info }: &Sync) {
    outln!("sync       {} of user {user_id}", info.sync_id);
    outln!("sessions   {} into {}", printable(&info.source_session_id), printable(&info.target_session_id));
    let private = if info.crosses_private { ", private keys too" } else { "" };
    outln!("type       {}{private}", info.sync_type.as_str());
    outln!("state      {}", state(info.sync_status, info.end_reason));
    outln!("started    {} by {}", time(info.created_at), printable(&info.service));
    outln!("last       {}, round {}", time(info.updated_at), info.rounds);
    for (label, at) in
        [("expires", info.expires_at), ("ended", info.completed_at), ("undone", info.undone_at)]
    {
        if let Some(at) = at {
            outln!("{label:<10} {}", time(at));
        }
    }
    outln!("keys       {}", named(&info.transferred, WRITTEN));
    outln!("stayed     {}", named(&info.transferred, STAYED));
    outln!("conflicts  {}", named(&info.transferred, DECIDED));
    outln!();
}

/// Numbers of keys, each with its name.
type Counted = &'static [(&'static str, fn(&SyncCounts) -> u64)];

const WRITTEN: Counted = &[
    ("created", |counts| counts.created),
    ("fast-forwarded", |counts| counts.fast_forwarded),
    ("merged", |counts| counts.merged),
    ("known already", |counts| counts.unchanged),
    ("references", |counts| counts.references),
    ("still to come", |counts| counts.left),
];
const STAYED: Counted = &[
    ("private", |counts| counts.private),
    ("expired", |counts| counts.expired),
    ("removed before they crossed", |counts| counts.removed),
    ("encrypted", |counts| counts.encrypted),
    ("nodes withheld", |counts| counts.withheld),
];
const DECIDED: Counted = &[
    ("by a rule", |counts| counts.conflicts),
    ("disputed", |counts| counts.disputes),
    ("cannot be merged", |counts| counts.failed),
];

fn named(counts: &SyncCounts, what: Counted) -> String {
    let of = |(name, count): &(&str, fn(&SyncCounts) -> u64)| match count(counts) {
        0 => None,
        count => Some(format!("{} {name}", grouped(count))),
    };
    let named: Vec<String> = what.iter().filter_map(of).collect();
    if named.is_empty() { "none".to_owned() } else { named.join(", ") }
}

fn print(change: &SyncChangeInfo) {
    let undone = change.undone_at.map(|at| format!(", undone {}", time(at))).unwrap_or_default();
    outln!("{}: {}{undone}", name(change), change.effect.as_str());
    if let Some(reason) = &change.reason {
        outln!("    {}", printable(reason));
    }
    change.conflicts.iter().for_each(conflict);
    if !change.disputed.is_empty() {
        outln!("    disputed; each session keeps its own value:");
        change.disputed.iter().for_each(|said| outln!("        {}", candidate(said)));
    }
}

/// The key, with the agent and the tier of a memory of an agent.
fn name(change: &SyncChangeInfo) -> String {
    let of = match (&change.agent_id, change.memory_tier) {
        (Some(agent), Some(tier)) => format!(" of agent {} ({})", printable(agent), tier.as_str()),
        _ => String::new(),
    };
    format!("{}{of}", printable(&change.context_key))
}

fn conflict(conflict: &SyncConflict) {
    let path = if conflict.path.is_empty() { "the value" } else { conflict.path.as_str() };
    outln!(
        "    {}: {} by both, rule {}; kept {}",
        printable(path),
        conflict.cause.as_str(),
        conflict.rule.as_str(),
        value(conflict.kept.as_ref())
    );
    conflict.lost.iter().for_each(|lost| outln!("        lost {}", candidate(lost)));
}

fn candidate(SyncCandidate { session_id, written_at, value: written, .. }: &SyncCandidate) -> String {
    format!("{}, of session {} at {}", value(written.as_ref()), printable(session_id), time(*written_at))
}

fn value(value: Option<&Json>) -> String {
    let Some(value) = value else { return "the removal".to_owned() };
    let text = printable(value.as_str());
    if text.chars().count() <= SHOWN {
        return text.into_owned();
    }
    format!("{}…", text.chars().take(SHOWN).collect::<String>())
}
