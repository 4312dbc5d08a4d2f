//! `memfleet archive restore`

use std::collections::{BTreeMap, BTreeSet, HashSet};

use anyhow::{Context, ensure};
use archive::{Contents, ENCRYPTED_FIELDS, Rows, Table};
use clap::Args;
use cli::outln;
use config::Settings;
use contract::UserId;
use diesel_async::SimpleAsyncConnection;
use store::Connection;
use uuid::Uuid;

use super::load::{self, Archive, Filter, PAGE, Source};
use super::rows::{clocks, erased, insert, note, without_session};

#[derive(Debug, Args)]
pub(super) struct RestoreArgs {
    /// The id of the archive.
    #[arg(value_name = "ARCHIVE")]
    archive: Uuid,
    /// Only rows of this user.
    #[arg(long, value_name = "ID")]
    user: Option<UserId>,
    /// Only rows of this session.
    #[arg(long, value_name = "ID")]
    session: Option<String>,
    /// Only print what would be restored.
    #[arg(long)]
    dry_run: bool,
}

/// What became of the rows.
#[derive(Debug, Default)]
struct Report {
    restored: usize,
    present: usize,
    erased: BTreeSet<i32>,
    erased_rows: usize,
    superseded: usize,
    without_session: usize,
}

/// A row's key, as text.
type Key = Vec<Option<String>>;

fn key(table: &Table, rows: &Rows, row: usize) -> Key {
    table.key.iter().map(|column| rows.get(row, column).to_text()).collect()
}

pub(super) async fn execute(args: &RestoreArgs, settings: &Settings) -> anyhow::Result<()> {
    let mut connection = super::connect(settings).await?;
    let source = Source::open(settings)?;
    let filter = Filter { ids: vec![args.archive], ..Filter::default() };
    let found = load::archives(&mut connection, &filter, 1).await?.pop();
    let archive = found.with_context(|| {
        format!("there is no archive {}; `memfleet archive list` shows the archives", args.archive)
    })?;
    let table = archive::table(&archive.table_name)
        .with_context(|| format!("this program does not restore rows of {}", archive.table_name))?;
    let mut contents = source.read(&archive).await?;
    let mut rows = load::removed(&archive, &mut contents);
    rows.retain(|rows, row| load::is_of(rows, row, args.user, args.session.as_deref()));
    ensure!(!rows.is_empty(), "the archive {} has no such rows", archive.id);
    let newer = newer(&mut connection, &source, &archive, table, &rows).await?;
    let asked = rows.len();
    rows.retain(|rows, row| !newer.contains(&key(table, rows, row)));
    let mut report = Report { superseded: asked - rows.len(), ..Report::default() };

    connection.batch_execute("BEGIN; SET LOCAL lock_timeout = '5s'").await?;
    // An error ends the connection, and with it the transaction.
    restore(&mut connection, &archive, table, rows, &contents, &mut report).await?;
    connection
        .batch_execute(if args.dry_run { "ROLLBACK" } else { "COMMIT" })
        .await
        .context("cannot commit")?;
    show(&report, &archive, args.dry_run);
    ensure!(
        report.erased_rows == 0,
        "{} rows are of users who were erased, and are not restored: {}",
        report.erased_rows,
        report.erased.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
    );
    Ok(())
}

/// The keys of rows that a later archive has, and which were thus written again after this archive. Rows that are known by their id never
/// change.
async fn newer(
    connection: &mut Connection,
    source: &Source,
    archive: &Archive,
    table: &Table,
    rows: &Rows,
) -> anyhow::Result<HashSet<Key>> {
    let mut keys = HashSet::new();
    if table.key.contains(&"id") {
        return Ok(keys);
    }
    let users: BTreeSet<i32> =
        (0..rows.len()).filter_map(|row| load::number(rows.get(row, "user_id"))).collect();
    let mut filter = Filter {
        table: Some(table.name.to_owned()),
        users: users.into_iter().collect(),
        after: Some((archive.created_at, archive.id)),
        ..Filter::default()
    };
    loop {
        let page = load::archives(connection, &filter, PAGE).await?;
        let Some(last) = page.last() else { return Ok(keys) };
        filter.after = Some((last.created_at, last.id));
        for later in &page {
            let rows = source
                .removed(later)
                .await
                .with_context(|| format!("cannot tell whether the archive {} has newer rows", later.id))?;
            keys.extend((0..rows.len()).map(|row| key(table, &rows, row)));
        }
    }
}

