//! Whether a receipt is genuine, and still true: nothing of the person is in any store.

use std::collections::{BTreeMap, BTreeSet};

use chrono::{DateTime, Utc};
use config::Settings;
use contract::UserId;
use diesel::QueryableByName;
use diesel::sql_types::{Array, Binary, Bool, Integer, Nullable, Text, Uuid as SqlUuid};
use diesel_async::RunQueryDsl;
use serde::Serialize;
use store::{Connection, Fault};
use uuid::Uuid;

use crate::aftercare::KEPT_FOR;
use crate::archives::orphans::{self, Orphans};
use crate::catalogue::{self, Entry, Erase, Owner};
use crate::error::PrivacyError;
use crate::receipt::{self, Body, Receipt};
use crate::stores::{self, Stores};
use crate::{fence, keys, rows, streams, vectors};

/// What a verification found.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Verification {
    /// The erasure.
    pub erasure: Uuid,
    /// What is wrong; nothing if the receipt is true.
    pub findings: Vec<String>,
    /// What each store had, and has.
    pub stores: Vec<Recount>,
    /// Places at the archive target that cannot be read, and why: nobody can tell whose rows are there.
    pub unknown: Vec<String>,
}

/// What a store has of the person.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Recount {
    /// As in the receipt.
    pub store: String,
    /// The table, collection or stream.
    pub name: String,
    /// What the receipt says that there was.
    pub before: u64,
    /// What there is; none if it was not counted: points of the vector store, if `vectors.url` is not set, or later than 31 days after the
    /// erasure, when the pseudonym of the person is forgotten.
    pub now: Option<u64>,
}

/// Checks a receipt without any server: its signature, and that it lies under a seal that one of the accepted keys signed.
///
/// # Errors
/// [`PrivacyError::NotGenuine`] if it is not genuine, [`PrivacyError::Settings`] if there are no keys.
pub fn check(settings: &Settings, content: &[u8]) -> Result<Receipt, PrivacyError> {
    let keys = receipt::public_keys(&settings.privacy)?;
    if keys.is_empty() {
        return Err(PrivacyError::Settings(
            "privacy.public_keys_file is not set; receipts are verified with the public keys in it"
                .to_owned(),
        ));
    }
    let seal_keys = stores::seal_keys(settings)?;
    if seal_keys.is_empty() {
        return Err(PrivacyError::Settings(
            "audit.public_keys_file is not set; the seal that a receipt lies under is verified with the public keys in it".to_owned(),
        ));
    }
    let receipt = Receipt::read(content, &keys)?;
    receipt.verify_audit(&seal_keys)?;
    Ok(receipt)
}

/// Checks a receipt, its seal and its tombstone, and counts again what the stores have of the person: of whomever has the tombstone, or of
/// `user`, who must have it.
///
/// # Errors
/// As [`check`]; and if a store cannot be read.
pub async fn verify(
    stores: &mut Stores,
    content: &[u8],
    user: Option<UserId>,
) -> Result<Verification, PrivacyError> {
    let receipt = check(&stores.settings, content)?;
    let mut findings = Vec::new();
    let (number, hash) = receipt.verify_audit(&stores::seal_keys(&stores.settings)?)?;
    let anchors = stores.anchors().await?;
    if let Some(fault) = audit::fault_of_seal(&mut stores.database, &anchors, number, &hash).await? {
        findings.push(fault);
    }
    let tombstone = receipt.body.tombstone_bytes();
    let noted = noted(&mut stores.database, &tombstone).await?;
    findings.extend(faults_of_note(noted.as_ref(), &receipt.body, Utc::now()));
    let tenant = noted.and_then(|noted| noted.tenant);
    let fault = keys::fault_of_key(&mut stores.database, &receipt.body.tombstone_key).await?;
    findings.extend(fault.map(|fault| format!("the database does not know the person again: {fault}")));
    findings.extend(faults_of_key_store(stores, &receipt.body).await?);
    let orphans = orphans::orphans(&mut stores.database, &stores.settings).await?;
    let found: BTreeSet<i32> = match user {
        Some(user) => {
            let ids = [user.get()];
            if with_tombstones(&mut stores.database, &ids, std::slice::from_ref(&tombstone)).await?.is_empty()
            {
                findings.push(format!("it is the receipt of another user than {user}"));
            }
            findings.extend(let_in_again(stores, user).await?);
            BTreeSet::from(ids)
        }
        None => {
            let found = find(stores, &orphans, &[tombstone], Which::All).await?;
            found.into_iter().map(|found| found.user).collect()
        }
    };
    let mut now: BTreeMap<(String, String), Option<u64>> = BTreeMap::new();
    for id in found {
        if let Ok(user) = UserId::new(id) {
            count(stores, &orphans, user, &mut now).await?;
        }
    }
    points(stores, tenant, &receipt, &mut now).await?;
    let stores = compare(&receipt, now);
    findings.extend(stores.iter().filter(|one| one.now.is_some_and(|now| now > 0)).map(|one| {
        format!("{} {} has {} of the person again", one.store, one.name, one.now.unwrap_or_default())
    }));
    Ok(Verification { erasure: receipt.body.erasure, findings, stores, unknown: orphans.unknown })
}

