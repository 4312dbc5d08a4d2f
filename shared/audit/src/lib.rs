//! The audit trail, proven.
//!
//! Triggers in the database write the trail, and whoever rules the database could change it afterwards. So its rows are
//! sealed: taken in the order of their transactions as the leaves of Merkle trees ([`tree`]), whose roots are chained, signed
//! with a key that the database does not hold ([`trust::PrivateKey`]), and told to the broker, which deletes nothing ([`anchor`]).
//! [`verify()`] recomputes all of it and names the first row that is not what was sealed.
//!
//! Writers wait for none of it: a row is sealed some seconds after its transaction, and until then it is only as safe as the
//! database.

pub mod anchor;
mod leaf;
mod seal;
mod sealer;
mod trail;
pub mod tree;
mod verify;

pub use leaf::{Leaf, Source};
pub use seal::{Digest, Seal, Statement};
pub use sealer::{MAX_LEAVES, seal_all};
pub use trail::{TrailEntry, trail};
pub use verify::{Finding, Report, verify};

/// Sealing or proving cannot go on. It says nothing about whether the trail is whole: see [`Finding`].
#[derive(Debug, thiserror::Error)]
pub enum AuditError {
    /// The database.
    #[error("the database: {0}")]
    Database(#[from] store::Fault),
    /// The broker's stream of anchors.
    #[error("the stream {stream}: {problem}", stream = anchor::STREAM)]
    Anchor {
        /// What the server or the network says.
        problem: String,
    },
    /// The last seal lies in the future of this database's transactions.
    #[error(
        "the last seal covers transaction {sealed}, and the database is only at {present}: it was restored from a dump into \
         another cluster; set the next transaction beyond it with `pg_resetwal --epoch`, or what is written now is never sealed"
    )]
    Behind {
        /// The last transaction that is sealed.
        sealed: i64,
        /// The oldest transaction that is not finished.
        present: i64,
    },
}
