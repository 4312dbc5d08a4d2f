//! The steps of an erasure, one after the other. Each is committed before the next one begins, and can be repeated.

use std::collections::BTreeMap;
use std::time::Duration;

use chrono::Utc;
use config::Settings;
use diesel::QueryableByName;
use diesel::sql_types::{BigInt, Integer, Text, Uuid as SqlUuid};
use diesel_async::{AsyncConnection, RunQueryDsl};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use store::Connection;
use uuid::Uuid;

use crate::archives::{self, ArchiveStore};
use crate::crash::{self, Point};
use crate::error::{PrivacyError, Store};
use crate::receipt::{self, Body, Line, Receipt};
use crate::request::{self, Later, commit_step};
use crate::step::{Advance, Claimed, Progress, Removal, Step};
use crate::{blockers, fence, keys, rows, statistics, stores, streams, vectors};

pub use crate::pass::{Passed, erase_due, run_once};
pub use crate::stores::Stores;

/// Does one step after the other, until one waits or the last is done.
pub(crate) async fn go_on(stores: &mut Stores, claimed: &mut Claimed) -> Result<Advance, PrivacyError> {
    loop {
        match advance(stores, claimed).await? {
            Advance::Next(_) => {}
            stopped @ (Advance::Done | Advance::Waiting(_) | Advance::Held(_)) => return Ok(stopped),
        }
    }
}

/// Does exactly one step of an erasure that this process has taken, and commits the next one. If it has to wait or fails, the request is given
/// back, to be tried again later.
///
/// # Errors
/// [`PrivacyError`] if the step failed. The request has the reason.
pub async fn advance(stores: &mut Stores, claimed: &mut Claimed) -> Result<Advance, PrivacyError> {
    let step = claimed.step;
    crash::reach(step, Point::Before);
    let url = stores.settings.postgres.url.clone();
    let kept = request::keep(url.clone(), claimed.id, claimed.run);
    let unblocked = blockers::end(url, blockers::process_of(&mut stores.database).await?, claimed.id);
    let worked = tokio::select! {
        worked = work_and_commit(stores, claimed) => worked,
        never = kept => match never {},
        never = unblocked => match never {},
    };
    let database = &mut stores.database;
    match &worked {
        Ok(Advance::Next(_) | Advance::Done) => {
            crash::reach(step, Point::After);
            tracing::info!(request = %claimed.id, %step, "a step of an erasure is done");
        }
        Ok(Advance::Waiting(reason)) => {
            request::put_back(database, claimed, Later::Waiting(reason)).await?;
        }
        Ok(Advance::Held(hold)) => request::put_on_hold(database, claimed, hold).await?,
        Err(error) => {
            if let Err(lost) = request::put_back(database, claimed, Later::Failed(error)).await {
                tracing::warn!(request = %claimed.id, error = %lost, "cannot note that a step of an erasure failed");
            }
        }
    }
    worked
}

async fn work_and_commit(stores: &mut Stores, claimed: &mut Claimed) -> Result<Advance, PrivacyError> {
    match work(stores, claimed).await? {
        Some(worked) => Ok(worked),
        None => next(stores, claimed).await,
    }
}

/// Commits the step after the present one.
async fn next(stores: &mut Stores, claimed: &mut Claimed) -> Result<Advance, PrivacyError> {
    crash::reach(claimed.step, Point::Done);
    let Some(next) = claimed.step.next() else { return Ok(Advance::Done) };
    commit_step(&mut stores.database, claimed, Some(next)).await?;
    Ok(Advance::Next(next))
}

