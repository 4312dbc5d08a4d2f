//! That a row of the trail lies under a seal, for whoever has neither the trail nor its database: the row, its path in the tree of the
//! seal, and what the seal signs.

use chrono::{DateTime, Utc};
use diesel::pg::Pg;
use diesel::prelude::*;
use diesel_async::{AsyncConnection, AsyncPgConnection, RunQueryDsl};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use store::Fault;
use store::schema::seals;
use trust::PublicKey;
use trust::text::{from_hex, to_hex};
use uuid::Uuid;

use crate::AuditError;
use crate::anchor::Anchors;
use crate::chain::{self, Header};
use crate::digest::Digest;
use crate::form;
use crate::leaf::{Leaf, Source};
use crate::row;
use crate::seal::Statement;
use crate::tree;

/// A row of `audit.audit_log` under a seal.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Inclusion {
    /// The columns of the row as a JSON array, exactly as its digest is made of them.
    pub row: String,
    /// Its index in the seal, from 0.
    pub index: u32,
    /// The siblings on the way to the root, from the leaf on, in hexadecimal digits.
    pub path: Vec<String>,
    /// The seal.
    pub seal: SealHeader,
}

/// What a seal signs, but for its root, and its signature.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SealHeader {
    /// Its number.
    pub number: i64,
    /// The hash of the previous seal, in hexadecimal digits.
    pub previous: String,
    /// See [`Statement::through_transaction`].
    pub through_transaction: i64,
    /// See [`Statement::through_id`].
    pub through_id: Uuid,
    /// The number of its rows.
    pub count: u32,
    /// When it was sealed.
    pub sealed_at: DateTime<Utc>,
    /// The name of the key that signed it.
    pub key: String,
    /// The signature, in hexadecimal digits.
    pub signature: String,
}

/// The places of columns in the row that tells of an erasure. Columns are only ever added behind them (`crate::row`).
const ID: usize = 1;
const TABLE: usize = 7;
const ROW: usize = 8;
const AFTER: usize = 11;

impl Inclusion {
    /// The hash of the seal, which NATS has as its anchor, if the row, the path and the signature of the seal fit together and one of
    /// these keys made the signature.
    ///
    /// # Errors
    /// What does not fit.
    pub fn verify(&self, keys: &[PublicKey]) -> Result<Digest, String> {
        let id = self.text(ID).and_then(|id| id.parse().ok()).ok_or("its audit row is malformed")?;
        let leaf = Leaf { source: Source::AuditLog, id, digest: Sha256::digest(&self.row).into() };
        let digest = |text: &String| from_hex(text).and_then(|bytes| bytes.try_into().ok());
        let path: Option<Vec<Digest>> = self.path.iter().map(digest).collect();
        let size = |number: u32| usize::try_from(number).unwrap_or(usize::MAX);
        let root = path.and_then(|path| {
            let leaf = tree::leaf_hash(&leaf.to_bytes());
            tree::root_of_path(&leaf, size(self.index), size(self.seal.count), &path)
        });
        let root = root.ok_or("the path of its audit row leads to no root of such a seal")?;
        let seal = &self.seal;
        let statement = Statement {
            number: seal.number,
            previous: digest(&seal.previous).ok_or("the hash of the previous seal is malformed")?,
            through_transaction: seal.through_transaction,
            through_id: seal.through_id,
            count: seal.count,
            root,
            sealed_at: seal.sealed_at,
        };
        let signature = from_hex(&seal.signature).and_then(|bytes| bytes.try_into().ok());
        let signature = signature.ok_or("the signature of its seal is malformed")?;
        let hash = statement.hash();
        let mut named = keys.iter().filter(|key| key.name() == seal.key).peekable();
        if named.peek().is_none() {
            return Err(format!(
                "its audit row lies under seal {}, which is signed with the key {:?}; audit.public_keys_file does not have it",
                seal.number, seal.key
            ));
        }
        if named.any(|key| key.verifies(&hash, &signature)) {
            Ok(hash)
        } else {
            Err(format!(
                "its audit row does not lie under seal {}, or the seal is not of the key {:?}",
                seal.number, seal.key
            ))
        }
    }

