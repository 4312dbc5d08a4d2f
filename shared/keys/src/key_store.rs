//! The table of wrapped data keys.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::LazyLock;

use contract::UserId;
use diesel::prelude::*;
use diesel::sql_types::{Array, BigInt, Bool, Integer, Text};
use diesel_async::{AsyncConnection, RunQueryDsl};
use store::unnest::{UnnestRow, with_rows};
use store::{Connection, Fault, FaultKind, Pool};

use crate::KeyError;
use crate::schema::data_keys;

/// Users, each with a grant to act for the user, as a worker has it from a service token. The key store verifies the
/// grants again. An operator, who bypasses row-level security, has none.
pub type Grants<'a> = BTreeMap<UserId, &'a str>;

/// A wrapped data key, a row of the key store.
#[derive(Clone, Debug)]
pub(crate) struct WrappedKey {
    pub(crate) user: UserId,
    pub(crate) version: u32,
    /// The KEK that wraps it.
    pub(crate) kek: String,
    pub(crate) wrapped: Vec<u8>,
}

#[derive(QueryableByName)]
#[diesel(table_name = data_keys)]
struct Row {
    user_id: i32,
    version: i32,
    kek: String,
    wrapped: Vec<u8>,
}

impl Row {
    /// None for numbers out of range, which the constraints of the table rule out.
    fn decode(self) -> Option<WrappedKey> {
        let Self { user_id, version, kek, wrapped } = self;
        Some(WrappedKey {
            user: UserId::new(user_id).ok()?,
            version: u32::try_from(version).ok()?,
            kek,
            wrapped,
        })
    }
}

fn decode(rows: Vec<Row>) -> Vec<WrappedKey> {
    rows.into_iter().filter_map(Row::decode).collect()
}

pub(crate) fn ids(users: &BTreeSet<UserId>) -> Vec<i32> {
    users.iter().map(|user| user.get()).collect()
}