/// Does the work of a step. None if the next one is to be committed.
async fn work(stores: &mut Stores, claimed: &mut Claimed) -> Result<Option<Advance>, PrivacyError> {
    match claimed.step {
        Step::Fence => put_up_fence(stores, claimed).await.map(Some),
        Step::Drain => drain(stores, claimed).await,
        Step::Count => count(&mut stores.database, claimed).await.map(Some),
        Step::Rows => {
            let key = receipt::signing_key(&stores.settings.privacy)?;
            rows::erase(&mut stores.database, &key, claimed).await?;
            Ok(None)
        }
        Step::Streams => delete_messages(stores, claimed).await.map(|()| None),
        Step::Vectors => delete_points(stores, claimed).await.map(|()| None),
        Step::Archives => {
            let settings = stores.settings.clone();
            archives::rewrite(&mut stores.database, claimed, || ArchiveStore::open(&settings)).await?;
            Ok(None)
        }
        Step::Keys => destroy_keys(stores, claimed).await.map(Some),
        Step::Seal => seal(stores, claimed).await,
        Step::Receipt => hand_out_receipt(stores, claimed).await.map(Some),
    }
}

/// What a step has left in the progress; none if it has left nothing.
fn left<T: DeserializeOwned>(claimed: &Claimed, step: Step) -> Result<Option<T>, PrivacyError> {
    let Some(value) = claimed.progress.of_steps.get(step.as_str()) else { return Ok(None) };
    let read = serde_json::from_value(value.clone());
    read.map(Some).map_err(|_| {
        PrivacyError::Refused(format!("the progress of the step {step} is not what this program writes"))
    })
}

fn leave(claimed: &mut Claimed, step: Step, value: impl Serialize) -> Result<(), PrivacyError> {
    let value = serde_json::to_value(value).map_err(|error| {
        PrivacyError::Refused(format!("the progress of the step {step} cannot be stored: {error}"))
    })?;
    claimed.progress.of_steps.insert(step.as_str().to_owned(), value);
    Ok(())
}

/// Fences the person in the key store, and then in the main database, unless a hold keeps the rows.
async fn put_up_fence(stores: &mut Stores, claimed: &mut Claimed) -> Result<Advance, PrivacyError> {
    let (user, id) = (claimed.user, claimed.id);
    if let Some(hold) = request::hold_of(&mut stores.database, user).await? {
        let (_, key_store) = stores.databases().await?;
        request::lift_fence(key_store, id).await?;
        return Ok(Advance::Held(hold));
    }
    // Nobody is fenced whose erasure could not come to its end.
    receipt::signing_key(&stores.settings.privacy)?;
    receipt::target(&stores.settings, None)?;
    let (database, key_store) = stores.databases().await?;
    request::put_up_fence(key_store, user, id).await?;
    let mut after = claimed.clone();
    after.progress.fenced_at = Some(Utc::now());
    crash::reach(Step::Fence, Point::Done);
    // In the order of `cancel`: the request before the fence.
    let committed = database.transaction(async |database| {
        commit_step(database, &mut after, Some(Step::Drain)).await?;
        request::put_up_fence(database, user, id).await
    });
    if let Err(error) = committed.await {
        // It was cancelled meanwhile, or another process has put up both fences.
        if request::under_way(database, user).await? != Some(id) {
            request::lift_fence(key_store, id).await?;
            // That of a later request may have been replaced.
            if let Some(later) = request::fenced_by(database, user).await? {
                request::put_up_fence(key_store, user, later).await?;
            }
        }
        return Err(error);
    }
    *claimed = after;
    Ok(Advance::Next(Step::Drain))
}

/// How long a pass waits for the transactions of each database that began before the fence.
const DRAIN_PATIENCE: Duration = Duration::from_secs(2);

/// Waits for what ran before the fence, and then for what that has prepared.
async fn drain(stores: &mut Stores, claimed: &mut Claimed) -> Result<Option<Advance>, PrivacyError> {
    let (database, key_store) = stores.databases().await?;
    if claimed.progress.running.is_none() {
        let (main, keys) = (fence::running(database).await?, fence::running(key_store).await?);
        claimed.progress.running = Some(named(main, keys));
        commit_step(database, claimed, None).await?;
    }
    let mut open = still_open(database, key_store, claimed.progress.running.as_ref()).await?;
    if open.is_empty() && claimed.progress.prepared.is_none() {
        let (main, keys) = (fence::prepared(database).await?, fence::prepared(key_store).await?);
        claimed.progress.prepared = Some(named(main, keys));
        commit_step(database, claimed, None).await?;
    }
    if open.is_empty() {
        open = still_open(database, key_store, claimed.progress.prepared.as_ref()).await?;
    }
    if open.is_empty() {
        return Ok(None);
    }
    let waits = format!("transactions that began before the fence are still open: {}", open.join("; "));
    Ok(Some(Advance::Waiting(waits)))
}

