//! Rotation, while workers write. Everything is done in small steps that each leave all readable, so that it can be stopped
//! at any moment and begun again.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::LazyLock;

use chrono::{DateTime, Utc};
use contract::UserId;
use diesel::dsl::{count, count_star, max, min};
use diesel::pg::Pg;
use diesel::prelude::*;
use diesel::sql_types::{Array, BigInt, Binary, Bool, Integer, Uuid as SqlUuid};
use diesel_async::{AsyncConnection, RunQueryDsl};
use store::schema::encrypted_fields;
use store::unnest::{UnnestRow, with_rows};
use store::{Connection, Fault, FaultKind};
use trust::{Bound, CipherKey};
use uuid::Uuid;

use crate::KeyError;
use crate::field::{Encrypted, Row};
use crate::key_cache::{Keys, open};
use crate::key_store::{self, WrappedKey};
use crate::schema::data_keys;

/// How many data keys are wrapped anew at a time.
const KEYS_AT_ONCE: i64 = 200;
/// How many users are looked at at a time.
const USERS_AT_ONCE: i64 = 500;
/// How many fields are encrypted anew in one transaction: writers of the same fields wait for it some milliseconds.
const FIELDS_AT_ONCE: i64 = 200;

/// What a rotation has done.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Renewed {
    /// How many were made anew.
    pub done: usize,
    /// How many could not be opened. They stay as they were.
    pub failed: usize,
    /// Which ones, and why, of the first of them.
    pub problems: Vec<String>,
}

/// The most problems that are told.
const TOLD: usize = 20;

impl Renewed {
    fn fail(&mut self, what: String) {
        self.failed += 1;
        if self.problems.len() < TOLD {
            self.problems.push(what);
        }
    }

    fn add(&mut self, other: Self) {
        self.done += other.done;
        self.failed += other.failed;
        self.problems.extend(other.problems);
        self.problems.truncate(TOLD);
    }
}

/// What a key-encryption key has wrapped.
#[derive(Clone, Debug, PartialEq, Eq, Queryable)]
pub struct Census {
    /// Which key-encryption key.
    pub kek: String,
    /// How many data keys.
    pub data_keys: i64,
    /// Of how many users.
    pub users: i64,
    /// When the oldest of them was made.
    pub oldest: Option<DateTime<Utc>>,
}

/// What is in the key store, by key-encryption key.
///
/// # Errors
/// [`KeyError::Store`].
pub async fn census(connection: &mut Connection) -> Result<Vec<Census>, KeyError> {
    Ok(data_keys::table
        .group_by(data_keys::kek)
        .select((
            data_keys::kek,
            count_star(),
            count(data_keys::user_id).aggregate_distinct(),
            min(data_keys::created_at),
        ))
        .order(data_keys::kek)
        .load(connection)
        .await
        .map_err(Fault::from)?)
}

/// Wraps every data key that another key-encryption key has wrapped with the current one. Fields are not touched.
///
/// # Errors
/// [`KeyError`] if the key store or a provider is away; what is done stays done.
pub async fn rewrap(keys: &Keys) -> Result<Renewed, KeyError> {
    let kek = keys.provider().current().await?;
    let (mut renewed, mut after) = (Renewed::default(), (-1, 0));
    loop {
        let mut connection = store::acquire(keys.pool()).await?;
        let read = key_store::wrapped_otherwise(&mut connection, &kek, after, KEYS_AT_ONCE).await?;
        let Some(last) = read.last() else { return Ok(renewed) };
        after = (last.user.get(), last.version);
        let (mut old, mut plain) = (Vec::new(), Vec::new());
        for (key, opened) in read.iter().zip(keys.provider().unwrap(&read).await?) {
            match opened {
                Ok(open) => {
                    old.push(key.clone());
                    plain.push((key.user, open));
                }
                Err(reason) => renewed
                    .fail(format!("version {} of the data key of user {}: {reason}", key.version, key.user)),
            }
        }
        let anew = keys.provider().wrap(&plain).await?;
        renewed.done += key_store::replace(&mut connection, &old, &anew).await?;
    }
}

/// Gives users whose current data key was made before a moment a new one: all, or one. Returns how many.
///
/// # Errors
/// [`KeyError`]; what is done stays done.
pub async fn renew(keys: &Keys, before: DateTime<Utc>, only: Option<UserId>) -> Result<usize, KeyError> {
    let (mut done, mut after) = (0, -1);
    loop {
        let mut connection = store::acquire(keys.pool()).await?;
        let mut query = data_keys::table
            .group_by(data_keys::user_id)
            .having(max(data_keys::created_at).lt(before))
            .select((data_keys::user_id, max(data_keys::version).assume_not_null()))
            .order(data_keys::user_id)
            .limit(KEYS_AT_ONCE)
            .into_boxed::<Pg>()
            .filter(data_keys::user_id.gt(after));
        if let Some(user) = only {
            query = query.filter(data_keys::user_id.eq(user.get()));
        }
        let old: Vec<(i32, i32)> = query.load(&mut *connection).await.map_err(Fault::from)?;
        let Some((last, _)) = old.last() else { return Ok(done) };
        after = *last;
        let mut by_version: BTreeMap<u32, BTreeSet<UserId>> = BTreeMap::new();
        for (user_id, version) in old {
            if let (Ok(user), Ok(version)) = (UserId::new(user_id), u32::try_from(version)) {
                by_version.entry(version + 1).or_default().insert(user);
            }
        }
        for (version, users) in by_version {
            let made: Vec<WrappedKey> = keys.make(&users, version).await?;
            done += key_store::add(&mut connection, &made).await?.len();
        }
    }
}

