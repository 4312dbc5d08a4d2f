//! Complete archives that no row of the database names, and that have rows of the person all the same.
//!
//! A run of retention-cleaner writes an archive before the transaction that names it. If the fence comes in between, or the run is killed, the
//! archive stays, and `memfleet archive clean` keeps complete ones. Once the step `drain` is over, no worker can name one with rows of the
//! person any more: `sec.record_archive` wants all users of an archive in the context, which does not open for the person. What a killed run
//! has left incomplete has no manifest, so that nobody can tell whose rows it has: `memfleet archive clean` deletes it.

use std::collections::{BTreeMap, HashSet};

use ::archive::{ArchiveError, Manifest, Old, Target, read_manifest, without_user};
use config::Settings;
use diesel::QueryableByName;
use diesel::sql_types::{Array, Uuid as SqlUuid};
use diesel_async::RunQueryDsl;
use store::Connection;
use trust::PublicKey;
use uuid::Uuid;

use super::{ArchiveStore, Superseded, Work, accepted_keys, away, discard_superseded, save};
use crate::crash::{self, Point};
use crate::error::PrivacyError;
use crate::step::{Claimed, Step};

/// The most archives that one pass writes anew. More of them follow in the next pass.
const MOST: usize = 1_000;
/// How often the step is tried while something cannot be read: within some three minutes.
const TRIES: u64 = 5;

/// An archive that no row of the database names.
pub(crate) struct Orphan {
    pub(crate) location: String,
    pub(crate) manifest: Manifest,
    pub(crate) hash: [u8; 32],
}

/// What became of reading an archive.
pub(crate) enum Read {
    Orphan(Box<Orphan>),
    /// It was deleted meanwhile.
    Gone,
    /// Its manifest is not one of this deployment, so that nobody can tell whose rows it has.
    Foreign(String),
    /// Its manifest cannot be read, at least for now.
    Unreadable(String),
}

/// The folders of complete archives that no row of the database names, and what could not be read. The database is asked last: an archive that
/// a run completes and names meanwhile is not among them.
pub(crate) async fn unnamed(
    db: &mut Connection,
    target: &Target,
) -> Result<(Vec<String>, Vec<String>), PrivacyError> {
    #[derive(QueryableByName)]
    struct Unnamed {
        #[diesel(sql_type = SqlUuid)]
        id: Uuid,
    }
    const UNNAMED: &str = "SELECT i.id FROM unnest($1) AS i (id) WHERE NOT EXISTS (SELECT FROM public.archives a WHERE a.id = i.id)";
    let listing = target.list().await?;
    let complete = listing.complete();
    let ids: Vec<Uuid> = complete.iter().map(|(_, id)| *id).collect();
    let found: Vec<Unnamed> = diesel::sql_query(UNNAMED).bind::<Array<SqlUuid>, _>(ids).load(db).await?;
    let found: HashSet<Uuid> = found.into_iter().map(|row| row.id).collect();
    let unnamed = complete.into_iter().filter(|(_, id)| found.contains(id)).map(|(location, _)| location);
    Ok((unnamed.collect(), listing.unreadable))
}

/// The archive in a folder.
pub(crate) async fn read(
    target: &Target,
    keys: &[PublicKey],
    location: String,
) -> Result<Read, PrivacyError> {
    match read_manifest(target, keys, &location).await {
        Ok((manifest, hash)) => Ok(Read::Orphan(Box::new(Orphan { location, manifest, hash }))),
        Err(ArchiveError::Missing(_)) => Ok(Read::Gone),
        Err(error @ ArchiveError::Changed { .. }) => Ok(Read::Foreign(error.to_string())),
        Err(error @ ArchiveError::Target { .. }) => Ok(Read::Unreadable(error.to_string())),
        Err(error @ (ArchiveError::Settings(_) | ArchiveError::Key { .. } | ArchiveError::Rows { .. })) => {
            Err(error.into())
        }
    }
}

