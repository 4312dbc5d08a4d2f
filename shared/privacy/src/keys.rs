//! The last of a person: the data keys, and the token of the audit trail. From here on the tombstone refuses the id.

use contract::UserId;
use data_encoding::HEXLOWER;
use diesel::QueryableByName;
use diesel::sql_types::{Binary, Integer, Text, Uuid as SqlUuid};
use diesel_async::RunQueryDsl;
use sha2::{Digest as _, Sha256};
use store::{Connection, Fault};
use uuid::Uuid;

use crate::error::PrivacyError;
use crate::receipt::Tombstone;
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

/// Notes that a user is erased, and gives the tombstone, by which the database knows the id again.
///
/// # Errors
/// [`PrivacyError::Refused`] if its key is not the one of its name: nobody would be known again with the right one.
pub(crate) async fn note_erased(
    db: &mut Connection,
    user: UserId,
    erasure: Uuid,
    tenant: Option<Uuid>,
) -> Result<Tombstone, PrivacyError> {
    let hash = fence::note_erased(db, user, erasure, tenant).await?;
    let key = key_of_tombstone(db, &hash).await?.unwrap_or_default();
    match fault_of_key(db, &key).await? {
        None => Ok(Tombstone::new(&hash, key)),
        Some(fault) => {
            Err(PrivacyError::Refused(format!("the database cannot note that the person is erased: {fault}")))
        }
    }
}

/// The name of the key of a tombstone in a database: the main one, or the key store. None if it does not have the tombstone.
pub(crate) async fn key_of_tombstone(db: &mut Connection, hash: &[u8]) -> Result<Option<String>, Fault> {
    const KEY: &str = "SELECT key_id::text AS key_id FROM sec.erased_users WHERE tombstone = $1";
    let found: Vec<KeyOf> = diesel::sql_query(KEY).bind::<Binary, _>(hash).load(db).await?;
    Ok(found.into_iter().next().map(|of| of.key_id))
}

/// The tombstone by which the key store knows a user again: the latest one, if it has several keys.
pub(crate) async fn tombstone_of(
    key_store: &mut Connection,
    user: UserId,
) -> Result<Option<Tombstone>, Fault> {
    #[derive(QueryableByName)]
    struct Of {
        #[diesel(sql_type = Binary)]
        tombstone: Vec<u8>,
        #[diesel(sql_type = Text)]
        key_id: String,
    }
    const OF: &str = "
        SELECT e.tombstone, e.key_id::text AS key_id FROM sec.keys k
        JOIN sec.erased_users e ON e.key_id = k.key_id AND e.tombstone = sec.hmac(k.inner_pad, k.outer_pad, int4send($1))
        WHERE k.purpose = 'tombstone' ORDER BY k.created_at DESC, k.key_id LIMIT 1";
    let found: Vec<Of> = diesel::sql_query(OF).bind::<Integer, _>(user.get()).load(key_store).await?;
    Ok(found.into_iter().next().map(|of| Tombstone::new(&of.tombstone, of.key_id)))
}

#[derive(QueryableByName)]
struct KeyOf {
    #[diesel(sql_type = Text)]
    key_id: String,
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

/// What HMAC adds to each byte of a key for its inner and its outer pad (RFC 2104).
const INNER: u8 = 0x36;
const OUTER: u8 = 0x5c;
/// The bytes of a key of tombstones. The rest of its pads is that of zeros.
const KEY_BYTES: usize = 32;

/// What is wrong with the key of this name in a database: the main one, or the key store. None if it is the one that the name was made of. With
/// any other one, the database does not know those again whose tombstones were made with it.
pub(crate) async fn fault_of_key(db: &mut Connection, name: &str) -> Result<Option<String>, Fault> {
    #[derive(QueryableByName)]
    struct Pads {
        #[diesel(sql_type = Binary)]
        inner_pad: Vec<u8>,
        #[diesel(sql_type = Binary)]
        outer_pad: Vec<u8>,
    }
    const PADS: &str =
        "SELECT inner_pad, outer_pad FROM sec.keys WHERE key_id = $1 AND purpose = 'tombstone'";
    let found: Vec<Pads> = diesel::sql_query(PADS).bind::<Text, _>(name).load(db).await?;
    Ok(match found.into_iter().next() {
        None => Some(format!("it lacks the key {name}, with which tombstones were made")),
        Some(pads) if !is_of_pads(name, &pads.inner_pad, &pads.outer_pad) => {
            Some(format!("its key {name} was exchanged: it is not the one with which tombstones were made"))
        }
        Some(_) => None,
    })
}

fn is_of_pads(name: &str, inner: &[u8], outer: &[u8]) -> bool {
    let key: Vec<u8> = inner.iter().map(|byte| byte ^ INNER).collect();
    let other: Vec<u8> = outer.iter().map(|byte| byte ^ OUTER).collect();
    let (Some(secret), Some(rest)) = (key.get(..KEY_BYTES), key.get(KEY_BYTES..)) else { return false };
    let digest = HEXLOWER.encode(&Sha256::digest(secret));
    key == other
        && rest.iter().all(|byte| *byte == 0)
        && name.strip_prefix("tombstone-").is_some_and(|of| of.len() == 16 && digest.starts_with(of))
}

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
    fn a_key_has_the_name_of_its_digest() {
        let pads = |secret: [u8; KEY_BYTES], other: u8| {
            let key: Vec<u8> = secret.into_iter().chain([0; 32]).collect();
            let pad = |of: u8| key.iter().map(|byte| byte ^ of).collect::<Vec<u8>>();
            (pad(INNER), pad(other))
        };
        let name = format!("tombstone-{}", &HEXLOWER.encode(&Sha256::digest([7; KEY_BYTES]))[..16]);
        let is_of = |(inner, outer): (Vec<u8>, Vec<u8>)| is_of_pads(&name, &inner, &outer);
        assert!(is_of(pads([7; KEY_BYTES], OUTER)));
        assert!(!is_of(pads([8; KEY_BYTES], OUTER)), "another key");
        assert!(!is_of(pads([7; KEY_BYTES], INNER)), "another outer pad");
        assert!(!is_of((Vec::new(), Vec::new())));
        let (mut inner, mut outer) = pads([7; KEY_BYTES], OUTER);
        (inner[63], outer[63]) = (INNER ^ 1, OUTER ^ 1);
        assert!(!is_of((inner, outer)), "a longer key");
    }

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