/// Users with encrypted fields, the next ones after a number.
///
/// # Errors
/// A [`Fault`] of the database.
async fn users(main: &mut Connection, after: i32) -> Result<Vec<UserId>, Fault> {
    let ids: Vec<i32> = encrypted_fields::table
        .filter(encrypted_fields::user_id.gt(after))
        .select(encrypted_fields::user_id)
        .distinct()
        .order(encrypted_fields::user_id)
        .limit(USERS_AT_ONCE)
        .load(main)
        .await?;
    Ok(ids.into_iter().filter_map(|id| UserId::new(id).ok()).collect())
}

/// Encrypts every field of users that an older data key has encrypted with the current one. The connection is one that
/// [`check_operator`] has found good.
///
/// # Errors
/// [`KeyError`] if a database or a provider is away; what is done stays done.
pub async fn reencrypt(
    main: &mut Connection,
    keys: &Keys,
    only: Option<UserId>,
) -> Result<Renewed, KeyError> {
    let mut renewed = Renewed::default();
    if let Some(user) = only {
        reencrypt_of(main, keys, &BTreeSet::from([user]), &mut renewed).await?;
        return Ok(renewed);
    }
    let mut after = -1;
    loop {
        let page = users(main, after).await.map_err(main_database)?;
        let Some(last) = page.last() else { return Ok(renewed) };
        after = last.get();
        reencrypt_of(main, keys, &page.into_iter().collect(), &mut renewed).await?;
    }
}

fn main_database(fault: Fault) -> KeyError {
    KeyError::Main(fault.reason)
}

/// Whether the connection sees every row: to a role that sees none, everything would look done.
///
/// # Errors
/// [`KeyError::Settings`] if row-level security stops it, [`KeyError::Main`] if the database cannot be asked.
pub async fn check_operator(main: &mut Connection) -> Result<(), KeyError> {
    #[derive(QueryableByName)]
    struct Active {
        #[diesel(sql_type = Bool)]
        active: bool,
    }
    let query = diesel::sql_query("SELECT row_security_active('encrypted_fields') AS active");
    let rows: Vec<Active> = query.load(main).await.map_err(|error| main_database(error.into()))?;
    if rows.iter().any(|row| row.active) {
        return Err(KeyError::Settings(
            "postgres.url names a role that row-level security stops; data keys are rotated by one that it does not"
                .to_owned(),
        ));
    }
    Ok(())
}

#[derive(QueryableByName)]
struct Place {
    #[diesel(sql_type = SqlUuid)]
    id: Uuid,
    #[diesel(sql_type = Integer)]
    user_id: i32,
    #[diesel(sql_type = Binary)]
    key_version: Vec<u8>,
}

impl Place {
    fn key(&self) -> Option<(UserId, u32)> {
        let version = <[u8; 4]>::try_from(self.key_version.as_slice()).ok()?;
        Some((UserId::new(self.user_id).ok()?, u32::from_be_bytes(version)))
    }
}

async fn reencrypt_of(
    main: &mut Connection,
    keys: &Keys,
    users: &BTreeSet<UserId>,
    renewed: &mut Renewed,
) -> Result<(), KeyError> {
    let mut current = BTreeMap::new();
    let mut known = keys.existing(users).await?;
    for user in users {
        match known.remove(user) {
            Some(Ok(key)) => drop(current.insert(*user, key)),
            Some(Err(reason)) => renewed.fail(format!("the data key of user {user}: {reason}")),
            None => renewed
                .fail(format!("user {user} has no data key; is the key store older than the main database?")),
        }
    }
    let mut after = (-1, Uuid::nil());
    loop {
        let old = places(main, &current, after).await.map_err(main_database)?;
        let Some(last) = old.last() else { return Ok(()) };
        after = (last.user_id, last.id);
        let openers: Openers =
            keys.of_versions(old.iter().filter_map(Place::key)).await?.into_iter().collect();
        renewed.add(exchange_patiently(main, &old, &current, &openers).await.map_err(main_database)?);
    }
}

/// Data keys by user and version, or why one cannot be opened.
type Openers = BTreeMap<(UserId, u32), Result<CipherKey, String>>;

/// How often a step is tried whose locks are in the way of a writer's.
const TRIES: u32 = 20;

/// One step, again if a writer was in the way: triggers of other tables delete ciphertexts in the order of those tables.
async fn exchange_patiently(
    main: &mut Connection,
    old: &[Place],
    current: &BTreeMap<UserId, CipherKey>,
    openers: &Openers,
) -> Result<Renewed, Fault> {
    let mut tries = 0;
    loop {
        let step: Result<Renewed, Fault> =
            main.transaction(async |main| exchange(main, old, current, openers).await).await;
        match step {
            Err(fault) if fault.kind == FaultKind::Transient && tries < TRIES => tries += 1,
            step => return step,
        }
    }
}

