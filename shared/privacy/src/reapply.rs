//! Erases again, in a database that was restored from a backup, whoever has a receipt.

use std::collections::{BTreeMap, BTreeSet};

use ::archive::Target;
use contract::UserId;
use diesel::QueryableByName;
use diesel::sql_types::{Array, Binary, Integer, Text, Timestamptz, Uuid as SqlUuid};
use diesel_async::RunQueryDsl;
use store::Connection;
use trust::PublicKey;
use uuid::Uuid;

use crate::archives::orphans;
use crate::error::PrivacyError;
use crate::keys;
use crate::process::go_on;
use crate::receipt::{self, Receipt};
use crate::request::{self, NewRequest};
use crate::step::{Advance, Removal, Step};
use crate::stores::Stores;
use crate::verify::{Which, find};

/// How.
#[derive(Clone, Debug, Default)]
pub struct Reapply {
    /// Keys of tombstones that the database lacks, as [`keys::export`] gave them. They are added also by a dry run: they only know
    /// tombstones again.
    pub tombstone_keys: Option<String>,
    /// Whether only to look who would be erased.
    pub dry_run: bool,
    /// Whether to erase although workers are connected.
    pub force: bool,
}

/// What was done.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Reapplied {
    /// The number of receipts.
    pub receipts: u64,
    /// How many tombstones the database had not.
    pub tombstones: u64,
    /// The persons of the receipts of whom something was there, and where.
    pub found: BTreeMap<i32, Vec<String>>,
    /// The requests by which they were erased again.
    pub requests: Vec<Uuid>,
    /// The requests that could not be completed, and why. A seal that is still to come is no reason: nothing of the person is left then.
    pub stopped: BTreeMap<Uuid, String>,
    /// Of whom something is there afterwards.
    pub left: BTreeMap<i32, Vec<String>>,
}

/// How often those who are left are erased again: something of them may have come meanwhile.
const ROUNDS: usize = 3;
/// Tombstones that are looked for at a time.
const CHUNK: usize = 1_000;

/// Adds the tombstones of all receipts to the main database, and erases everybody of whom something is there. The receipts must have been
/// read with accepted keys ([`Receipt::read`]).
///
/// # Errors
/// [`PrivacyError::Refused`] while workers are connected, or if the database lacks the key of a tombstone; otherwise if a store cannot be
/// read.
pub async fn reapply(
    stores: &mut Stores,
    receipts: Vec<Receipt>,
    options: &Reapply,
) -> Result<Reapplied, PrivacyError> {
    let database = &mut stores.database;
    if !options.force && !options.dry_run {
        refuse_workers(database).await?;
    }
    if let Some(exported) = &options.tombstone_keys {
        keys::import(database, exported).await?;
    }
    refuse_unknown_keys(database, &receipts).await?;
    let tombstones: Vec<Vec<u8>> = receipts.iter().map(|receipt| receipt.body.tombstone_bytes()).collect();
    let mut done = Reapplied {
        receipts: u64::try_from(receipts.len()).unwrap_or(u64::MAX),
        found: search(stores, &tombstones).await?,
        ..Reapplied::default()
    };
    if options.dry_run {
        return Ok(done);
    }
    let (database, key_store) = stores.databases().await?;
    for receipt in &receipts {
        done.tombstones += u64::from(add_tombstone(database, receipt).await?);
        add_to_key_store(key_store, receipt).await?;
    }
    complete_last_steps(stores, &receipts).await?;
    // Each context that opens looks there, and the plan for an empty table compares each user with each tombstone.
    diesel::sql_query("ANALYZE sec.erased_users").execute(&mut stores.database).await?;
    let erased: BTreeSet<Uuid> = receipts.iter().map(|receipt| receipt.body.erasure).collect();
    done.left = done.found.clone();
    for _ in 0..ROUNDS {
        for user in done.left.keys().filter_map(|id| UserId::new(*id).ok()).collect::<Vec<_>>() {
            erase_again(stores, user, &erased, &mut done).await?;
        }
        done.left = search(stores, &tombstones).await?;
        if done.left.is_empty() || !done.stopped.is_empty() {
            break;
        }
    }
    Ok(done)
}