async fn restore(
    connection: &mut Connection,
    archive: &Archive,
    table: &Table,
    mut rows: Rows,
    contents: &Contents,
    report: &mut Report,
) -> anyhow::Result<()> {
    let user_of = |rows: &Rows, row: usize| load::number(rows.get(row, "user_id")).unwrap_or_default();
    report.erased = erased(connection, (0..rows.len()).map(|row| user_of(&rows, row)).collect()).await?;
    let before = rows.len();
    rows.retain(|rows, row| !report.erased.contains(&user_of(rows, row)));
    report.erased_rows = before - rows.len();
    if table.needs_session {
        let missing = without_session(connection, &rows).await?;
        let before = rows.len();
        rows.retain(|rows, row| {
            let session = load::text(rows.get(row, "session_id")).unwrap_or_default().to_owned();
            !missing.contains(&(user_of(rows, row), session))
        });
        report.without_session = before - rows.len();
    }
    if table.name == "blackboard_events" {
        clocks(connection, &rows).await?;
    }
    let inserted = insert(connection, &rows).await?;
    report.restored = inserted.len();
    report.present = rows.len() - inserted.len();
    let mut owners = inserted.clone();
    rows.retain(|rows, row| {
        load::uuid(rows.get(row, "id")).is_some_and(|id| inserted.contains(&(user_of(rows, row), id)))
    });
    for part in table.parts {
        let Some(known) = contents.rows(part) else { continue };
        let mut known = known.clone();
        known.retain(|known, row| belongs(part, &owners, &rows, known, row));
        let added = insert(connection, &known).await?;
        if *part != ENCRYPTED_FIELDS {
            owners.extend(added);
        }
    }
    let mut by_user: BTreeMap<i32, i32> = BTreeMap::new();
    for (user, _) in &inserted {
        *by_user.entry(*user).or_default() += 1;
    }
    note(connection, archive.id, table.name, &by_user).await
}

/// Whether a row of a part belongs to what was restored: a summary to a session, a ciphertext to a row.
fn belongs(part: &str, owners: &HashSet<(i32, Uuid)>, sessions: &Rows, known: &Rows, row: usize) -> bool {
    let user = load::number(known.get(row, "user_id")).unwrap_or_default();
    if part == ENCRYPTED_FIELDS {
        return load::uuid(known.get(row, "row_id")).is_some_and(|id| owners.contains(&(user, id)));
    }
    let session = load::text(known.get(row, "session_id"));
    (0..sessions.len()).any(|other| {
        load::number(sessions.get(other, "user_id")) == Some(user)
            && load::text(sessions.get(other, "session_id")) == session
    })
}

fn show(report: &Report, archive: &Archive, dry_run: bool) {
    let would = if dry_run { "would be " } else { "" };
    outln!("{} rows of {} {would}restored", report.restored, archive.table_name);
    for (count, what) in [
        (report.present, "are in the database, or a newer row in their place"),
        (report.superseded, "are replaced by newer rows in a later archive"),
        (
            report.without_session,
            "need a session that is not there; restore the archive of chat_mode_sessions first",
        ),
    ] {
        if count > 0 {
            outln!("{count} rows {what}");
        }
    }
    if report.restored > 0 && !dry_run {
        outln!(
            "Retention applies to them again: place a legal hold (policy.hold), or the next run archives them."
        );
    }
}
