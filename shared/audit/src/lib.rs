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
mod catalogs;
mod chain;
mod condition;
mod difference;
mod digest;
mod erasure;
mod excuse;
mod finding;
mod form;
mod holder;
mod horizon;
mod inclusion;
mod leaf;
mod outside;
mod record;
mod refused;
mod retire;
mod retirement;
mod row;
mod seal;
mod sealer;
mod time;
mod trail;
pub mod tree;
mod verify;
mod voucher;

pub use condition::condition;
pub use difference::Difference;
pub use digest::Digest;
pub use erasure::{
    ErasureStatement, MAX_STATED, leaves_of_events, record_erasure, state_erasure, statements_of,
    subject_leaf,
};
pub use excuse::{AuditRow, Excuse};
pub use finding::{ErasedRows, Finding, Report};
pub use holder::Holder;
pub use horizon::{Cause, HELD_AFTER, HeldBack, held_back};
pub use inclusion::{Inclusion, SealHeader, fault_of_seal, inclusion};
pub use leaf::{Leaf, Source};
pub use retire::{Keep, RetiredRows, due_rows, retire};
pub use seal::{Seal, Statement};
pub use sealer::{MAX_LEAVES, seal_all};
pub use trail::{TrailEntry, trail};
pub use verify::{Accepted, verify};
pub use voucher::{Vouch, Voucher, hash_of_roots};

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
    /// The receipts of erasures cannot be read.
    #[error("the receipts of erasures: {problem}")]
    Receipts {
        /// Why.
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
    /// The database would not show what it stores.
    #[error(
        "nothing is sealed, because the database does not show what it stores: {}; undo this, and then run `memfleet audit \
         verify`", .faults.join("; ")
    )]
    Form {
        /// What is not as the migrations made it.
        faults: Vec<String>,
    },
    /// Verification finds that the trail or its seals differ.
    #[error(
        "nothing is retired, because the trail is not as it was sealed, and its rows are the evidence: {findings}; see `memfleet audit \
         verify`"
    )]
    Differs {
        /// The first finding.
        findings: String,
    },
    /// The seals of the database are not those that were anchored, or are not genuine.
    #[error(
        "nothing is sealed, because seal {seal} is wrong: {problem}; `memfleet audit verify` shows what differs"
    )]
    Refused {
        /// The number of the seal.
        seal: i64,
        /// What is wrong with it.
        problem: String,
    },
    /// The database took the seal without an error and did not store it.
    #[error("nothing is sealed: the database did not store seal {seal}, and gave no error")]
    NotStored {
        /// The number of the seal.
        seal: i64,
    },
    /// The database took the statement of a retirement without an error and did not store it.
    #[error("nothing is retired: the database did not store retirement {retirement}, and gave no error")]
    NotStated {
        /// The number of the retirement.
        retirement: i64,
    },
    /// Another session keeps a table of the trail locked.
    #[error(
        "the trail cannot be read: a table of it is locked for more than 10 s, and these lock tables of the database: {}; end \
         who should not with pg_terminate_backend", holder::line(.holders)
    )]
    Blocked {
        /// Who has such a lock, at most ten.
        holders: Vec<Holder>,
    },
    /// Another session has the lock of the sealers for longer than the writing of a seal takes.
    #[error(
        "nothing is sealed: the lock of the sealers is taken for more than 10 s by {}; if this is no sealer, end it with \
         pg_terminate_backend", holder::line(.holders)
    )]
    Locked {
        /// Who has it.
        holders: Vec<Holder>,
    },
}

impl AuditError {
    fn other_anchor(seal: i64) -> Self {
        Self::Refused { seal, problem: "NATS has an anchor of another seal with this number".to_owned() }
    }
}

impl From<diesel::result::Error> for AuditError {
    fn from(error: diesel::result::Error) -> Self {
        Self::Database(error.into())
    }
}