/// The persons with one of these tombstones of whom something is there, and where.
async fn search(
    stores: &mut Stores,
    tombstones: &[Vec<u8>],
) -> Result<BTreeMap<i32, Vec<String>>, PrivacyError> {
    let mut places: BTreeMap<i32, Vec<String>> = BTreeMap::new();
    let orphans = orphans::orphans(&mut stores.database, &stores.settings).await?;
    for problem in &orphans.unknown {
        tracing::warn!(problem, "nobody can tell whose rows are there");
    }
    for some in tombstones.chunks(CHUNK) {
        for found in find(stores, &orphans, some, Which::AllButErasures).await? {
            places.entry(found.user).or_default().push(found.place);
        }
    }
    Ok(places)
}

async fn refuse_workers(database: &mut Connection) -> Result<(), PrivacyError> {
    #[derive(QueryableByName)]
    struct Role {
        #[diesel(sql_type = Text)]
        name: String,
    }
    const CONNECTED: &str = "
        SELECT DISTINCT a.usename::text AS name FROM pg_stat_activity a JOIN sec.worker_privileges p ON p.role_name = a.usename
        WHERE a.datname = current_database() ORDER BY 1";
    let roles: Vec<Role> = diesel::sql_query(CONNECTED).load(database).await?;
    if roles.is_empty() {
        return Ok(());
    }
    let names: Vec<String> = roles.into_iter().map(|role| role.name).collect();
    Err(PrivacyError::Refused(format!(
        "workers are connected ({}): they may work with the data of persons who are to be erased; stop them first, or add --force",
        names.join(", ")
    )))
}

async fn refuse_unknown_keys(database: &mut Connection, receipts: &[Receipt]) -> Result<(), PrivacyError> {
    let names: BTreeSet<&str> = receipts.iter().map(|receipt| receipt.body.tombstone_key.as_str()).collect();
    for name in names {
        if let Some(fault) = keys::fault_of_key(database, name).await? {
            return Err(PrivacyError::Refused(format!(
                "the database does not know the persons of the receipts again: {fault}; delete a key that was exchanged, and add \
                 --tombstone-key with the file that `memfleet privacy key export` wrote"
            )));
        }
    }
    Ok(())
}

/// Adds the tombstone of a receipt. Says whether it was missing.
async fn add_tombstone(database: &mut Connection, receipt: &Receipt) -> Result<bool, PrivacyError> {
    const ADD: &str = "
        INSERT INTO sec.erased_users (tombstone, key_id, erasure, erased_at) VALUES ($1, $2, $3, $4) ON CONFLICT DO NOTHING";
    let added = diesel::sql_query(ADD)
        .bind::<Binary, _>(receipt.body.tombstone_bytes())
        .bind::<Text, _>(&receipt.body.tombstone_key)
        .bind::<SqlUuid, _>(receipt.body.erasure)
        .bind::<Timestamptz, _>(receipt.body.erased_at)
        .execute(database)
        .await?;
    Ok(added > 0)
}

/// Adds the tombstone of a receipt to the key store, if it has the key.
async fn add_to_key_store(key_store: &mut Connection, receipt: &Receipt) -> Result<(), PrivacyError> {
    const ADD: &str = "
        INSERT INTO sec.erased_users (tombstone, key_id, erased_at) SELECT $1, k.key_id, $3 FROM sec.keys k
        WHERE k.key_id = $2 AND k.purpose = 'tombstone' ON CONFLICT DO NOTHING";
    let Some(tombstone) = &receipt.body.key_store_tombstone else { return Ok(()) };
    let add = diesel::sql_query(ADD).bind::<Binary, _>(tombstone.bytes()).bind::<Text, _>(&tombstone.key);
    add.bind::<Timestamptz, _>(receipt.body.erased_at).execute(key_store).await?;
    Ok(())
}

/// Erases a person by a new request. One that the backup had under way and that has a receipt is closed: its receipt is written.
async fn erase_again(
    stores: &mut Stores,
    user: UserId,
    erased: &BTreeSet<Uuid>,
    done: &mut Reapplied,
) -> Result<(), PrivacyError> {
    const CLOSE: &str = "
        UPDATE public.privacy_requests SET request_status = 'rejected', completed_at = now(), updated_at = now(), claimed_by = NULL,
            claimed_until = NULL WHERE id = $1 AND user_id = $2";
    let open = match request::under_way(&mut stores.database, user).await? {
        Some(id) if erased.contains(&id) => {
            let close = diesel::sql_query(CLOSE).bind::<SqlUuid, _>(id).bind::<Integer, _>(user.get());
            close.execute(&mut stores.database).await?;
            None
        }
        open => open,
    };
    let id = match open {
        Some(id) => id,
        None => {
            let reason = "erased before, and restored from a backup".to_owned();
            // Also who was anonymised: whether the sums of the backup have them is not known, and nobody may be in them twice.
            let removal = Removal::Erase;
            let new = NewRequest { removal, service: "operator".to_owned(), reason };
            request::file(&mut stores.database, user, &new).await?.id
        }
    };
    if !done.requests.contains(&id) {
        done.requests.push(id);
    }
    let Some(mut claimed) = request::claim(&mut stores.database, Uuid::now_v7(), Some(id)).await? else {
        done.stopped.insert(id, "another process works on it".to_owned());
        return Ok(());
    };
    let stopped = match go_on(stores, &mut claimed).await {
        Ok(Advance::Done | Advance::Next(_)) => None,
        Ok(Advance::Waiting(_)) if claimed.step >= Step::Seal => None,
        Ok(Advance::Waiting(reason)) => Some(reason),
        Ok(Advance::Held(hold)) => Some(format!("the hold {} keeps the rows: {}", hold.id, hold.reason)),
        Err(error) => Some(error.to_string()),
    };
    if let Some(reason) = stopped {
        done.stopped.insert(id, reason);
    }
    Ok(())
}

