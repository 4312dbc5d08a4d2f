//! Archives of what a run removes. They are written and read back while no transaction is open; the transaction that follows removes the
//! rows that are as they are in the archive, and names it. A run that is killed before leaves files that nothing names, and all rows.

use ::archive::{ArchiveError, Draft, Keys, TABLES, Table, Target};
use ::store::{Connection, Fault, Pool, security};
use chrono::{DateTime, TimeDelta, Utc};
use config::ArchiveSettings;
use diesel_async::AsyncConnection;
use uuid::Uuid;

use crate::store::archive::{self, Archived, Due, Found};
use crate::store::{progress, sweep::ROWS};

/// How old an archive may be when its rows are removed. Files that nothing names are deleted after a day
/// (`memfleet archive clean`), so a run that was stopped for that long must not name them.
pub(crate) const USED_WITHIN: TimeDelta = TimeDelta::hours(1);

/// The archives of a run, and why there are not more of them.
#[derive(Debug, Default)]
pub struct Archives {
    pub(crate) written: Vec<Archived>,
    /// The run after which they were read; none if none was read.
    pub(crate) read_after: Option<progress::Run>,
    pub(crate) failure: Option<String>,
}

impl Archives {
    /// Adds why rows stay.
    fn fail(&mut self, reason: String) {
        match &mut self.failure {
            Some(failure) => {
                failure.push_str("; ");
                failure.push_str(&reason);
            }
            None => self.failure = Some(reason),
        }
    }

    pub(crate) fn with(mut self, other: Self) -> Self {
        self.written.extend(other.written);
        self.read_after = self.read_after.or(other.read_after);
        self.failure = self.failure.or(other.failure);
        self
    }

    /// Whether another run came after they were read.
    pub(crate) fn is_outdated(&self, last: &progress::Run) -> bool {
        !self.written.is_empty() && self.read_after.as_ref() != Some(last)
    }

    /// Those that are young enough, and why others are not used.
    pub(crate) fn usable(&self, now: DateTime<Utc>) -> (Vec<&Archived>, Option<String>) {
        let is_young = |one: &&Archived| now - one.written.manifest.created_at <= USED_WITHIN;
        let usable: Vec<&Archived> = self.written.iter().filter(is_young).collect();
        let late = usable.len() < self.written.len();
        let failure = self.failure.clone();
        let too_late =
            || "an archive was written too long ago to be used; its rows stay until the next run".to_owned();
        (usable, failure.or_else(|| late.then(too_late)))
    }
}

/// Archives what is due. What cannot be archived stays in the database, and is told by the run.
pub(crate) async fn prepare(
    pool: &Pool,
    settings: &ArchiveSettings,
    run: Uuid,
    grants: &[&str],
) -> Result<Archives, Fault> {
    let mut archives = Archives::default();
    if grants.is_empty() {
        return Ok(archives);
    }
    let mut most = ROWS;
    archives.read_after = Some(last_run(pool).await?);
    for table in &TABLES {
        if most <= 0 {
            break;
        }
        let Found { due, too_large } = read(pool, table, most, grants).await?;
        if too_large > 0 {
            tracing::error!(
                too_large,
                table = table.name,
                "rows whose retention is over are too large to archive and stay"
            );
            archives.fail(format!("{too_large} rows of {} are too large to archive and stay", table.name));
        }
        let Some(due) = due else { continue };
        let taken = i32::try_from(due.rows.len()).unwrap_or(i32::MAX);
        match write(settings, table, run, due).await {
            Ok(written) => {
                most -= taken;
                archives.written.push(written);
            }
            Err(error) => {
                tracing::error!(%error, table = table.name, "rows whose retention is over cannot be archived and stay");
                archives.fail(format!("rows of {} stay: {error}", table.name));
            }
        }
    }
    Ok(archives)
}

/// Deletes archives that no transaction has named: of two runs that read the same rows, one removes them. What cannot be deleted stays
/// without a name until `memfleet archive clean`.
pub(crate) async fn discard(settings: &ArchiveSettings, archives: &Archives, named: &[Uuid]) {
    let unnamed: Vec<&Archived> =
        archives.written.iter().filter(|one| !named.contains(&one.written.manifest.id)).collect();
    if unnamed.is_empty() {
        return;
    }
    let target = match Target::open(settings) {
        Ok(target) => target,
        Err(error) => {
            tracing::warn!(%error, "archives that nothing names cannot be deleted");
            return;
        }
    };
    for one in unnamed {
        if let Err(error) = ::archive::discard(&target, &one.written).await {
            tracing::warn!(%error, location = one.written.location, "an archive that nothing names cannot be deleted");
        }
    }
}

async fn last_run(pool: &Pool) -> Result<progress::Run, Fault> {
    let mut connection = ::store::acquire(pool).await?;
    let last = progress::last_run(&mut connection).await;
    ::store::discard_if_unusable(connection, &last);
    last
}

async fn read(pool: &Pool, table: &Table, most: i32, grants: &[&str]) -> Result<Found, Fault> {
    let mut connection = ::store::acquire(pool).await?;
    let due = connection.transaction(async |connection| due(connection, table, most, grants).await).await;
    ::store::discard_if_unusable(connection, &due);
    due
}

async fn due(connection: &mut Connection, table: &Table, most: i32, grants: &[&str]) -> Result<Found, Fault> {
    security::open_context(connection, grants).await?;
    if !archive::has_policies(connection).await? {
        return Ok(Found::default());
    }
    let users = progress::users(connection).await?;
    archive::read(connection, table, Utc::now(), &users, most).await
}

async fn write(
    settings: &ArchiveSettings,
    table: &'static Table,
    run: Uuid,
    due: Due,
) -> Result<Archived, ArchiveError> {
    let target = Target::open(settings)?;
    let key = Keys::signing(settings)?;
    let Due { rows, parts, tables, policies, has_more } = due;
    let draft = Draft { id: Uuid::now_v7(), run, created_at: Utc::now(), policies, tables };
    let written = ::archive::write(&target, &key, draft).await?;
    Ok(Archived { table, written, rows, parts, has_more })
}