/// A request for wrapped keys.
pub(crate) enum KeyRequest<'a> {
    /// The highest version of each of these users.
    Highest(&'a BTreeSet<UserId>),
    /// The versions below the highest one, at most [`OLDER`] of each user, in ascending order.
    Older(&'a BTreeSet<UserId>),
    /// The keys of these users and versions.
    OfVersions(&'a BTreeSet<(UserId, u32)>),
    /// Adds these keys, and returns those that were added. Of the other users, it returns the highest version: another
    /// process has added it.
    Add(&'a [WrappedKey]),
}

impl KeyRequest<'_> {
    fn users(&self) -> BTreeSet<UserId> {
        match self {
            Self::Highest(users) | Self::Older(users) => (*users).clone(),
            Self::OfVersions(wanted) => wanted.iter().map(|(user, _)| *user).collect(),
            Self::Add(keys) => keys.iter().map(|key| key.user).collect(),
        }
    }

    async fn run(&self, connection: &mut Connection) -> Result<Vec<WrappedKey>, Fault> {
        match self {
            Self::Highest(users) => highest(connection, users).await,
            Self::Older(users) => older(connection, users).await,
            Self::OfVersions(wanted) => of_versions(connection, wanted).await,
            Self::Add(keys) => {
                // Of two processes that create a key for the same user, the first one wins, and both use its key.
                let added = add(connection, keys).await?;
                let (added, others): (Vec<_>, Vec<_>) =
                    keys.iter().cloned().partition(|key| added.contains(&(key.user, key.version)));
                let others = others.iter().map(|key| key.user).collect();
                Ok([added, highest(connection, &others).await?].concat())
            }
        }
    }
}

/// What the key store says of a user who is erased, or is being erased. The main database says so, too, or does in a moment.
const ERASED: &str = "it knows a user as erased";

/// How often a request is tried whose security context ended because something was revoked meanwhile.
const TRIES: u32 = 3;

/// Runs a request under the grants of its users. Without any, it runs without a security context, in which a worker's
/// role sees no key.
///
/// # Errors
/// [`KeyError::Denied`] if the key store refuses a grant, [`KeyError::Blocked`] if keys cannot be added because of a lock or one of the users
/// is erased,
/// [`KeyError::Store`] if it is unavailable.
pub(crate) async fn request(
    pool: &Pool,
    request: &KeyRequest<'_>,
    grants: &Grants<'_>,
) -> Result<Vec<WrappedKey>, KeyError> {
    let users = request.users();
    let grants: BTreeSet<&str> =
        grants.iter().filter(|(user, _)| users.contains(user)).map(|(_, grant)| *grant).collect();
    let grants = Vec::from_iter(grants);
    let mut tries = 1;
    loop {
        match try_request(pool, request, &grants).await {
            Err(Fault { reason, .. }) if reason == ERASED => return Err(KeyError::Blocked(reason)),
            Err(Fault { kind: FaultKind::Transient, .. }) if tries < TRIES => tries += 1,
            // Whoever only reads waits for no row: a timeout then concerns all users.
            Err(Fault { kind: FaultKind::Blocked, reason }) if matches!(request, KeyRequest::Add(_)) => {
                return Err(KeyError::Blocked(reason));
            }
            found => return Ok(found?),
        }
    }
}

async fn try_request(
    pool: &Pool,
    request: &KeyRequest<'_>,
    grants: &[&str],
) -> Result<Vec<WrappedKey>, Fault> {
    let mut connection = store::acquire(pool).await?;
    let found = if grants.is_empty() {
        request.run(&mut connection).await
    } else {
        connection
            .transaction(async |connection| {
                store::security::open_context(connection, grants).await?;
                request.run(connection).await
            })
            .await
    };
    store::discard_if_unusable(connection, &found);
    found
}

/// The login of a connection to the key store.
#[derive(QueryableByName)]
pub(crate) struct Login {
    #[diesel(sql_type = Text)]
    pub(crate) role: String,
    /// Whether row-level security hides the keys of users for whom it holds no grant.
    #[diesel(sql_type = Bool)]
    pub(crate) is_isolated: bool,
}

/// The login of this connection.
///
/// # Errors
/// A [`Fault`] of the database.
pub(crate) async fn login(connection: &mut Connection) -> Result<Login, Fault> {
    const LOGIN: &str = "SELECT session_user::text AS role, row_security_active('data_keys') AS is_isolated";
    Ok(diesel::sql_query(LOGIN).get_result(connection).await?)
}

/// Checks that this connection sees the keys of all users, as an operator's must: a worker's sees none, and there would
/// seem to be nothing to do.
///
/// # Errors
/// [`KeyError::Settings`] if it does not, [`KeyError::Store`] if the query fails.
pub(crate) async fn check_operator(connection: &mut Connection) -> Result<(), KeyError> {
    let login = login(connection).await?;
    if login.is_isolated {
        return Err(KeyError::Settings(format!(
            "keys.url names the role {}, which does not bypass row-level security; use one that does",
            login.role
        )));
    }
    Ok(())
}

async fn highest(connection: &mut Connection, users: &BTreeSet<UserId>) -> Result<Vec<WrappedKey>, Fault> {
    if users.is_empty() {
        return Ok(Vec::new());
    }
    const HIGHEST: &str = "
        SELECT k.user_id, k.version, k.kek, k.wrapped FROM unnest($1::integer[]) AS u (id)
        CROSS JOIN LATERAL (SELECT * FROM data_keys d WHERE d.user_id = u.id ORDER BY d.version DESC LIMIT 1) AS k";
    let query = diesel::sql_query(HIGHEST).bind::<Array<Integer>, _>(ids(users));
    Ok(decode(store::prepared(query).load(connection).await?))
}

/// How many versions below the highest one are tried. If none of them opens, another one is added.
const OLDER: i64 = 8;

async fn older(connection: &mut Connection, users: &BTreeSet<UserId>) -> Result<Vec<WrappedKey>, Fault> {
    const OLDER_KEYS: &str = "
        SELECT k.user_id, k.version, k.kek, k.wrapped FROM unnest($1::integer[]) AS u (id)
        CROSS JOIN LATERAL (SELECT * FROM data_keys d WHERE d.user_id = u.id ORDER BY d.version DESC LIMIT $2 OFFSET 1) AS k
        ORDER BY k.user_id, k.version";
    let query = diesel::sql_query(OLDER_KEYS).bind::<Array<Integer>, _>(ids(users)).bind::<BigInt, _>(OLDER);
    Ok(decode(store::prepared(query).load(connection).await?))
}

async fn of_versions(
    connection: &mut Connection,
    wanted: &BTreeSet<(UserId, u32)>,
) -> Result<Vec<WrappedKey>, Fault> {
    const KEYS: &str = "
        SELECT k.user_id, k.version, k.kek, k.wrapped FROM unnest($1::integer[], $2::bigint[]) AS w (user_id, version)
        JOIN data_keys k ON k.user_id = w.user_id AND k.version = w.version";
    let users: Vec<i32> = wanted.iter().map(|(user, _)| user.get()).collect();
    let versions: Vec<i64> = wanted.iter().map(|(_, version)| i64::from(*version)).collect();
    let query = diesel::sql_query(KEYS).bind::<Array<Integer>, _>(users).bind::<Array<BigInt>, _>(versions);
    Ok(decode(store::prepared(query).load(connection).await?))
}

store::unnest_row! {
    /// A key to insert.
    struct NewRow<'a> {
        user_id: i32,
        version: i32,
        kek: &'a str,
        wrapped: &'a [u8],
    }
}

static ADD: LazyLock<String> = LazyLock::new(|| {
    let (arrays, names) = (NewRow::arrays(1), NewRow::names());
    format!(
        "INSERT INTO data_keys ({names})
        SELECT {names} FROM unnest({arrays}) AS k ({names})
        ORDER BY user_id, version
        ON CONFLICT DO NOTHING RETURNING user_id, version, kek, ''::bytea AS wrapped"
    )
});

/// Inserts keys and returns those that were inserted: another process may have inserted the same user and version
/// first.
pub(crate) async fn add(
    connection: &mut Connection,
    keys: &[WrappedKey],
) -> Result<BTreeSet<(UserId, u32)>, Fault> {
    let rows = keys.iter().map(|key| NewRow {
        user_id: key.user.get(),
        version: version(key),
        kek: &key.kek,
        wrapped: &key.wrapped,
    });
    let added = decode(with_rows(&ADD, rows.collect()).load(connection).await?);
    Ok(added.into_iter().map(|key| (key.user, key.version)).collect())
}

/// The next keys, by user and version, that a KEK other than this one wraps.
pub(crate) async fn wrapped_by_others(
    connection: &mut Connection,
    kek: &str,
    after: (i32, u32),
    limit: i64,
) -> Result<Vec<WrappedKey>, Fault> {
    const NEXT: &str = "
        SELECT user_id, version, kek, wrapped FROM data_keys
        WHERE kek <> $1 AND (user_id, version) > ($2, $3) ORDER BY user_id, version LIMIT $4";
    let query = diesel::sql_query(NEXT)
        .bind::<Text, _>(kek)
        .bind::<Integer, _>(after.0)
        .bind::<BigInt, _>(i64::from(after.1))
        .bind::<BigInt, _>(limit);
    Ok(decode(query.load(connection).await?))
}

store::unnest_row! {
    /// A rewrapped key.
    struct RewrappedRow<'a> {
        user_id: i32,
        version: i32,
        kek: &'a str,
        wrapped: &'a [u8],
        old: &'a [u8],
    }
}

static REPLACE: LazyLock<String> = LazyLock::new(|| {
    let (arrays, names) = (RewrappedRow::arrays(1), RewrappedRow::names());
    format!(
        "UPDATE data_keys k SET kek = i.kek, wrapped = i.wrapped, wrapped_at = now()
        FROM unnest({arrays}) AS i ({names})
        WHERE k.user_id = i.user_id AND k.version = i.version AND k.wrapped = i.old"
    )
});

/// Replaces wrapped keys by rewrapped ones, unless they changed since they were read. Returns the number of replaced
/// keys.
pub(crate) async fn replace(
    connection: &mut Connection,
    read: &[WrappedKey],
    rewrapped: &[WrappedKey],
) -> Result<usize, Fault> {
    let rows = rewrapped.iter().zip(read).map(|(key, old)| RewrappedRow {
        user_id: key.user.get(),
        version: version(key),
        kek: &key.kek,
        wrapped: &key.wrapped,
        old: &old.wrapped,
    });
    Ok(with_rows(&REPLACE, rows.collect()).execute(connection).await?)
}

fn version(key: &WrappedKey) -> i32 {
    // A version counts the rotations of one user's key, and a constraint limits it.
    i32::try_from(key.version).unwrap_or(i32::MAX)
}
