//! Key rotation while workers write. It proceeds in small steps, each of which leaves every field readable, so that it
//! can be stopped at any time and started again.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::LazyLock;

use chrono::{DateTime, Utc};
use contract::UserId;
use diesel::dsl::{count, count_star, min};
use diesel::prelude::*;
use diesel::sql_types::{Array, BigInt, Binary, Bool, Integer, Nullable, Timestamptz, Uuid as SqlUuid};
use diesel_async::{AsyncConnection, RunQueryDsl};
use store::schema::encrypted_fields;
use store::unnest::{UnnestRow, with_rows};
use store::{Connection, Fault, FaultKind};
use trust::{AssociatedData, CipherKey};
use uuid::Uuid;

use crate::KeyError;
use crate::field::{Encrypted, Row};
use crate::key_cache::{Keys, Need, decrypt_with};
use crate::key_store::{self, Grants};
use crate::provider::Unopened;
use crate::schema::data_keys;

/// How many data keys are rewrapped at a time.
const KEY_PAGE: i64 = 200;
/// How many users are read at a time.
const USER_PAGE: i64 = 500;
/// How many fields are reencrypted in a transaction. Writers of the same fields wait some milliseconds for it.
const FIELD_PAGE: i64 = 200;

/// The result of a rotation.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RotationReport {
    /// The number of rewrapped keys or reencrypted fields.
    pub done: usize,
    /// The number of those that could not be decrypted. They are unchanged.
    pub failed: usize,
    /// The first of those, with the reasons.
    pub problems: Vec<String>,
}

/// The maximum number of problems that are reported.
const MAX_PROBLEMS: usize = 20;

impl RotationReport {
    fn fail(&mut self, problem: String) {
        self.failed += 1;
        if self.problems.len() < MAX_PROBLEMS {
            self.problems.push(problem);
        }
    }

    fn add(&mut self, other: Self) {
        self.done += other.done;
        self.failed += other.failed;
        self.problems.extend(other.problems);
        self.problems.truncate(MAX_PROBLEMS);
    }
}

/// The data keys that a KEK wraps.
#[derive(Clone, Debug, PartialEq, Eq, Queryable)]
pub struct KekUsage {
    /// The id of the KEK.
    pub kek: String,
    /// The number of data keys.
    pub data_keys: i64,
    /// The number of their users.
    pub users: i64,
    /// When the oldest of them was created.
    pub oldest: Option<DateTime<Utc>>,
}