fn named(main: Vec<String>, keys: Vec<String>) -> BTreeMap<String, Vec<String>> {
    BTreeMap::from([("main".to_owned(), main), ("keys".to_owned(), keys)])
}

/// Those of these transactions that have not ended after [`DRAIN_PATIENCE`], as an operator knows them.
async fn still_open(
    database: &mut Connection,
    key_store: &mut Connection,
    transactions: Option<&BTreeMap<String, Vec<String>>>,
) -> Result<Vec<String>, PrivacyError> {
    let mut open = Vec::new();
    for (name, store, connection) in
        [("main", Store::Database, database), ("keys", Store::KeyStore, key_store)]
    {
        let earlier = transactions.and_then(|all| all.get(name)).map_or(&[][..], Vec::as_slice);
        let left = fence::drain(connection, earlier, DRAIN_PATIENCE).await?;
        if !left.is_empty() {
            let keepers = fence::keepers(connection, &left).await?.join(", ");
            open.push(format!("{} of {store}: {keepers}", left.len()));
        }
    }
    Ok(open)
}

/// Counts the rows, now that nobody writes any more. A hold that came before the fence is seen here at the latest: then the fence goes, and the
/// erasure begins anew when the hold is released. Otherwise it cannot be cancelled from here on.
async fn count(database: &mut Connection, claimed: &mut Claimed) -> Result<Advance, PrivacyError> {
    let (user, id, mut after) = (claimed.user, claimed.id, claimed.clone());
    let is_held = request::hold_of(database, user).await?.is_some();
    let next = if is_held { Step::Fence } else { Step::Rows };
    after.progress = if is_held { Progress::default() } else { after.progress };
    if !is_held {
        after.progress.before = rows::count(database, user).await?;
        after.progress.deleted.clear();
    }
    crash::reach(Step::Count, Point::Done);
    database
        .transaction(async |database| {
            commit_step(database, &mut after, Some(next)).await?;
            if is_held {
                return request::lift_fence(database, id).await.map(|_| ());
            }
            if after.removal == Removal::Anonymise {
                // With the step, so that nobody is counted twice, and before it is certain that nothing is lost any more.
                fence::see_all(database).await?;
                statistics::add(database, user).await?;
            }
            request::close_fence(database, id).await
        })
        .await?;
    *claimed = after;
    Ok(Advance::Next(next))
}

async fn delete_messages(stores: &mut Stores, claimed: &mut Claimed) -> Result<(), PrivacyError> {
    let jetstream = stores.jetstream().await?;
    let counted: BTreeMap<String, streams::Counted> = match left(claimed, Step::Streams)? {
        Some(counted) => counted,
        None => {
            let counted = streams::count(&jetstream, claimed.user).await?;
            leave(claimed, Step::Streams, &counted)?;
            commit_step(&mut stores.database, claimed, None).await?;
            counted
        }
    };
    let parallel = stores.settings.privacy.streams_parallel;
    streams::delete(&jetstream, claimed.user, &counted, parallel).await
}

async fn delete_points(stores: &mut Stores, claimed: &mut Claimed) -> Result<(), PrivacyError> {
    let vectors = stores.vectors()?;
    let Stores { database, .. } = stores;
    let Some(tenant) = vectors::tenant(database, claimed.user).await? else { return Ok(()) };
    let Some(vectors) = vectors else {
        if vectors::exist(database).await? {
            let reason = "vectors.url is not set, and the database names collections".to_owned();
            return Err(PrivacyError::Away { store: Store::Vectors, reason });
        }
        return Ok(());
    };
    if left::<Vec<vectors::Counted>>(claimed, Step::Vectors)?.is_none() {
        let counted = vectors::count(database, &vectors, tenant).await?;
        leave(claimed, Step::Vectors, &counted)?;
        commit_step(database, claimed, None).await?;
    }
    vectors::delete(database, &vectors, tenant).await?;
    Ok(())
}

