//! `memfleet archive list` and `memfleet archive clean`

use std::collections::{BTreeSet, HashSet};

use anyhow::Context;
use archive::{Found, Listing, Target};
use chrono::{DateTime, SecondsFormat, TimeDelta, Utc};
use clap::Args;
use cli::output::{out_json, printable};
use cli::table::{Align, Table, grouped};
use cli::{errln, outln};
use config::Settings;
use contract::UserId;
use diesel::QueryableByName;
use diesel::sql_types::Uuid as SqlUuid;
use diesel_async::RunQueryDsl;
use store::Connection;
use uuid::Uuid;

use super::load::{self, Filter};

#[derive(Debug, Args)]
pub(super) struct ListArgs {
    /// Only archives of this table.
    #[arg(long, value_name = "TABLE", value_parser = load::table_name)]
    table: Option<String>,
    /// Only archives with rows of this user.
    #[arg(long, value_name = "ID")]
    user: Option<UserId>,
    /// Files at the target that are named as those of archives and that no archive has, instead.
    #[arg(long, conflicts_with_all = ["table", "user"])]
    orphans: bool,
    /// Maximum number of archives or files, 1 to 10000.
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    limit: u32,
    /// Print one JSON object: {"archives": [...]} or {"orphans": [...]}.
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
pub(super) struct CleanArgs {
    /// Only files that are older than so many hours, 24 to 87600.
    #[arg(long, default_value_t = 24, value_name = "HOURS", value_parser = clap::value_parser!(u32).range(24..=87_600))]
    older_than: u32,
    /// Also delete complete archives, which have a manifest. Their rows may be nowhere else.
    #[arg(long)]
    complete: bool,
    /// Only print the files.
    #[arg(long)]
    dry_run: bool,
}

pub(super) async fn execute(args: &ListArgs, settings: &Settings) -> anyhow::Result<()> {
    let mut connection = super::connect(settings).await?;
    let limit = usize::try_from(args.limit).unwrap_or(usize::MAX);
    if args.orphans {
        let mut orphans = orphans(&mut connection, &Target::open(&settings.archive)?).await?;
        orphans.truncate(limit);
        show_orphans(&orphans, args.json);
        return Ok(());
    }
    let filter = Filter {
        table: args.table.clone(),
        users: args.user.iter().map(|user| user.get()).collect(),
        ..Filter::default()
    };
    let archives = load::archives(&mut connection, &filter, i64::from(args.limit)).await?;
    if args.json {
        let listed: Vec<_> = archives
            .iter()
            .map(|one| {
                serde_json::json!({ "id": one.id, "table": one.table_name, "location": one.location, "created_at": time(one.created_at),
                    "rows": one.row_count, "bytes": one.byte_count, "first_at": time(one.first_at), "last_at": time(one.last_at),
                    "users": one.user_ids, "policies": one.policies, "not_removed": one.not_removed })
            })
            .collect();
        out_json(serde_json::json!({ "archives": listed }).to_string());
        return Ok(());
    }
    if archives.is_empty() {
        outln!("no archives");
        return Ok(());
    }
    let mut table = Table::new([
        ("archive", Align::Left),
        ("table", Align::Left),
        ("created", Align::Left),
        ("rows", Align::Right),
        ("users", Align::Right),
        ("bytes", Align::Right),
        ("first row", Align::Left),
        ("last row", Align::Left),
    ]);
    for one in archives {
        table.row([
            one.id.to_string(),
            one.table_name,
            time(one.created_at),
            grouped(u64::from(one.row_count.unsigned_abs())),
            grouped(u64::try_from(one.user_ids.len()).unwrap_or(u64::MAX)),
            grouped(one.byte_count.unsigned_abs()),
            time(one.first_at),
            time(one.last_at),
        ]);
    }
    outln!("{}", table.to_string().trim_end());
    Ok(())
}

fn time(time: DateTime<Utc>) -> String {
    time.to_rfc3339_opts(SecondsFormat::Secs, true)
}

/// The files at the target that no archive has, with a warning if it has links. The archives are read last: one that is written meanwhile is
/// not among them.
async fn orphans(connection: &mut Connection, target: &Target) -> anyhow::Result<Vec<Found>> {
    #[derive(QueryableByName)]
    struct Known {
        #[diesel(sql_type = SqlUuid)]
        id: Uuid,
    }
    let Listing { mut files, links, unreadable } = target.list().await?;
    for problem in &unreadable {
        errln!("warning: {}", printable(problem));
    }
    if let Some(first) = links.as_slice().first() {
        errln!(
            "warning: {} links at the archive target are ignored, such as {}; archives have no links",
            links.len(),
            printable(first)
        );
    }
    let query = diesel::sql_query("SELECT id FROM archives");
    let known: Vec<Known> = query.load(connection).await.context("cannot read the archives")?;
    let known: HashSet<String> = known.into_iter().map(|row| row.id.to_string()).collect();
    // Each folder has an id of its own. The place that the database says an archive is in may be written in another way than that of a file.
    let is_known = |file: &Found| folder(file).rsplit_once('/').is_some_and(|(_, id)| known.contains(id));
    files.retain(|file| !is_known(file));
    Ok(files)
}

/// The folder of a file.
fn folder(file: &Found) -> &str {
    file.path.rsplit_once('/').map_or("", |(folder, _)| folder)
}

fn show_orphans(orphans: &[Found], json: bool) {
    if json {
        let listed: Vec<_> = orphans
            .iter()
            .map(|one| serde_json::json!({ "path": one.path, "bytes": one.bytes, "modified": time(one.modified) }))
            .collect();
        out_json(serde_json::json!({ "orphans": listed }).to_string());
        return;
    }
    if orphans.is_empty() {
        outln!("no files without an archive");
        return;
    }
    let mut table = Table::new([("file", Align::Left), ("bytes", Align::Right), ("written", Align::Left)]);
    for one in orphans {
        table.row([one.path.clone(), grouped(one.bytes), time(one.modified)]);
    }
    outln!("{}", table.to_string().trim_end());
}

/// A run names its archive within an hour after it has begun to write it (`retention_cleaner`), so older files are of no run that is
/// under way. The manifest is written last, so a run that was killed before leaves files without one. An archive that has one may be the only
/// place of its rows, if somebody deleted its name.
pub(super) async fn clean(args: &CleanArgs, settings: &Settings) -> anyhow::Result<()> {
    let mut connection = super::connect(settings).await?;
    let target = Target::open(&settings.archive)?;
    let before = Utc::now() - TimeDelta::hours(i64::from(args.older_than));
    let mut files = orphans(&mut connection, &target).await?;
    files.retain(|file| file.modified < before);
    let has_manifest = |file: &&Found| file.path.ends_with("/manifest.json");
    let kept: BTreeSet<String> = match args.complete {
        true => BTreeSet::new(),
        false => files.iter().filter(has_manifest).map(|file| folder(file).to_owned()).collect(),
    };
    files.retain(|file| !kept.contains(folder(file)));
    for file in &files {
        if !args.dry_run {
            target.delete(&file.path).await?;
        }
        outln!("{} {}", if args.dry_run { "would delete" } else { "deleted" }, printable(&file.path));
    }
    if let Some(first) = kept.iter().next() {
        errln!(
            "warning: {} complete archives that the database does not name are kept, such as {}; compare their rows with the database \
             and with later archives, and delete them with --complete",
            kept.len(),
            printable(first)
        );
    } else if files.is_empty() {
        outln!("no files without an archive are older than {} h", args.older_than);
    }
    Ok(())
}
