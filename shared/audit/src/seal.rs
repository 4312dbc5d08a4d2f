//! A seal: what is signed, byte by byte.

use chrono::{DateTime, Utc};
use sha2::{Digest as _, Sha256};
use uuid::Uuid;

use crate::leaf::Leaf;
use crate::tree;

/// A SHA-256.
pub type Digest = [u8; 32];

/// What a seal states about the rows that it covers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Statement {
    /// Counts from 1 without a gap.
    pub number: i64,
    /// The hash of the seal before; zeros for the first.
    pub previous: Digest,
    /// Up to which place in the order of transactions and ids it covers everything: its last row, if it is full; else the
    /// oldest transaction that was not finished.
    pub through_transaction: i64,
    /// The row of that transaction; nil if none is covered.
    pub through_id: Uuid,
    /// How many rows.
    pub count: u32,
    /// The root of their tree.
    pub root: Digest,
    /// When, in whole microseconds.
    pub sealed_at: DateTime<Utc>,
}

/// What comes first in what is hashed, so that the hash is of nothing else that a key may sign.
const CONTEXT: &[u8] = b"memfleet audit seal v1\n";

impl Statement {
    /// The statement about these leaves, after the seal `previous` with the number before.
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

    /// What is signed, and what the next seal names: SHA-256 over all fields in their order, numbers as eight bytes, the
    /// highest first, the time in microseconds since 1970.
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

/// A statement, the leaves that it is about, and its signature.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seal {
    /// What is signed.
    pub statement: Statement,
    /// The rows in their order.
    pub leaves: Vec<Leaf>,
    /// Whose signature.
    pub key_name: String,
    /// Over the statement's hash.
    pub signature: [u8; 64],
}