/// The row of a tombstone.
#[derive(Clone, Debug, QueryableByName)]
struct Noted {
    #[diesel(sql_type = Text)]
    key_id: String,
    /// Whether it came from a receipt, which does not have the pseudonym.
    #[diesel(sql_type = Bool)]
    is_of_receipt: bool,
    #[diesel(sql_type = Nullable<SqlUuid>)]
    tenant: Option<Uuid>,
}

/// What is wrong with the row of a tombstone.
fn faults_of_note(noted: Option<&Noted>, body: &Body, now: DateTime<Utc>) -> Vec<String> {
    let Some(noted) = noted else {
        return vec!["the database does not have its tombstone: it would let the person in again".to_owned()];
    };
    let mut faults = Vec::new();
    if noted.key_id != body.tombstone_key {
        faults.push(format!(
            "the database has its tombstone under the key {}, and not under {}: it would let the person in again",
            noted.key_id, body.tombstone_key
        ));
    }
    let had_points = body.stores.iter().any(|line| line.store == "qdrant" && line.before > 0);
    let is_kept = now - body.erased_at < KEPT_FOR;
    if had_points && is_kept && noted.tenant.is_none() && !noted.is_of_receipt {
        let problem = format!(
            "the pseudonym of the person is missing, by which points are counted, and which is kept for {} days: somebody has deleted it",
            KEPT_FOR.num_days()
        );
        faults.push(problem);
    }
    faults
}

/// Whether the key store knows the person again.
async fn faults_of_key_store(stores: &mut Stores, body: &Body) -> Result<Vec<String>, PrivacyError> {
    // Receipts of earlier versions do not have it.
    let Some(tombstone) = &body.key_store_tombstone else { return Ok(Vec::new()) };
    let (_, key_store) = stores.databases().await?;
    if keys::key_of_tombstone(key_store, &tombstone.bytes()).await?.as_ref() != Some(&tombstone.key) {
        return Ok(vec![
            "the key store does not have its tombstone: it would take data keys of the person".to_owned(),
        ]);
    }
    let fault = keys::fault_of_key(key_store, &tombstone.key).await?;
    let fault = fault.map(|fault| format!("the key store does not know the person again: {fault}"));
    Ok(fault.into_iter().collect())
}

/// Whether one of the databases would take the user for another one than the erased person.
async fn let_in_again(stores: &mut Stores, user: UserId) -> Result<Vec<String>, PrivacyError> {
    let (database, key_store) = stores.databases().await?;
    let mut faults = Vec::new();
    for (name, connection) in [("database", database), ("key store", key_store)] {
        if fence::erased_among(connection, &[user.get()]).await?.is_empty() {
            faults.push(format!(
                "the {name} does not know user {user} by a tombstone: it would let the user in again"
            ));
        }
    }
    Ok(faults)
}

async fn noted(db: &mut Connection, tombstone: &[u8]) -> Result<Option<Noted>, Fault> {
    const NOTED: &str = "SELECT key_id::text AS key_id, bucket IS NULL AS is_of_receipt, tenant FROM sec.erased_users WHERE tombstone = $1";
    let rows: Vec<Noted> = diesel::sql_query(NOTED).bind::<Binary, _>(tombstone).load(db).await?;
    Ok(rows.into_iter().next())
}

