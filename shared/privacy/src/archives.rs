//! Archives, which are written anew without the person: those that the database names, and those that no row of it names (`orphans`).
//!
//! An archive may have rows of several persons, whose erasures are done at once. Of two that read the same archive, the later one would put
//! rows of the other person into a file again. So one at a time does this step, under an advisory lock.

pub(crate) mod orphans;

use std::time::{Duration, Instant};

use ::archive::{ArchiveError, Keys, Old, Target, discard, discard_files, without_user};
use config::{ArchiveSettings, Settings};
use contract::UserId;
use diesel::QueryableByName;
use diesel::sql_types::{Array, BigInt, Binary, Bool, Integer, Text, Timestamptz, Uuid as SqlUuid};
use diesel_async::{AsyncConnection, RunQueryDsl};
use serde::{Deserialize, Serialize};
use store::{Connection, Fault};
use tokio::time::sleep;
use trust::{PrivateKey, PublicKey};
use uuid::Uuid;

use crate::crash::{self, Point};
use crate::error::{PrivacyError, Store};
use crate::request::commit_step;
use crate::step::{Claimed, Step};

/// The advisory lock that makes sure that one erasure at a time writes archives anew: "memerase" in ASCII. The session of the operator has it,
/// so that the database gives it back when a process that was killed is gone.
const LOCK: i64 = 0x6d65_6d65_7261_7365;

/// How long an erasure waits for another one that writes archives anew before it is tried again later, and how often it looks.
const LOCK_PATIENCE: Duration = Duration::from_secs(5);
const LOCK_LOOKS: Duration = Duration::from_millis(100);

/// The place of archives, and their keys.
#[derive(Debug)]
pub(crate) struct ArchiveStore {
    target: Target,
    signing: PrivateKey,
    public: Vec<PublicKey>,
}

impl ArchiveStore {
    /// None if this deployment has no archives, as `archive.url` is not set.
    pub(crate) fn open(settings: &Settings) -> Result<Option<Self>, PrivacyError> {
        let settings = &settings.archive;
        if settings.url.is_none() {
            return Ok(None);
        }
        let signing = Keys::signing(settings).map_err(away)?;
        let public = accepted_keys(settings)?;
        Ok(Some(Self { target: Target::open(settings).map_err(away)?, signing, public }))
    }
}

/// The keys of manifests. The one that signs is always among them.
pub(crate) fn accepted_keys(settings: &ArchiveSettings) -> Result<Vec<PublicKey>, PrivacyError> {
    let mut public = Keys::public(settings).map_err(away)?;
    if settings.signing_key_file.is_some() {
        let own = Keys::signing(settings).map_err(away)?.public();
        if !public.contains(&own) {
            public.push(own);
        }
    }
    Ok(public)
}

pub(crate) fn away(problem: impl ToString) -> PrivacyError {
    PrivacyError::Away { store: Store::Archives, reason: problem.to_string() }
}

