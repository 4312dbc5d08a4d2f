//! The last of a person: the data keys, and the token of the audit trail. From here on the tombstone refuses the id.

use contract::UserId;
use data_encoding::HEXLOWER;
use diesel::QueryableByName;
use diesel::sql_types::{Binary, Integer, Text, Uuid as SqlUuid};
use diesel_async::RunQueryDsl;
use store::Connection;
use uuid::Uuid;

use crate::error::PrivacyError;
use crate::{fence, restriction};

/// Destroys the data keys of a user, after which no ciphertext of the user opens, in whatever backup.
///
/// # Errors
/// [`PrivacyError::Left`] if there are any afterwards.
pub(crate) async fn destroy(
    key_store: &mut Connection,
    user: UserId,
    before: u64,
) -> Result<(), PrivacyError> {
    ::keys::destroy(key_store, user).await?;
    match ::keys::count(key_store, user).await? {
        0 => Ok(()),
        left => {
            let deleted = before.saturating_sub(left);
            Err(PrivacyError::Left { table: "data_keys of the key store".to_owned(), before, deleted, left })
        }
    }
}

/// Notes that a user is erased, and gives the tombstone, by which the database knows the id again, and the name of its key.
pub(crate) async fn note_erased(
    db: &mut Connection,
    user: UserId,
    erasure: Uuid,
    tenant: Option<Uuid>,
) -> Result<(Vec<u8>, String), PrivacyError> {
    #[derive(QueryableByName)]
    struct Of {
        #[diesel(sql_type = Text)]
        key_id: String,
    }
    const KEY: &str = "SELECT key_id::text AS key_id FROM sec.erased_users WHERE tombstone = $1";
    let tombstone = fence::note_erased(db, user, erasure, tenant).await?;
    let key: Of = diesel::sql_query(KEY).bind::<Binary, _>(&tombstone).get_result(db).await?;
    Ok((tombstone, key.key_id))
}

/// Deletes the subject of a user, the restriction, and the user's other requests: those that were cancelled, and about restrictions.
pub(crate) async fn forget(db: &mut Connection, user: UserId, request: Uuid) -> Result<u64, PrivacyError> {
    const REQUESTS: &str = "DELETE FROM public.privacy_requests WHERE user_id = $1 AND id <> $2";
    const SUBJECT: &str = "DELETE FROM audit.subjects WHERE user_id = $1";
    let requests = diesel::sql_query(REQUESTS).bind::<Integer, _>(user.get()).bind::<SqlUuid, _>(request);
    let requests = requests.execute(db).await?;
    restriction::forget(db, user).await?;
    diesel::sql_query(SUBJECT).bind::<Integer, _>(user.get()).execute(db).await?;
    Ok(u64::try_from(requests).unwrap_or(u64::MAX))
}

/// A key of tombstones, as [`export`] writes it and [`import`] reads it.
#[derive(QueryableByName)]
struct Key {
    #[diesel(sql_type = Text)]
    key_id: String,
    #[diesel(sql_type = Binary)]
    inner_pad: Vec<u8>,
}

/// What HMAC adds to each byte of a key for its inner pad (RFC 2104).
const INNER: u8 = 0x36;

/// The keys with which the main database makes tombstones, one line for each: `<name> tombstone <128 hex digits>`. Whoever has them can find
/// out whose a receipt is.
///
/// # Errors
/// [`PrivacyError`] of the database.
pub async fn export(db: &mut Connection) -> Result<String, PrivacyError> {
    const KEYS: &str =
        "SELECT key_id::text AS key_id, inner_pad FROM sec.keys WHERE purpose = 'tombstone' ORDER BY key_id";
    let keys: Vec<Key> = diesel::sql_query(KEYS).load(db).await?;
    let line = |key: Key| {
        let bytes: Vec<u8> = key.inner_pad.iter().map(|byte| byte ^ INNER).collect();
        format!("{} tombstone {}\n", key.key_id, HEXLOWER.encode(&bytes))
    };
    Ok(keys.into_iter().map(line).collect())
}

/// Adds the keys of an export that the main database lacks. They make no new tombstones: they only know old ones again. Returns their number.
///
/// # Errors
/// [`PrivacyError::Settings`] if the text is no such export, which quotes nothing of it.
pub async fn import(db: &mut Connection, exported: &str) -> Result<u64, PrivacyError> {
    const ADD: &str = "SELECT sec.add_key($1, 'tombstone', $2)
        WHERE NOT EXISTS (SELECT FROM sec.keys k WHERE k.key_id = $1)";
    const RETIRE: &str = "UPDATE sec.keys SET retired_at = now() WHERE key_id = $1 AND purpose = 'tombstone'";
    let mut added = 0;
    for line in exported.lines().filter(|line| !line.trim().is_empty()) {
        let (name, bytes) = parse(line).ok_or_else(|| {
            PrivacyError::Settings(
                "the file has no keys of tombstones as `memfleet privacy key export` writes them".to_owned(),
            )
        })?;
        let add = diesel::sql_query(ADD).bind::<Text, _>(name).bind::<Binary, _>(bytes);
        if add.execute(db).await? == 1 {
            diesel::sql_query(RETIRE).bind::<Text, _>(name).execute(db).await?;
            added += 1;
        }
    }
    Ok(added)
}

fn parse(line: &str) -> Option<(&str, Vec<u8>)> {
    let mut parts = line.split_whitespace();
    let (name, "tombstone", digits, None) = (parts.next()?, parts.next()?, parts.next()?, parts.next())
    else {
        return None;
    };
    let bytes = HEXLOWER.decode(digits.as_bytes()).ok()?;
    (name.starts_with("tombstone-") && bytes.len() == 64).then_some((name, bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_exported_key_is_read_and_nothing_else() {
        let line = format!("tombstone-00ff tombstone {}", "ab".repeat(64));
        assert_eq!(parse(&line), Some(("tombstone-00ff", vec![0xab; 64])));
        for other in [
            format!("context tombstone {}", "ab".repeat(64)),
            format!("tombstone-00ff tombstone {}", "ab".repeat(32)),
            format!("tombstone-00ff private {}", "ab".repeat(64)),
            format!("{line} more"),
            "tombstone-00ff".to_owned(),
        ] {
            assert_eq!(parse(&other), None, "{other}");
        }
    }
}