/// Adds what there is of a user.
async fn count(
    stores: &mut Stores,
    orphans: &Orphans,
    user: UserId,
    now: &mut BTreeMap<(String, String), Option<u64>>,
) -> Result<(), PrivacyError> {
    let mut add = |store: &str, name: String, count: u64| {
        let counted = now.entry((store.to_owned(), name)).or_insert(Some(0));
        *counted = Some(counted.unwrap_or(0).saturating_add(count));
    };
    for entry in catalogue::TABLES {
        let counted = rows::count_of(&mut stores.database, entry, user).await?;
        let store = if entry.erase == Erase::Rewrite { "archives" } else { "postgresql" };
        add(store, entry.label(), counted);
    }
    add("archives", "archives".to_owned(), orphans.users.get(&user.get()).copied().unwrap_or(0));
    let jetstream = stores.jetstream().await?;
    for (stream, counted) in streams::count(&jetstream, user).await? {
        add("nats", stream, counted.before);
    }
    let (_, key_store) = stores.databases().await?;
    add("key-store", "data_keys".to_owned(), ::keys::count(key_store, user).await?);
    Ok(())
}

/// Adds the points of the pseudonym, as long as it is known.
async fn points(
    stores: &mut Stores,
    tenant: Option<Uuid>,
    receipt: &Receipt,
    now: &mut BTreeMap<(String, String), Option<u64>>,
) -> Result<(), PrivacyError> {
    let (Some(tenant), Some(vectors)) = (tenant, stores.vectors()?) else {
        let lines = receipt.body.stores.iter().filter(|line| line.store == "qdrant");
        now.extend(lines.map(|line| ((line.store.clone(), line.name.clone()), None)));
        return Ok(());
    };
    for counted in vectors::count(&mut stores.database, &vectors, tenant).await? {
        now.insert(("qdrant".to_owned(), counted.collection), Some(counted.before));
    }
    Ok(())
}

/// What the receipt says beside what there is. What only one of them has is there, too.
fn compare(receipt: &Receipt, mut now: BTreeMap<(String, String), Option<u64>>) -> Vec<Recount> {
    let mut all = Vec::new();
    for line in &receipt.body.stores {
        let now = now.remove(&(line.store.clone(), line.name.clone())).unwrap_or(Some(0));
        all.push(Recount { store: line.store.clone(), name: line.name.clone(), before: line.before, now });
    }
    let more = now.into_iter().filter(|(_, now)| *now != Some(0));
    all.extend(more.map(|((store, name), now)| Recount { store, name, before: 0, now }));
    all
}

/// A user of whom something is there, and who has one of the tombstones that were looked for.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Found {
    pub(crate) user: i32,
    /// A table, the key store or a stream.
    pub(crate) place: String,
}

/// Where to look.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Which {
    /// Everywhere.
    All,
    /// Everywhere but where an erasure itself is noted until its receipt is signed.
    AllButErasures,
}

/// The users with one of these tombstones of whom something is there: all ids that the databases, the key store, archives and streams have
/// are tried.
pub(crate) async fn find(
    stores: &mut Stores,
    orphans: &Orphans,
    tombstones: &[Vec<u8>],
    which: Which,
) -> Result<BTreeSet<Found>, PrivacyError> {
    let mut found = BTreeSet::new();
    let is_of_erasures = |entry: &Entry| {
        matches!((entry.schema, entry.table), ("public", "privacy_requests") | ("sec", "fenced_users"))
    };
    for entry in catalogue::TABLES {
        let Some(ids) = ids_of(entry).filter(|_| which == Which::All || !is_of_erasures(entry)) else {
            continue;
        };
        let with = format!(
            "SELECT DISTINCT i.id FROM ({ids}) AS i, sec.keys k WHERE k.purpose = 'tombstone' AND i.id IS NOT NULL
                AND sec.hmac(k.inner_pad, k.outer_pad, int4send(i.id)) = ANY ($1)"
        );
        let query = diesel::sql_query(with).bind::<Array<Binary>, _>(tombstones);
        let users: Vec<User> = query.load(&mut stores.database).await?;
        found.extend(users.into_iter().map(|user| Found { user: user.id, place: entry.label() }));
    }
    let (database, key_store) = stores.databases().await?;
    let ids = ::keys::user_ids(key_store).await?;
    let users = with_tombstones(database, &ids, tombstones).await?;
    found.extend(users.into_iter().map(|user| Found { user, place: "the key store".to_owned() }));
    let jetstream = stores.jetstream().await?;
    for name in streams::names() {
        let ids: Vec<i32> = streams::users(&jetstream, name).await?.into_keys().map(UserId::get).collect();
        let users = with_tombstones(&mut stores.database, &ids, tombstones).await?;
        found.extend(users.into_iter().map(|user| Found { user, place: format!("the stream {name}") }));
    }
    let ids: Vec<i32> = orphans.users.keys().copied().collect();
    let users = with_tombstones(&mut stores.database, &ids, tombstones).await?;
    let place = "archives that the database does not name";
    found.extend(users.into_iter().map(|user| Found { user, place: place.to_owned() }));
    Ok(found)
}