#[derive(QueryableByName)]
struct Id {
    #[diesel(sql_type = SqlUuid)]
    id: Uuid,
}

/// Completes the erasures that had deleted everything when the backup was taken, and that have receipts. They would wait for ever: a database
/// that is older than its anchors is not sealed.
async fn complete_last_steps(stores: &mut Stores, receipts: &[Receipt]) -> Result<(), PrivacyError> {
    const OPEN: &str =
        "SELECT id FROM public.privacy_requests WHERE id = ANY ($1) AND step IN ('seal', 'receipt')";
    const COMPLETE: &str = "
        WITH request AS (DELETE FROM public.privacy_requests WHERE id = $1 AND step IN ('seal', 'receipt') RETURNING id),
            fence AS (DELETE FROM sec.fenced_users f USING request r WHERE f.request_id = r.id)
        UPDATE sec.erased_users e SET receipt = $2 FROM request r WHERE e.erasure = r.id";
    let ids: Vec<Uuid> = receipts.iter().map(|receipt| receipt.body.erasure).collect();
    let open: Vec<Id> =
        diesel::sql_query(OPEN).bind::<Array<SqlUuid>, _>(ids).load(&mut stores.database).await?;
    let is_open = |receipt: &&Receipt| open.iter().any(|request| request.id == receipt.body.erasure);
    for receipt in receipts.iter().filter(is_open) {
        let complete = diesel::sql_query(COMPLETE).bind::<SqlUuid, _>(receipt.body.erasure);
        complete.bind::<Text, _>(&receipt.text).execute(&mut stores.database).await?;
        tracing::info!(request = %receipt.body.erasure, "completed an erasure that has a receipt");
    }
    Ok(())
}

/// The erasures with a receipt at this target whose tombstone the main database lacks: it was restored from a backup that is older than they
/// are. Reads only the receipts of erasures that the database does not name.
///
/// # Errors
/// [`PrivacyError`] of the database; or if the receipts cannot be read, or none of these keys signed one.
pub async fn unapplied(
    database: &mut Connection,
    target: &Target,
    keys: &[PublicKey],
) -> Result<Vec<Uuid>, PrivacyError> {
    const UNKNOWN: &str = "
        SELECT n.id FROM unnest($1) AS n (id) WHERE NOT EXISTS (SELECT FROM sec.erased_users e WHERE e.erasure = n.id) ORDER BY 1";
    const MISSING: &str = "
        SELECT r.id FROM unnest($1, $2) AS r (id, tombstone)
        WHERE NOT EXISTS (SELECT FROM sec.erased_users e WHERE e.tombstone = r.tombstone) ORDER BY 1";
    let listed = target.receipts().await.map_err(receipt::away)?;
    let unknown: Vec<Id> =
        diesel::sql_query(UNKNOWN).bind::<Array<SqlUuid>, _>(listed).load(database).await?;
    // The database names the latest erasure of a person: an earlier one is known by its tombstone.
    let (mut erasures, mut tombstones) = (Vec::new(), Vec::new());
    for Id { id } in unknown {
        let receipt = receipt::read_one(target, keys, id).await?;
        erasures.push(id);
        tombstones.push(receipt.body.tombstone_bytes());
    }
    let missing = diesel::sql_query(MISSING).bind::<Array<SqlUuid>, _>(erasures);
    let missing: Vec<Id> = missing.bind::<Array<Binary>, _>(tombstones).load(database).await?;
    Ok(missing.into_iter().map(|row| row.id).collect())
}