/// The data keys in the key store, by KEK.
///
/// # Errors
/// [`KeyError::Store`], or [`KeyError::Settings`] if the connection does not see the keys of all users.
pub async fn kek_usage(connection: &mut Connection) -> Result<Vec<KekUsage>, KeyError> {
    key_store::check_operator(connection).await?;
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

/// The number of data keys that workers added after the first one of a user, and of their users: an earlier one did not open.
///
/// # Errors
/// [`KeyError`] if the key store cannot be read.
pub async fn added_later(connection: &mut Connection) -> Result<(i64, i64), KeyError> {
    const ADDED: &str = "SELECT count(*) AS keys, count(DISTINCT user_id) AS users FROM data_keys
        WHERE version > 1 AND added_by LIKE 'w\\_%'";
    #[derive(QueryableByName)]
    struct Row {
        #[diesel(sql_type = BigInt)]
        keys: i64,
        #[diesel(sql_type = BigInt)]
        users: i64,
    }
    let row: Row = diesel::sql_query(ADDED).get_result(connection).await.map_err(Fault::from)?;
    Ok((row.keys, row.users))
}

/// Rewraps every data key that another KEK wraps with the current KEK. Fields are not changed.
///
/// # Errors
/// [`KeyError`] if the key store or a provider is unavailable. Completed steps are kept.
pub async fn rewrap(keys: &Keys) -> Result<RotationReport, KeyError> {
    let kek = keys.provider().current().await?;
    let (mut report, mut after) = (RotationReport::default(), (-1, 0));
    loop {
        let mut connection = store::acquire(keys.pool()).await?;
        key_store::check_operator(&mut connection).await?;
        let read = key_store::wrapped_by_others(&mut connection, &kek, after, KEY_PAGE).await?;
        let Some(last) = read.last() else { return Ok(report) };
        after = (last.user.get(), last.version);
        let (mut old, mut plain) = (Vec::new(), Vec::new());
        for (key, opened) in read.iter().zip(keys.provider().unwrap(&read).await?) {
            match opened {
                Ok(open) => {
                    old.push(key.clone());
                    plain.push((key.user, open));
                }
                Err(Unopened { reason, .. }) => report
                    .fail(format!("version {} of the data key of user {}: {reason}", key.version, key.user)),
            }
        }
        let rewrapped = keys.provider().wrap(&plain).await?;
        report.done += key_store::replace(&mut connection, &old, &rewrapped).await?;
    }
}

/// Creates new data keys for users whose last data key of an operator was created before a time, for all users or for one.
/// What workers have added since does not count: one that was taken over could keep a user from being rotated. Returns the
/// number of new data keys.
///
/// # Errors
/// [`KeyError`]. Completed steps are kept.
pub async fn rotate_data_keys(
    keys: &Keys,
    before: DateTime<Utc>,
    only: Option<UserId>,
) -> Result<usize, KeyError> {
    // Who added a key is not known of those from before that was noted.
    const OLD: &str = "
        SELECT user_id, max(version) AS version FROM data_keys
        WHERE user_id > $1 AND ($2::integer IS NULL OR user_id = $2) GROUP BY user_id
        HAVING coalesce(max(created_at) FILTER (WHERE added_by IS NULL OR added_by NOT LIKE 'w\\_%'), '-infinity') < $3
        ORDER BY user_id LIMIT $4";
    let (mut done, mut after) = (0, -1);
    loop {
        let mut connection = store::acquire(keys.pool()).await?;
        key_store::check_operator(&mut connection).await?;
        let query = diesel::sql_query(OLD)
            .bind::<Integer, _>(after)
            .bind::<Nullable<Integer>, _>(only.map(UserId::get))
            .bind::<Timestamptz, _>(before)
            .bind::<BigInt, _>(KEY_PAGE);
        let old: Vec<Highest> = query.load(&mut *connection).await.map_err(Fault::from)?;
        let Some(last) = old.last() else { return Ok(done) };
        after = last.user_id;
        let next = |Highest { user_id, version }: &Highest| {
            Some((UserId::new(*user_id).ok()?, u32::try_from(*version).ok()? + 1))
        };
        let made = keys.generate(&old.iter().filter_map(next).collect()).await?;
        done += key_store::add(&mut connection, &made).await?.len();
    }
}

/// The highest version of a user's data keys.
#[derive(QueryableByName)]
struct Highest {
    #[diesel(sql_type = Integer)]
    user_id: i32,
    #[diesel(sql_type = Integer)]
    version: i32,
}

/// Whether a user has a data key: an encrypted field has been written for the user.
///
/// # Errors
/// [`KeyError`] if the key store cannot be read.
pub async fn has_data_key(keys: &Keys, user: UserId) -> Result<bool, KeyError> {
    let mut connection = store::acquire(keys.pool()).await?;
    key_store::check_operator(&mut connection).await?;
    let keys = data_keys::table.filter(data_keys::user_id.eq(user.get())).count();
    Ok(keys.get_result::<i64>(&mut *connection).await.map_err(Fault::from)? > 0)
}

/// The next users with encrypted fields, after a user id.
///
/// # Errors
/// A [`Fault`] of the database.
async fn users(main: &mut Connection, after: i32) -> Result<Vec<UserId>, Fault> {
    let ids: Vec<i32> = encrypted_fields::table
        .filter(encrypted_fields::user_id.gt(after))
        .select(encrypted_fields::user_id)
        .distinct()
        .order(encrypted_fields::user_id)
        .limit(USER_PAGE)
        .load(main)
        .await?;
    Ok(ids.into_iter().filter_map(|id| UserId::new(id).ok()).collect())
}

/// Reencrypts every field that an older data key encrypts with the current data key of its user, for all users or for
/// one. The connection must have passed [`check_bypasses_rls`].
///
/// # Errors
/// [`KeyError`] if a database or a provider is unavailable. Completed steps are kept.
pub async fn reencrypt(
    main: &mut Connection,
    keys: &Keys,
    only: Option<UserId>,
) -> Result<RotationReport, KeyError> {
    let mut report = RotationReport::default();
    if let Some(user) = only {
        reencrypt_of(main, keys, &BTreeSet::from([user]), &mut report).await?;
        return Ok(report);
    }
    let mut after = -1;
    loop {
        let page = users(main, after).await.map_err(main_database)?;
        let Some(last) = page.last() else { return Ok(report) };
        after = last.get();
        reencrypt_of(main, keys, &page.into_iter().collect(), &mut report).await?;
    }
}

fn main_database(fault: Fault) -> KeyError {
    KeyError::Main(fault.reason)
}

/// Checks that the role of the connection bypasses row-level security. A role that does not would see no rows, and the
/// rotation would seem complete.
///
/// # Errors
/// [`KeyError::Settings`] if it does not, [`KeyError::Main`] if the query fails.
pub async fn check_bypasses_rls(main: &mut Connection) -> Result<(), KeyError> {
    #[derive(QueryableByName)]
    struct Active {
        #[diesel(sql_type = Bool)]
        active: bool,
    }
    let query = diesel::sql_query("SELECT row_security_active('encrypted_fields') AS active");
    let rows: Vec<Active> = query.load(main).await.map_err(|error| main_database(error.into()))?;
    if rows.iter().any(|row| row.active) {
        return Err(KeyError::Settings(
            "postgres.url names a role that does not bypass row-level security; rotate data keys with a role that does"
                .to_owned(),
        ));
    }
    Ok(())
}

/// The position of an encrypted field, and the version of its data key.
#[derive(QueryableByName)]
struct FieldPosition {
    #[diesel(sql_type = SqlUuid)]
    id: Uuid,
    #[diesel(sql_type = Integer)]
    user_id: i32,
    #[diesel(sql_type = Binary)]
    key_version: Vec<u8>,
}

impl FieldPosition {
    fn key(&self) -> Option<(UserId, u32)> {
        let version = <[u8; 4]>::try_from(self.key_version.as_slice()).ok()?;
        Some((UserId::new(self.user_id).ok()?, u32::from_be_bytes(version)))
    }
}

async fn reencrypt_of(
    main: &mut Connection,
    keys: &Keys,
    users: &BTreeSet<UserId>,
    report: &mut RotationReport,
) -> Result<(), KeyError> {
    let mut current = BTreeMap::new();
    let mut known = keys.existing(users, &Grants::new()).await?;
    for user in users {
        match known.remove(user) {
            Some(Ok(key)) => drop(current.insert(*user, key)),
            Some(Err(reason)) => report.fail(format!("the data key of user {user}: {reason}")),
            None => report
                .fail(format!("user {user} has no data key; is the key store older than the main database?")),
        }
    }
    let mut after = (-1, Uuid::nil());
    loop {
        let old = outdated_fields(main, &current, after).await.map_err(main_database)?;
        let Some(last) = old.last() else { return Ok(()) };
        after = (last.user_id, last.id);
        let old_keys: OldKeys = keys
            .of_versions(old.iter().filter_map(FieldPosition::key), &Grants::new(), Need::Available)
            .await?
            .into_iter()
            .collect();
        report.add(reencrypt_page(main, &old, &current, &old_keys).await.map_err(main_database)?);
    }
}

/// Data keys by user and version, or the reason why one cannot be unwrapped.
type OldKeys = BTreeMap<(UserId, u32), Result<CipherKey, String>>;

/// The maximum number of retries of a step that a conflict with a writer aborted.
const RETRIES: u32 = 20;

/// Reencrypts a page of fields, with retries: triggers of other tables delete ciphertexts in the order of those tables,
/// which can cause deadlocks.
async fn reencrypt_page(
    main: &mut Connection,
    old: &[FieldPosition],
    current: &BTreeMap<UserId, CipherKey>,
    old_keys: &OldKeys,
) -> Result<RotationReport, Fault> {
    let mut tries = 0;
    loop {
        let step: Result<RotationReport, Fault> =
            main.transaction(async |main| try_reencrypt_page(main, old, current, old_keys).await).await;
        match step {
            Err(Fault { kind: FaultKind::Transient | FaultKind::Blocked, .. }) if tries < RETRIES => {
                tries += 1;
            }
            step => return step,
        }
    }
}

/// The positions of the next fields whose data key is older than the current one. Bytes 3 to 6 of a ciphertext are the
/// version of its key.
async fn outdated_fields(
    main: &mut Connection,
    current: &BTreeMap<UserId, CipherKey>,
    after: (i32, Uuid),
) -> Result<Vec<FieldPosition>, Fault> {
    const OUTDATED: &str = "
        SELECT e.id, e.user_id, substr(e.ciphertext, 3, 4) AS key_version
        FROM unnest($1::integer[], $2::integer[]) AS c (user_id, version)
        JOIN encrypted_fields e ON e.user_id = c.user_id AND substr(e.ciphertext, 3, 4) < int4send(c.version)
        WHERE (e.user_id, e.id) > ($3, $4) ORDER BY e.user_id, e.id LIMIT $5";
    let query = diesel::sql_query(OUTDATED)
        .bind::<Array<Integer>, _>(current.keys().map(|user| user.get()).collect::<Vec<_>>())
        .bind::<Array<Integer>, _>(
            current.values().map(|key| key.version().cast_signed()).collect::<Vec<_>>(),
        )
        .bind::<Integer, _>(after.0)
        .bind::<SqlUuid, _>(after.1)
        .bind::<BigInt, _>(FIELD_PAGE);
    Ok(query.load(main).await?)
}

store::unnest_row! {
    /// A reencrypted field.
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

/// Reencrypts a page of fields in a transaction. It locks the rows in the order in which workers write them.
async fn try_reencrypt_page(
    main: &mut Connection,
    old: &[FieldPosition],
    current: &BTreeMap<UserId, CipherKey>,
    old_keys: &OldKeys,
) -> Result<RotationReport, Fault> {
    const READ: &str = "
        SELECT e.user_id, e.table_name::text, e.column_name::text, e.row_id, e.ciphertext
        FROM unnest($1::integer[], $2::uuid[]) AS i (user_id, id)
        JOIN encrypted_fields e ON e.user_id = i.user_id AND e.id = i.id
        ORDER BY e.user_id, e.table_name, e.column_name, e.row_id FOR UPDATE OF e";
    let mut report = RotationReport::default();
    let rows: Vec<Row> = diesel::sql_query(READ)
        .bind::<Array<Integer>, _>(old.iter().map(|place| place.user_id).collect::<Vec<_>>())
        .bind::<Array<SqlUuid>, _>(old.iter().map(|place| place.id).collect::<Vec<_>>())
        .load(main)
        .await?;
    let mut rewritten: Vec<(Encrypted, Vec<u8>)> = Vec::with_capacity(rows.len());
    for field in rows.into_iter().filter_map(Row::decode) {
        let Some(key) = current.get(&field.user) else { continue };
        match reencrypted(&field, key, old_keys) {
            Ok(Some(ciphertext)) => rewritten.push((field, ciphertext)),
            Ok(None) => {}
            Err(reason) => report.fail(format!(
                "{}.{} of the row {} of user {}: {reason}",
                field.table, field.column, field.row, field.user
            )),
        }
    }
    if !rewritten.is_empty() {
        let rows = rewritten.iter().map(|(field, sealed)| Reencrypted {
            user_id: field.user.get(),
            table_name: &field.table,
            column_name: &field.column,
            row_id: field.row,
            ciphertext: sealed,
        });
        report.done = with_rows(&WRITE, rows.collect()).execute(main).await?;
    }
    Ok(report)
}

/// A field encrypted with another key. None if a writer has used that key meanwhile.
fn reencrypted(field: &Encrypted, key: &CipherKey, old_keys: &OldKeys) -> Result<Option<Vec<u8>>, String> {
    let version = field.key_version().ok_or("it is not a ciphertext")?;
    if version >= key.version() {
        return Ok(None);
    }
    let old = match old_keys.get(&(field.user, version)) {
        Some(Ok(old)) => old,
        Some(Err(reason)) => {
            return Err(format!("version {version} of its data key cannot be unwrapped: {reason}"));
        }
        None => return Err(format!("the key store has no version {version} of its user's data key")),
    };
    let plain = decrypt_with(field, old)?;
    let Encrypted { user, table, column, row, .. } = field;
    let aad = AssociatedData::Field { table, column, row: *row, user: *user };
    key.seal(&plain, aad).map(Some).map_err(|error| format!("it {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_failures_are_counted_and_the_first_ones_named() {
        let mut report = RotationReport { done: 3, ..RotationReport::default() };
        (0..5).for_each(|number| report.fail(format!("own {number}")));
        let mut other = RotationReport { done: 4, ..RotationReport::default() };
        (0..MAX_PROBLEMS + 10).for_each(|number| other.fail(format!("other {number}")));
        assert_eq!((other.failed, other.problems.len()), (MAX_PROBLEMS + 10, MAX_PROBLEMS));
        report.add(other);
        assert_eq!((report.done, report.failed), (7, MAX_PROBLEMS + 15));
        assert_eq!(report.problems.len(), MAX_PROBLEMS);
        let named = |place: usize| report.problems.get(place).map(String::as_str);
        assert_eq!((named(0), named(5)), (Some("own 0"), Some("other 0")));
    }
}