#[derive(QueryableByName)]
struct User {
    #[diesel(sql_type = Integer)]
    id: i32,
}

/// A statement with all ids that a table has. None if it has none.
fn ids_of(entry: &Entry) -> Option<String> {
    let table = entry.name();
    match entry.owner {
        Owner::Column(column) => Some(format!("SELECT DISTINCT t.{column} AS id FROM {table} t")),
        Owner::Arrays(columns) => {
            let of = |column: &&str| format!("SELECT DISTINCT unnest(t.{column}) AS id FROM {table} t");
            Some(columns.iter().map(of).collect::<Vec<_>>().join(" UNION "))
        }
        Owner::Through { column, table: of } => Some(format!(
            "SELECT DISTINCT o.user_id AS id FROM {of} o WHERE EXISTS (SELECT FROM {table} t WHERE t.{column} = o.{column})"
        )),
        Owner::Token | Owner::Nobody(_) => None,
    }
}

/// Those of these users who have one of these tombstones, under any key that the main database has.
async fn with_tombstones(
    db: &mut Connection,
    users: &[i32],
    tombstones: &[Vec<u8>],
) -> Result<Vec<i32>, Fault> {
    const WITH: &str = "
        SELECT DISTINCT u.id FROM sec.keys k CROSS JOIN unnest($1) AS u (id)
        WHERE k.purpose = 'tombstone' AND sec.hmac(k.inner_pad, k.outer_pad, int4send(u.id)) = ANY ($2)";
    let query = diesel::sql_query(WITH).bind::<Array<Integer>, _>(users);
    let found: Vec<User> = query.bind::<Array<Binary>, _>(tombstones).load(db).await?;
    Ok(found.into_iter().map(|user| user.id).collect())
}

/// Those of these users who are erased.
pub(crate) async fn erased(db: &mut Connection, users: &[UserId]) -> Result<BTreeSet<UserId>, Fault> {
    let ids: Vec<i32> = users.iter().map(|user| user.get()).collect();
    let erased = fence::erased_among(db, &ids).await?;
    Ok(erased.into_iter().filter_map(|id| UserId::new(id).ok()).collect())
}

#[cfg(test)]
mod tests {
    use chrono::TimeDelta;

    use super::*;
    use crate::receipt::{Line, Tombstone};
    use crate::step::Removal;

    #[test]
    fn a_missing_pseudonym_is_a_fault_for_as_long_as_it_is_kept() {
        let erased_at = DateTime::<Utc>::UNIX_EPOCH;
        let tombstone = Tombstone::new(&[1; 32], "tombstone-1".to_owned());
        let of = (Uuid::nil(), Removal::Erase);
        let stores = vec![Line::emptied("qdrant", "c", 1)];
        let body = Body::new(of, (tombstone, None), (erased_at, None, erased_at), stores, &[]);
        let noted =
            Noted { key_id: "tombstone-1".to_owned(), is_of_receipt: false, tenant: Some(Uuid::nil()) };
        let faults = |noted: &Noted, days: i64| {
            faults_of_note(Some(noted), &body, erased_at + TimeDelta::days(days)).len()
        };
        assert_eq!(faults(&noted, 0), 0);
        let without = Noted { tenant: None, ..noted.clone() };
        assert_eq!((faults(&without, 30), faults(&without, 31)), (1, 0));
        assert_eq!(faults(&Noted { is_of_receipt: true, ..without }, 30), 0);
        assert_eq!(faults(&Noted { key_id: "tombstone-2".to_owned(), ..noted }, 0), 1);
        assert_eq!(faults_of_note(None, &body, erased_at).len(), 1);
    }

    #[test]
    fn every_table_of_users_is_searched() {
        for entry in catalogue::TABLES {
            let has_users = !matches!(entry.owner, Owner::Token | Owner::Nobody(_));
            assert_eq!(ids_of(entry).is_some(), has_users, "{}", entry.name());
        }
    }
}