/// Where fields are whose key is older than the current one. A ciphertext says so itself, in its bytes 3 to 6.
async fn places(
    main: &mut Connection,
    current: &BTreeMap<UserId, CipherKey>,
    after: (i32, Uuid),
) -> Result<Vec<Place>, Fault> {
    const PLACES: &str = "
        SELECT e.id, e.user_id, substr(e.ciphertext, 3, 4) AS key_version
        FROM unnest($1::integer[], $2::integer[]) AS c (user_id, version)
        JOIN encrypted_fields e ON e.user_id = c.user_id AND substr(e.ciphertext, 3, 4) < int4send(c.version)
        WHERE (e.user_id, e.id) > ($3, $4) ORDER BY e.user_id, e.id LIMIT $5";
    let query = diesel::sql_query(PLACES)
        .bind::<Array<Integer>, _>(current.keys().map(|user| user.get()).collect::<Vec<_>>())
        .bind::<Array<Integer>, _>(
            current.values().map(|key| key.version().cast_signed()).collect::<Vec<_>>(),
        )
        .bind::<Integer, _>(after.0)
        .bind::<SqlUuid, _>(after.1)
        .bind::<BigInt, _>(FIELDS_AT_ONCE);
    Ok(query.load(main).await?)
}

store::unnest_row! {
    /// A field that is encrypted anew.
    struct Reencrypted<'a> {
        user_id: i32,
        table_name: &'a str,
        column_name: &'a str,
        row_id: Uuid,
        ciphertext: &'a [u8],
    }
}

static WRITE: LazyLock<String> = LazyLock::new(|| {
    let (arrays, names) = (Reencrypted::arrays(1), Reencrypted::names());
    format!(
        "UPDATE encrypted_fields e SET ciphertext = i.ciphertext
        FROM unnest({arrays}) AS i ({names})
        WHERE e.user_id = i.user_id AND e.table_name = i.table_name AND e.column_name = i.column_name AND e.row_id = i.row_id"
    )
});

/// One transaction: the fields as they are now, under locks in the order in which workers write them.
async fn exchange(
    main: &mut Connection,
    old: &[Place],
    current: &BTreeMap<UserId, CipherKey>,
    openers: &Openers,
) -> Result<Renewed, Fault> {
    const READ: &str = "
        SELECT e.user_id, e.table_name::text, e.column_name::text, e.row_id, e.ciphertext
        FROM unnest($1::integer[], $2::uuid[]) AS i (user_id, id)
        JOIN encrypted_fields e ON e.user_id = i.user_id AND e.id = i.id
        ORDER BY e.user_id, e.table_name, e.column_name, e.row_id FOR UPDATE OF e";
    let mut renewed = Renewed::default();
    let rows: Vec<Row> = diesel::sql_query(READ)
        .bind::<Array<Integer>, _>(old.iter().map(|place| place.user_id).collect::<Vec<_>>())
        .bind::<Array<SqlUuid>, _>(old.iter().map(|place| place.id).collect::<Vec<_>>())
        .load(main)
        .await?;
    let mut anew: Vec<(Encrypted, Vec<u8>)> = Vec::with_capacity(rows.len());
    for field in rows.into_iter().filter_map(Row::known) {
        let Some(key) = current.get(&field.user) else { continue };
        match again(&field, key, openers) {
            Ok(Some(ciphertext)) => anew.push((field, ciphertext)),
            Ok(None) => {}
            Err(reason) => renewed.fail(format!(
                "{}.{} of the row {} of user {}: {reason}",
                field.table, field.column, field.row, field.user
            )),
        }
    }
    if !anew.is_empty() {
        let rows = anew.iter().map(|(field, sealed)| Reencrypted {
            user_id: field.user.get(),
            table_name: &field.table,
            column_name: &field.column,
            row_id: field.row,
            ciphertext: sealed,
        });
        renewed.done = with_rows(&WRITE, rows.collect()).execute(main).await?;
    }
    Ok(renewed)
}

/// A field under another key. None if somebody has written it with that key meanwhile.
fn again(field: &Encrypted, key: &CipherKey, openers: &Openers) -> Result<Option<Vec<u8>>, String> {
    let version = field.key_version().ok_or("it is no ciphertext")?;
    if version >= key.version() {
        return Ok(None);
    }
    let old = match openers.get(&(field.user, version)) {
        Some(Ok(old)) => old,
        Some(Err(reason)) => {
            return Err(format!("version {version} of its data key cannot be opened: {reason}"));
        }
        None => return Err(format!("the key store has no version {version} of its user's data key")),
    };
    let plain = open(field, old)?;
    let Encrypted { user, table, column, row, .. } = field;
    let bound = Bound::Field { table, column, row: *row, user: *user };
    key.seal(&plain, bound).map(Some).map_err(|error| format!("it {error}"))
}
