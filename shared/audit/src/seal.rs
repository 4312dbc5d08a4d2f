//! Seals, and the exact bytes that are signed.

use chrono::{DateTime, Utc};
use sha2::{Digest as _, Sha256};
use uuid::Uuid;

use crate::digest::Digest;
use crate::leaf::Leaf;
use crate::tree;

/// The signed part of a seal.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Statement {
    /// The number of the seal, from 1 without gaps.
    pub number: i64,
    /// The hash of the previous seal; zeros for the first.
    pub previous: Digest,
    /// The seal covers all rows up to this transaction and `through_id`: the position of its last row if it is full, or
    /// else the oldest transaction that was in progress.
    pub through_transaction: i64,
    /// The last covered row of that transaction; nil if none is covered.
    pub through_id: Uuid,
    /// The number of rows.
    pub count: u32,
    /// The root of their Merkle tree.
    pub root: Digest,
    /// When it was sealed, in whole microseconds.
    pub sealed_at: DateTime<Utc>,
}

/// The prefix of the hashed bytes, for domain separation from other messages that the key may sign.
const CONTEXT: &[u8] = b"memfleet audit seal v1\n";

impl Statement {
    /// The statement about these leaves. `previous` is the hash of the previous seal.
    pub fn new(
        number: i64,
        previous: Digest,
        through: (i64, Uuid),
        leaves: &[Leaf],
        sealed_at: DateTime<Utc>,
    ) -> Self {
        Self {
            number,
            previous,
            through_transaction: through.0,
            through_id: through.1,
            count: u32::try_from(leaves.len()).unwrap_or(u32::MAX),
            root: tree::root(leaves.iter().map(|leaf| tree::leaf_hash(&leaf.to_bytes()))),
            sealed_at,
        }
    }

    /// The hash that is signed and that the next seal contains: SHA-256 of all fields in order, with numbers as eight
    /// bytes big-endian and the time in microseconds since 1970.
    pub fn hash(&self) -> Digest {
        Sha256::new()
            .chain_update(CONTEXT)
            .chain_update(self.number.to_be_bytes())
            .chain_update(self.previous)
            .chain_update(self.through_transaction.to_be_bytes())
            .chain_update(self.through_id.as_bytes())
            .chain_update(i64::from(self.count).to_be_bytes())
            .chain_update(self.root)
            .chain_update(self.sealed_at.timestamp_micros().to_be_bytes())
            .finalize()
            .into()
    }
}

/// A statement with its leaves and its signature.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seal {
    /// The signed statement.
    pub statement: Statement,
    /// The leaves in order.
    pub leaves: Vec<Leaf>,
    /// The name of the key that signed it.
    pub key_name: String,
    /// The signature of the statement's hash.
    pub signature: [u8; 64],
}