    /// The digest of the receipt's body that the row of an erasure commits to; none if the row is of something else.
    pub fn body_of(&self, erasure: Uuid) -> Option<Digest> {
        let is_of_it = self.text(TABLE)? == "erasures" && self.text(ROW)? == erasure.to_string();
        if is_of_it { from_hex(&self.text(AFTER)?)?.try_into().ok() } else { None }
    }

    fn text(&self, column: usize) -> Option<String> {
        let columns: Vec<serde_json::Value> = serde_json::from_str(&self.row).ok()?;
        columns.get(column)?.as_str().map(str::to_owned)
    }
}

#[derive(Queryable, Selectable)]
#[diesel(table_name = seals, check_for_backend(Pg))]
struct SealRow {
    #[diesel(embed)]
    header: Header,
    leaves: Vec<u8>,
    key_name: String,
    signature: Vec<u8>,
}

/// A row of `audit.audit_log` and the seal that it lies under; none if there is no such row, or it is not sealed yet.
///
/// # Errors
/// A [`Fault`] of the database.
pub async fn inclusion(connection: &mut AsyncPgConnection, id: Uuid) -> Result<Option<Inclusion>, Fault> {
    connection.transaction(async |connection| read(connection, id).await).await
}

async fn read(connection: &mut AsyncPgConnection, id: Uuid) -> Result<Option<Inclusion>, Fault> {
    row::as_stored_locally(connection).await?;
    let types = form::types(connection).await?;
    let Some((placed, row)) = row::of_trail(connection, &types, id).await? else { return Ok(None) };
    let (transaction, id) = placed.place;
    // A seal covers what lies between the end of the one before it and its own end.
    let ends_behind = seals::through_transaction
        .gt(transaction)
        .or(seals::through_transaction.eq(transaction).and(seals::through_id.ge(id)));
    let seal: Option<SealRow> = seals::table
        .filter(ends_behind)
        .order(seals::number)
        .select(SealRow::as_select())
        .first(connection)
        .await
        .optional()?;
    Ok(seal.and_then(|seal| included(seal, &placed.leaf, row)))
}

/// What speaks against a seal with this number and hash, whose signature is good: that NATS has the anchor of another one. Anchors are not
/// kept for ever: without one, the database must have the seal. With one it need not, as it may be restored from an older backup.
///
/// # Errors
/// The database or NATS may fail.
pub async fn fault_of_seal(
    connection: &mut AsyncPgConnection,
    anchors: &Anchors,
    number: i64,
    hash: &Digest,
) -> Result<Option<String>, AuditError> {
    match anchors.of(number).await? {
        Some(anchor) if anchor == *hash => return Ok(None),
        Some(_) => return Ok(Some(format!("NATS has an anchor of another seal {number}"))),
        None => {}
    }
    let seal: Result<Option<Statement>, Fault> = connection
        .transaction(async |connection| {
            row::as_stored_locally(connection).await?;
            chain::by_number(connection, number).await
        })
        .await;
    Ok(match seal? {
        Some(seal) if seal.hash() == *hash => None,
        Some(_) => Some(format!("the database has another seal {number}")),
        None => Some(format!("neither NATS nor the database has seal {number}")),
    })
}

