//! Seals of the audit trail, and their verification.
//!
//! Triggers in the database write the trail, and a database administrator could change it afterwards. Its rows are
//! therefore sealed: in the order of their transactions they become the leaves of Merkle trees ([`tree`]). The roots
//! are chained, signed with a key that the database does not have ([`trust::PrivateKey`]), and published to a NATS
//! stream that denies deletion ([`anchor`]). [`verify()`] recomputes all of it, counts the rows that differ and names the
//! first of each seal.
//!
//! Which user a token of the trail stands for is sealed in the same way, without revealing the user to anybody who has not
//! the user's key.
//!
//! Writers do not wait for the sealer: a row is sealed some seconds after its transaction. Until then, a change of the
//! row cannot be detected.

pub mod anchor;
mod difference;
mod digest;
mod excuse;
mod horizon;
mod leaf;
mod record;
mod row;
mod seal;
mod sealer;
mod trail;
pub mod tree;
mod verify;

pub use difference::Difference;
pub use digest::Digest;
pub use excuse::{AuditRow, Excuse};
pub use horizon::{HELD_AFTER, HeldBack, Holder, held_back};
pub use leaf::{Leaf, Source};
pub use seal::{Seal, Statement};
pub use sealer::{MAX_LEAVES, seal_all};
pub use trail::{TrailEntry, trail};
pub use verify::{Finding, Report, verify};

/// Sealing or verification failed. This says nothing about the trail itself: see [`Finding`].
#[derive(Debug, thiserror::Error)]
pub enum AuditError {
    /// The database returned an error.
    #[error("the database: {0}")]
    Database(#[from] store::Fault),
    /// The NATS stream of anchors returned an error.
    #[error("the stream {stream}: {problem}", stream = anchor::STREAM)]
    Anchor {
        /// The error of the server or the network.
        problem: String,
    },
    /// The last seal covers a transaction id that this database has not reached.
    #[error(
        "the last seal covers transaction {sealed}, but the database is only at transaction {present}: it was restored from a \
         dump into another cluster; advance the next transaction id beyond it with `pg_resetwal --epoch`, or new rows are never \
         sealed"
    )]
    Behind {
        /// The last sealed transaction.
        sealed: i64,
        /// The oldest transaction in progress.
        present: i64,
    },
}
