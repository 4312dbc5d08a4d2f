use std::fmt;

/// A store that an erasure or an export works on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Store {
    /// The main database.
    Database,
    /// The database of data keys.
    KeyStore,
    /// The broker and its streams.
    Broker,
    /// The vector store.
    Vectors,
    /// The archive target.
    Archives,
    /// The folder or bucket of receipts.
    Receipts,
}

impl fmt::Display for Store {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Database => "the main database",
            Self::KeyStore => "the key store",
            Self::Broker => "the broker",
            Self::Vectors => "the vector store",
            Self::Archives => "the archive target",
            Self::Receipts => "the target of receipts",
        })
    }
}

/// A step of an erasure, or an export, did not come to its end. A step is tried again. No message has a value of a row.
#[derive(Debug, thiserror::Error)]
pub enum PrivacyError {
    /// A store cannot be reached, or is not configured although data of the person may be there.
    #[error("{store} cannot be reached: {reason}")]
    Away {
        /// The store.
        store: Store,
        /// Why.
        reason: String,
    },
    /// What was counted before a deletion is not what was deleted.
    #[error(
        "{table}: {deleted} of {before} rows were deleted, and {left} are left; the erasure does not go on"
    )]
    Left {
        /// The table or store.
        table: String,
        /// The number before.
        before: u64,
        /// The number deleted.
        deleted: u64,
        /// The number left.
        left: u64,
    },
    /// The request cannot be made or is not in a state that allows it. The message says why and what to do.
    #[error("{0}")]
    Refused(String),
    /// A receipt or another signed document is not genuine.
    #[error("{0}")]
    NotGenuine(String),
    /// The settings lack something.
    #[error("{0}")]
    Settings(String),
    /// A file of an export cannot be read or written.
    #[error("cannot {action} {path}: {problem}")]
    File {
        /// What was to be done, as a verb.
        action: &'static str,
        /// The path.
        path: String,
        /// Why.
        problem: String,
    },
    /// The main database or the key store returned an error.
    #[error("the database: {0}")]
    Database(#[from] store::Fault),
    /// A database cannot be connected to.
    #[error("the database cannot be reached: {0}")]
    Connection(#[from] store::PoolError),
    /// The audit trail.
    #[error(transparent)]
    Audit(#[from] audit::AuditError),
    /// An archive.
    #[error(transparent)]
    Archive(#[from] archive::ArchiveError),
    /// The vector store.
    #[error(transparent)]
    Vectors(#[from] vectors::VectorError),
    /// The data keys.
    #[error(transparent)]
    Keys(#[from] ::keys::KeyError),
}

impl From<diesel::result::Error> for PrivacyError {
    fn from(error: diesel::result::Error) -> Self {
        Self::Database(error.into())
    }
}