/// None if the seal does not have the leaf.
fn included(seal: SealRow, leaf: &Leaf, row: String) -> Option<Inclusion> {
    let SealRow { header, leaves, key_name, signature } = seal;
    let leaves = Leaf::read_all(&leaves)?;
    let index = leaves.iter().position(|one| one == leaf)?;
    let hashes: Vec<Digest> = leaves.iter().map(|leaf| tree::leaf_hash(&leaf.to_bytes())).collect();
    let path = tree::path(&hashes, index)?;
    let statement = Statement::from(header);
    Some(Inclusion {
        row,
        index: u32::try_from(index).ok()?,
        path: path.iter().map(|digest| to_hex(digest)).collect(),
        seal: SealHeader {
            number: statement.number,
            previous: to_hex(&statement.previous),
            through_transaction: statement.through_transaction,
            through_id: statement.through_id,
            count: statement.count,
            sealed_at: statement.sealed_at,
            key: key_name,
            signature: to_hex(&signature),
        },
    })
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use trust::PrivateKey;

    use super::*;

    const ERASURE: Uuid = Uuid::from_u128(7);

    fn key() -> PrivateKey {
        PrivateKey::parse(&format!("main private {}", "07".repeat(32))).unwrap()
    }

    /// The row of an erasure as the third of five rows under a seal.
    fn inclusion() -> Inclusion {
        let id = Uuid::from_u128(3);
        let row = format!(
            r#"[9, "{id}", 1800000000000000, null, "operator", null, "{ERASURE}", "erasures", "{ERASURE}", "INSERT", null, "{}", []]"#,
            "ab".repeat(32)
        );
        let leaf = |number: u128, digest: Digest| Leaf {
            source: Source::AuditLog,
            id: Uuid::from_u128(number),
            digest,
        };
        let mut leaves: Vec<Leaf> = (1..=5).map(|number| leaf(number, [1; 32])).collect();
        leaves[2].digest = Sha256::digest(&row).into();
        let sealed_at = DateTime::from_timestamp(1_800_000_000, 5_000).unwrap();
        let statement = Statement::new(4, [3; 32], (10, Uuid::nil()), &leaves, sealed_at);
        let hashes: Vec<Digest> = leaves.iter().map(|leaf| tree::leaf_hash(&leaf.to_bytes())).collect();
        Inclusion {
            row,
            index: 2,
            path: tree::path(&hashes, 2).unwrap().iter().map(|digest| to_hex(digest)).collect(),
            seal: SealHeader {
                number: 4,
                previous: to_hex(&[3; 32]),
                through_transaction: 10,
                through_id: Uuid::nil(),
                count: 5,
                sealed_at,
                key: key().name().to_owned(),
                signature: to_hex(&key().sign(&statement.hash())),
            },
        }
    }

    #[test]
    fn a_row_under_a_seal_is_believed_without_the_trail() {
        let written = serde_json::to_string(&inclusion()).unwrap();
        let read: Inclusion = serde_json::from_str(&written).unwrap();
        assert!(read.verify(&[key().public()]).is_ok());
        assert_eq!(read.body_of(ERASURE), Some([0xab; 32]));
        assert_eq!(read.body_of(Uuid::nil()), None);
    }

    #[test]
    fn every_change_of_it_is_noticed() {
        assert!(inclusion().verify(&[]).unwrap_err().contains("audit.public_keys_file"));
        type Change = fn(&mut Inclusion);
        let changes: [(&str, Change); 10] = [
            ("row", |one| one.row = one.row.replace("abab", "abac")),
            ("no row", |one| one.row = "[]".to_owned()),
            ("index", |one| one.index = 1),
            ("path", |one| one.path[0] = to_hex(&[0; 32])),
            ("shorter path", |one| drop(one.path.pop())),
            ("number", |one| one.seal.number = 5),
            ("previous", |one| one.seal.previous = to_hex(&[4; 32])),
            ("count", |one| one.seal.count = 6),
            ("time", |one| one.seal.sealed_at += chrono::TimeDelta::microseconds(1)),
            ("signature", |one| one.seal.signature = to_hex(&[0; 64])),
        ];
        for (name, change) in changes {
            let mut changed = inclusion();
            change(&mut changed);
            assert!(changed.verify(&[key().public()]).is_err(), "{name}");
        }
    }
}