/// What the step `keys` leaves to those after it.
#[derive(Debug, Serialize, Deserialize)]
struct Sealing {
    /// The number of data keys before.
    before: u64,
    /// The row of the audit trail, once it is written.
    row: Option<Uuid>,
    /// The body of the receipt, as it is signed.
    body: String,
}

/// Destroys the data keys. Then, in one transaction, comes the tombstone, and the last of the person goes.
async fn destroy_keys(stores: &mut Stores, claimed: &mut Claimed) -> Result<Advance, PrivacyError> {
    let user = claimed.user;
    let key = receipt::signing_key(&stores.settings.privacy)?;
    let (database, key_store) = stores.databases().await?;
    let before = match left::<Sealing>(claimed, Step::Keys)? {
        Some(sealing) => sealing.before,
        None => {
            let before = ::keys::count(key_store, user).await?;
            leave(claimed, Step::Keys, Sealing { before, row: None, body: String::new() })?;
            commit_step(database, claimed, None).await?;
            before
        }
    };
    keys::destroy(key_store, user, before).await?;
    let known_by = keys::tombstone_of(key_store, user).await?;
    crash::reach(Step::Keys, Point::Done);
    let mut after = claimed.clone();
    database
        .transaction(async |database| {
            request::refuse_without_fence(database, &after).await?;
            let subject = audit::subject_leaf(database, user.get()).await?;
            if let Some(leaf) = subject {
                audit::state_erasure(database, &key, after.id, &[leaf]).await?;
            }
            let tenant = vectors::tenant(database, user).await?;
            let tombstone = keys::note_erased(database, user, after.id, tenant).await?;
            let mut stores = lines(&after, before)?;
            stores.push(Line::emptied(
                "postgresql",
                "privacy_requests",
                requests_of(database, user.get()).await?,
            ));
            stores.push(Line::emptied("postgresql", "audit.subjects", u64::from(subject.is_some())));
            let statements = audit::statements_of(database, after.id).await?;
            let times = (after.requested_at, after.progress.fenced_at, Utc::now());
            let tombstones = (tombstone, known_by);
            let body = Body::new((after.id, after.removal), tombstones, times, stores, &statements);
            let (body, digest) = body.with_unreadable(archives::done(&after).unreadable).write()?;
            let row = audit::record_erasure(database, after.id, user.get(), &digest).await?;
            leave(&mut after, Step::Keys, Sealing { before, row: Some(row), body })?;
            commit_step(database, &mut after, Some(Step::Seal)).await?;
            // From here on the tombstone refuses the person, and the id goes.
            request::lift_fence(database, after.id).await?;
            // Last, so that what the trail notes of this transaction is under the person's token.
            keys::forget(database, user, after.id).await
        })
        .await?;
    *claimed = after;
    Ok(Advance::Next(Step::Seal))
}

/// How many requests of a person there are, with this one.
async fn requests_of(database: &mut Connection, user: i32) -> Result<u64, PrivacyError> {
    #[derive(QueryableByName)]
    struct Count {
        #[diesel(sql_type = BigInt)]
        count: i64,
    }
    const COUNT: &str = "SELECT count(*) AS count FROM public.privacy_requests WHERE user_id = $1";
    let Count { count } = diesel::sql_query(COUNT).bind::<Integer, _>(user).get_result(database).await?;
    Ok(count.unsigned_abs())
}

/// What the stores had, as the steps before have counted it.
fn lines(claimed: &Claimed, data_keys: u64) -> Result<Vec<Line>, PrivacyError> {
    let tables = claimed.progress.before.iter();
    let mut lines: Vec<Line> =
        tables.map(|(table, before)| Line::emptied("postgresql", table, *before)).collect();
    let messages: BTreeMap<String, streams::Counted> = left(claimed, Step::Streams)?.unwrap_or_default();
    lines.extend(messages.iter().map(|(stream, counted)| Line::emptied("nats", stream, counted.before)));
    let points: Vec<vectors::Counted> = left(claimed, Step::Vectors)?.unwrap_or_default();
    lines.extend(points.into_iter().map(|one| Line::emptied("qdrant", one.collection, one.before)));
    lines.push(Line::emptied("archives", "archives", archives::done(claimed).before));
    lines.push(Line::emptied("archives", "rows", archives::done(claimed).rows));
    lines.push(Line::emptied("key-store", "data_keys", data_keys));
    Ok(lines)
}