/// Writes each archive that nothing names and that has rows of the person anew without them, and deletes the old one. Where nobody else has
/// rows in it, it is only deleted. What cannot be read holds the step up for some tries, as a disk or a server may be away for a while, and
/// is then noted for the receipt: whoever may write there could hold up every erasure.
///
/// # Errors
/// [`PrivacyError::Refused`] if one is not as it was written, [`PrivacyError::Away`] if a file is missing or there are more of them than a pass
/// does; otherwise if the target or the database fails.
pub(super) async fn rewrite(
    db: &mut Connection,
    claimed: &mut Claimed,
    store: &ArchiveStore,
    work: &mut Work,
) -> Result<(), PrivacyError> {
    let mut done = 0;
    let (unnamed, mut unreadable) = unnamed(db, &store.target).await?;
    let mut foreign: u64 = 0;
    for location in unnamed {
        let orphan = match read(&store.target, &store.public, location).await? {
            Read::Orphan(orphan) => orphan,
            Read::Gone => continue,
            Read::Foreign(error) => {
                tracing::warn!(
                    error,
                    "nobody can tell whose rows are in an archive that the database does not name; `memfleet archive list --orphans` lists it"
                );
                foreign += 1;
                continue;
            }
            Read::Unreadable(error) => {
                unreadable.push(error);
                continue;
            }
        };
        if !orphan.manifest.users.contains(&claimed.user.get()) {
            continue;
        }
        if done == MOST {
            return Err(away(format!(
                "{MOST} archives that no row of the database names were written anew, and there are more; they follow when the step is tried \
                 again"
            )));
        }
        rewrite_one(db, claimed, store, work, *orphan).await?;
        done += 1;
    }
    let places = u64::try_from(unreadable.len()).unwrap_or(u64::MAX);
    work.unreadable = places.saturating_add(foreign);
    work.tries_to_read = if unreadable.is_empty() { 0 } else { work.tries_to_read.saturating_add(1) };
    save(db, claimed, work).await?;
    match unreadable.into_iter().next() {
        Some(first) if work.tries_to_read <= TRIES => Err(away(format!(
            "{first} ({places} places at the archive target cannot be read); the step goes on without them after {TRIES} tries"
        ))),
        Some(first) => {
            tracing::warn!(request = %claimed.id, places, first, "an erasure goes on without what cannot be read at the archive target");
            Ok(())
        }
        None => Ok(()),
    }
}

async fn rewrite_one(
    db: &mut Connection,
    claimed: &mut Claimed,
    store: &ArchiveStore,
    work: &mut Work,
    orphan: Orphan,
) -> Result<(), PrivacyError> {
    let Orphan { location, manifest, hash } = orphan;
    // The same id in each try: one that was killed has written the same files, and the old ones are there until all new ones are.
    let id = Uuid::new_v5(&manifest.id, claimed.id.as_bytes());
    let old = Old { location: &location, hash: &hash, not_removed: &[] };
    let user = claimed.user.get();
    let unreadable = |error: ArchiveError| {
        format!(
            "the archive at {location}, which no row of the database names, has rows of the person and cannot be written anew: {error}; \
             restore its files, or delete them, and the step goes on"
        )
    };
    let rewritten = match without_user(&store.target, &store.signing, &store.public, old, user, id).await {
        Ok(rewritten) => rewritten,
        // The run that wrote it may be deleting it.
        Err(error @ ArchiveError::Missing(_)) => return Err(away(unreadable(error))),
        Err(error @ ArchiveError::Changed { .. }) => return Err(PrivacyError::Refused(unreadable(error))),
        Err(error) => return Err(error.into()),
    };
    crash::reach(Step::Archives, Point::Between);
    work.before += 1;
    work.rows += rewritten.removed;
    work.rewritten += u64::from(rewritten.written.is_some());
    work.superseded.push(Superseded { location, files: rewritten.old_files });
    // Before the first file is deleted: without its manifest, nobody would find the others.
    save(db, claimed, work).await?;
    discard_superseded(store, work).await
}

/// Whose rows are in complete archives that no row of the database names.
#[derive(Debug, Default)]
pub(crate) struct Orphans {
    /// How many of them have rows of each user.
    pub(crate) users: BTreeMap<i32, u64>,
    /// What could not be read, and why: nobody can tell whose rows are there.
    pub(crate) unknown: Vec<String>,
}

/// Reads the manifests of all of them. There are none if `archive.url` is not set.
///
/// # Errors
/// [`PrivacyError::Away`] if the target cannot be used; otherwise if it or the database fails.
pub(crate) async fn orphans(db: &mut Connection, settings: &Settings) -> Result<Orphans, PrivacyError> {
    if settings.archive.url.is_none() {
        return Ok(Orphans::default());
    }
    let target = Target::open(&settings.archive).map_err(away)?;
    let keys = accepted_keys(&settings.archive)?;
    let (unnamed, unknown) = unnamed(db, &target).await?;
    let mut orphans = Orphans { users: BTreeMap::new(), unknown };
    for location in unnamed {
        match read(&target, &keys, location).await? {
            Read::Orphan(orphan) => {
                for user in orphan.manifest.users {
                    *orphans.users.entry(user).or_insert(0) += 1;
                }
            }
            Read::Gone => {}
            Read::Foreign(problem) | Read::Unreadable(problem) => orphans.unknown.push(problem),
        }
    }
    Ok(orphans)
}