/// How far the step is, in [`Progress::of_steps`](crate::Progress::of_steps).
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Work {
    /// How many archives had rows of the person, those among them that no row of the database names.
    pub(crate) before: u64,
    /// Rows of the person in them.
    pub(crate) rows: u64,
    /// How many of them were written anew, for what others have in them.
    pub(crate) rewritten: u64,
    /// How many places at the target could not be read, none of which a row of the database names.
    #[serde(default)]
    pub(crate) unreadable: u64,
    /// How often the step was done up to here while there were such places.
    #[serde(default)]
    tries_to_read: u64,
    /// What no row of the database names any more, and is to be deleted.
    superseded: Vec<Superseded>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Superseded {
    location: String,
    files: Vec<String>,
}

#[derive(QueryableByName)]
struct Row {
    #[diesel(sql_type = SqlUuid)]
    id: Uuid,
    #[diesel(sql_type = Text)]
    location: String,
    #[diesel(sql_type = Binary)]
    manifest_hash: Vec<u8>,
    #[diesel(sql_type = Array<SqlUuid>)]
    not_removed: Vec<Uuid>,
}

/// The next archive with rows of a user that is none of these.
async fn next(db: &mut Connection, user: UserId, but: &[Uuid]) -> Result<Option<Row>, Fault> {
    const NEXT: &str = "
        SELECT id, location, manifest_hash,
            ARRAY(SELECT one FROM unnest(not_removed) AS one WHERE one IS NOT NULL) AS not_removed
        FROM public.archives WHERE user_ids @> ARRAY[$1] AND id <> ALL ($2) ORDER BY created_at, id LIMIT 1";
    let query = diesel::sql_query(NEXT).bind::<Integer, _>(user.get()).bind::<Array<SqlUuid>, _>(but);
    let rows: Vec<Row> = query.load(db).await?;
    Ok(rows.into_iter().next())
}

/// How many archives have rows of a user.
pub(crate) async fn count(db: &mut Connection, user: UserId) -> Result<u64, Fault> {
    #[derive(QueryableByName)]
    struct Count {
        #[diesel(sql_type = BigInt)]
        count: i64,
    }
    const COUNT: &str = "SELECT count(*) AS count FROM public.archives WHERE user_ids @> ARRAY[$1]";
    let Count { count } = diesel::sql_query(COUNT).bind::<Integer, _>(user.get()).get_result(db).await?;
    Ok(count.unsigned_abs())
}

fn work_of(claimed: &Claimed) -> Option<Work> {
    let work = claimed.progress.of_steps.get(Step::Archives.as_str())?;
    serde_json::from_value(work.clone()).ok()
}

/// What the step has done.
pub(crate) fn done(claimed: &Claimed) -> Work {
    work_of(claimed).unwrap_or_default()
}

async fn save(db: &mut Connection, claimed: &mut Claimed, work: &Work) -> Result<(), PrivacyError> {
    let value = serde_json::to_value(work).map_err(|error| PrivacyError::Refused(error.to_string()))?;
    claimed.progress.of_steps.insert(Step::Archives.as_str().to_owned(), value);
    commit_step(db, claimed, None).await
}

/// Writes each archive with rows of the person anew without them, or deletes it if nothing else is in it. `open` opens their store. One that is
/// missing or not as it was written does not keep the others.
///
/// # Errors
/// [`PrivacyError::Away`] while another erasure does this step, if the row of an archive was changed meanwhile, and if the store cannot be
/// used; [`PrivacyError::Refused`] if an archive is missing or not as it was written.
pub(crate) async fn rewrite(
    db: &mut Connection,
    claimed: &mut Claimed,
    open: impl Fn() -> Result<Option<ArchiveStore>, PrivacyError>,
) -> Result<(), PrivacyError> {
    lock(db).await?;
    let done = rewrite_all(db, claimed, open).await;
    unlock(db).await;
    done
}

async fn lock(db: &mut Connection) -> Result<(), PrivacyError> {
    #[derive(QueryableByName)]
    struct Locked {
        #[diesel(sql_type = Bool)]
        locked: bool,
    }
    const TRY: &str = "SELECT pg_catalog.pg_try_advisory_lock($1) AS locked";
    let since = Instant::now();
    loop {
        let Locked { locked } = diesel::sql_query(TRY).bind::<BigInt, _>(LOCK).get_result(db).await?;
        if locked {
            return Ok(());
        }
        if since.elapsed() >= LOCK_PATIENCE {
            return Err(away(
                "another erasure is writing archives anew; this one goes on when it is tried again",
            ));
        }
        sleep(LOCK_LOOKS).await;
    }
}

/// Gives the lock back. If it cannot be, the connection is of no use any more, and the lock goes with it.
async fn unlock(db: &mut Connection) {
    let unlock = diesel::sql_query("SELECT pg_catalog.pg_advisory_unlock($1)").bind::<BigInt, _>(LOCK);
    if let Err(error) = unlock.execute(db).await {
        tracing::warn!(%error, "the lock of the step archives stays until this process closes its connection");
    }
}

async fn rewrite_all(
    db: &mut Connection,
    claimed: &mut Claimed,
    open: impl Fn() -> Result<Option<ArchiveStore>, PrivacyError>,
) -> Result<(), PrivacyError> {
    let named = count(db, claimed.user).await?;
    let mut work = work_of(claimed).unwrap_or_else(|| Work { before: named, ..Work::default() });
    let Some(store) = open()? else {
        if named > 0 || !work.superseded.is_empty() {
            return Err(away(
                "archive.url is not set, and there are archives with rows of the person; set it",
            ));
        }
        return save(db, claimed, &work).await;
    };
    let (mut unreadable, mut first) = (Vec::new(), None);
    loop {
        discard_superseded(&store, &mut work).await?;
        let Some(row) = next(db, claimed.user, &unreadable).await? else { break };
        let id = row.id;
        match rewrite_one(db, claimed, &store, row, &mut work).await {
            Err(PrivacyError::Archive(error @ (ArchiveError::Missing(_) | ArchiveError::Changed { .. })))
                if unreadable.len() < MOST_UNREADABLE =>
            {
                unreadable.push(id);
                first = first.or(Some((id, error)));
            }
            rewritten => rewritten?,
        }
    }
    orphans::rewrite(db, claimed, &store, &mut work).await?;
    save(db, claimed, &work).await?;
    let Some((id, error)) = first else { return Ok(()) };
    Err(PrivacyError::Refused(format!(
        "{error}: the database names the archive {id}, and {} such archives, with rows of the person; restore the files, or, if they are lost, \
         have the database forget the archive with `memfleet archive forget {id}`",
        unreadable.len()
    )))
}

/// The most archives that are passed over in a try, as they cannot be read.
const MOST_UNREADABLE: usize = 10_000;

/// Deletes old files. The progress has them until it is stored again, so that whoever goes on after a kill deletes the rest of them.
async fn discard_superseded(store: &ArchiveStore, work: &mut Work) -> Result<(), PrivacyError> {
    for old in std::mem::take(&mut work.superseded) {
        discard_files(&store.target, &old.location, &old.files).await?;
    }
    Ok(())
}

async fn rewrite_one(
    db: &mut Connection,
    claimed: &mut Claimed,
    store: &ArchiveStore,
    row: Row,
    work: &mut Work,
) -> Result<(), PrivacyError> {
    // The same id in each try, so that a try that was killed leaves no files that nothing names.
    let id = Uuid::new_v5(&row.id, claimed.id.as_bytes());
    let old = Old { location: &row.location, hash: &row.manifest_hash, not_removed: &row.not_removed };
    let user = claimed.user.get();
    let rewritten = without_user(&store.target, &store.signing, &store.public, old, user, id).await?;
    crash::reach(Step::Archives, Point::Between);
    work.rows += rewritten.removed;
    work.rewritten += u64::from(rewritten.written.is_some());
    work.superseded.push(Superseded { location: row.location, files: rewritten.old_files });
    let (written, not_removed) = (rewritten.written, rewritten.not_removed);
    let replaced = db.transaction(async |db| {
        // If the old row is not there any more, what was read of its files is not what archives have by now.
        if let Some(written) = &written {
            exactly_one(row.id, put(db, row.id, written, &not_removed).await?)?;
        }
        let delete =
            diesel::sql_query("DELETE FROM public.archives WHERE id = $1").bind::<SqlUuid, _>(row.id);
        exactly_one(row.id, delete.execute(db).await?)?;
        save(db, claimed, work).await
    });
    let replaced = replaced.await;
    if let (Err(_), Some(written)) = (&replaced, &written) {
        discard_unnamed(db, store, written).await;
    }
    replaced
}

fn exactly_one(archive: Uuid, rows: usize) -> Result<(), PrivacyError> {
    if rows == 1 {
        return Ok(());
    }
    Err(away(format!(
        "the row of the archive {archive} was changed or deleted while the archive was written anew; nothing was changed, and the step is \
         tried again"
    )))
}

/// Deletes what was written for a transaction that failed. If the database names it all the same, or cannot be asked, it stays: it may be the
/// only place of the rows that others have in it.
async fn discard_unnamed(db: &mut Connection, store: &ArchiveStore, written: &::archive::Written) {
    #[derive(QueryableByName)]
    struct Named {
        #[diesel(sql_type = Bool)]
        named: bool,
    }
    const NAMED: &str = "SELECT EXISTS (SELECT FROM public.archives WHERE id = $1) AS named";
    let query = diesel::sql_query(NAMED).bind::<SqlUuid, _>(written.manifest.id);
    let discarded = match query.get_result::<Named>(db).await {
        Ok(Named { named: true }) => Ok(()),
        Ok(Named { named: false }) => {
            discard(&store.target, written).await.map_err(|error| error.to_string())
        }
        Err(error) => Err(error.to_string()),
    };
    if let Err(error) = discarded {
        let location = &written.location;
        tracing::warn!(%error, location, "files of an archive that could not be named stay at the archive target; the next try of the step writes over them, or writes it anew");
    }
}

/// Adds the row of an archive that takes the place of another one. Gives how many rows were added: none if the other one is not there.
async fn put(
    db: &mut Connection,
    old: Uuid,
    new: &::archive::Written,
    not_removed: &[Uuid],
) -> Result<usize, PrivacyError> {
    const PUT: &str = "
        INSERT INTO public.archives (id, table_name, location, manifest_hash, policies, run_id, row_count, byte_count, first_at, last_at, user_ids,
            not_removed, created_at)
        SELECT $1, table_name, $2, $3, $4, run_id, $5, $6, $7, $8, $9, $10, created_at FROM public.archives WHERE id = $11";
    let manifest = &new.manifest;
    let rows = usize::try_from(manifest.rows).unwrap_or(usize::MAX).saturating_sub(not_removed.len());
    let policies: Vec<Uuid> = manifest.policies.iter().map(|policy| policy.id).collect();
    let put = diesel::sql_query(PUT)
        .bind::<SqlUuid, _>(manifest.id)
        .bind::<Text, _>(&new.location)
        .bind::<Binary, _>(new.hash.to_vec())
        .bind::<Array<SqlUuid>, _>(policies)
        .bind::<Integer, _>(i32::try_from(rows).unwrap_or(i32::MAX))
        .bind::<BigInt, _>(i64::try_from(new.bytes()).unwrap_or(i64::MAX))
        .bind::<Timestamptz, _>(manifest.first_at)
        .bind::<Timestamptz, _>(manifest.last_at)
        .bind::<Array<Integer>, _>(&manifest.users)
        .bind::<Array<SqlUuid>, _>(not_removed)
        .bind::<SqlUuid, _>(old);
    Ok(put.execute(db).await?)
}