/// What the step `keys` has left.
fn sealing(claimed: &Claimed) -> Result<(Uuid, String), PrivacyError> {
    let missing = || PrivacyError::Refused("the progress has no audit row of the erasure".to_owned());
    let sealing: Sealing = left(claimed, Step::Keys)?.ok_or_else(missing)?;
    Ok((sealing.row.ok_or_else(missing)?, sealing.body))
}

/// Waits until the row of the audit trail lies under a seal. Seals it itself if it has the key.
async fn seal(stores: &mut Stores, claimed: &mut Claimed) -> Result<Option<Advance>, PrivacyError> {
    let (row, _) = sealing(claimed)?;
    let mut inclusion = audit::inclusion(&mut stores.database, row).await?;
    if inclusion.is_none()
        && let Some(key) = stores::seal_key(&stores.settings)?
    {
        let (earlier, anchors) = (stores::seal_keys(&stores.settings)?, stores.anchors().await?);
        // Sealing changes the settings of its connection.
        let mut connection = store::connect(&stores.settings.postgres.url).await?;
        audit::seal_all(&mut connection, &anchors, &key, &earlier).await?;
        inclusion = audit::inclusion(&mut stores.database, row).await?;
    }
    let Some(inclusion) = inclusion else {
        let waits = "the audit row of the erasure is not sealed yet; `memfleet audit seal --follow` seals it";
        return Ok(Some(Advance::Waiting(waits.to_owned())));
    };
    leave(claimed, Step::Seal, inclusion)?;
    Ok(None)
}

/// Signs the receipt and files it; then the request goes.
async fn hand_out_receipt(stores: &mut Stores, claimed: &mut Claimed) -> Result<Advance, PrivacyError> {
    const STORE: &str = "UPDATE sec.erased_users SET receipt = $1 WHERE erasure = $2";
    const DELETE: &str = "DELETE FROM public.privacy_requests WHERE id = $1 AND claimed_by = $2";
    let content = file_receipt(&stores.settings, claimed).await?;
    crash::reach(Step::Receipt, Point::Between);
    crash::reach(Step::Receipt, Point::Done);
    let (id, run) = (claimed.id, claimed.run);
    stores
        .database
        .transaction(async |database| {
            diesel::sql_query(STORE)
                .bind::<Text, _>(content)
                .bind::<SqlUuid, _>(id)
                .execute(database)
                .await?;
            let delete = diesel::sql_query(DELETE).bind::<SqlUuid, _>(id).bind::<SqlUuid, _>(run);
            match delete.execute(database).await? {
                1 => Ok(()),
                _ => Err(request::taken(id)),
            }
        })
        .await?;
    Ok(Advance::Done)
}

/// Files the receipt, and gives the content of its file: what an attempt before has filed, if it says the same. That may be signed with an
/// earlier key, or name a seal of another path.
async fn file_receipt(settings: &Settings, claimed: &Claimed) -> Result<String, PrivacyError> {
    let (_, body) = sealing(claimed)?;
    let inclusion = left(claimed, Step::Seal)?
        .ok_or_else(|| PrivacyError::Refused("the progress has no seal of the erasure".to_owned()))?;
    let content = receipt::sign(body.clone(), &inclusion, &receipt::signing_key(&settings.privacy)?)?;
    let target = receipt::target(settings, None)?;
    let Err(refused) = target.put_receipt(claimed.id, content.as_bytes()).await else { return Ok(content) };
    let keys = receipt::public_keys(&settings.privacy)?;
    let filed = target.get_receipt(claimed.id).await.ok();
    let filed = filed.and_then(|filed| Receipt::read(&filed, &keys).ok()).filter(|filed| filed.says(&body));
    filed.map(|filed| filed.text).ok_or_else(|| receipt::away(refused))
}
