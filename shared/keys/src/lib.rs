//! Field encryption, with data keys that are stored apart from the data.
//!
//! A field that is a secret, or that a message marks `sensitive`, is encrypted with the *data key* of its user
//! ([`trust::CipherKey`]). The ciphertext is stored in `encrypted_fields` of the main database, and the field itself
//! contains a marker. Data keys are stored in another database, the *key store*, wrapped by a *key-encryption key*
//! (KEK) that is in neither database: it is in a file, in Vault or in AWS KMS ([`Provider`]).
//!
//! ```text
//! key-encryption key  --wraps-->  data key of a user  --encrypts-->  field
//! file, Vault, KMS                key store                          main database
//! ```
//!
//! The key store isolates users as the main database does: a worker reaches the data keys of the users whose grants it
//! presents ([`Grants`]).
//!
//! A copy of the main database therefore reveals no encrypted field, a copy of the key store reveals nothing, and
//! deleting the data keys of a user makes the encrypted fields of the user unreadable in every backup.

mod data_key;
mod destroy;
mod field;
#[cfg(any(feature = "vault", feature = "aws-kms"))]
mod http;
mod key_cache;
mod key_store;
#[cfg(feature = "aws-kms")]
mod kms;
mod provider;
mod revocations;
mod rotate;
mod schema;
#[cfg(feature = "aws-kms")]
mod sigv4;
#[cfg(feature = "vault")]
mod vault;

use diesel_migrations::{EmbeddedMigrations, embed_migrations};
use store::FaultKind;
use store::catalog::Catalog;
use store::migration::Schema;

pub use data_key::DataKeys;
pub use destroy::{count, destroy, user_ids};
pub use field::{Encrypted, Field, encrypt_fields, load_fields};
pub use key_cache::{Keys, OpenKeys};
pub use key_store::Grants;
pub use provider::KEK;
pub use revocations::{Difference, difference, sync};
pub use rotate::{
    KekUsage, RotationReport, added_later, check_bypasses_rls, has_data_key, kek_usage, reencrypt, rewrap,
    rotate_data_keys,
};

const MIGRATIONS: EmbeddedMigrations = embed_migrations!("migrations");

/// The key store's schema.
pub const SCHEMA: Schema = Schema::new(|| MIGRATIONS);

/// What the migrations of the key store make. The roles of workers that have no data keys do not count, though they may be there:
/// they belong to the server, which may be that of the main database.
pub const CATALOG: Catalog = Catalog {
    expected: include_str!("catalog.txt"),
    roles: "SELECT r.rolname FROM pg_roles r WHERE r.rolname IN ('memfleet_owner', 'memfleet_watch') UNION
        SELECT r.rolname FROM pg_database d, aclexplode(d.datacl) AS a JOIN pg_roles r ON r.oid = a.grantee
        WHERE d.datname = current_database() AND a.privilege_type = 'CONNECT' AND r.rolname LIKE 'w\\_%'",
    own_lines: "SELECT NULL WHERE false",
};

/// Why keys are not available.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    /// The key store is unreachable or returned an error.
    #[error("the key store: {0}")]
    Store(String),
    /// The key store refuses a grant, or a key under it.
    #[error("the key store: {0}")]
    Denied(String),
    /// There are no keys for one of these users now: another transaction keeps adding one, or the user is erased.
    #[error("the key store: {0}")]
    Blocked(String),
    /// The main database is unreachable or returned an error.
    #[error("the main database: {0}")]
    Main(String),
    /// The KEK provider is unreachable, returned an error or lacks a key.
    #[error("the key provider: {0}")]
    Provider(String),
    /// The configuration is invalid.
    #[error("{0}")]
    Settings(String),
}

impl From<store::Fault> for KeyError {
    fn from(fault: store::Fault) -> Self {
        match fault.kind {
            FaultKind::Denied => Self::Denied(fault.reason),
            FaultKind::Transient
            | FaultKind::Blocked
            | FaultKind::Unavailable
            | FaultKind::ConnectionLost
            | FaultKind::MissingPrerequisite
            | FaultKind::Permanent
            // The main database says so, too, and is asked.
            | FaultKind::Erased
            | FaultKind::Fenced
            | FaultKind::Restricted { .. } => Self::Store(fault.reason),
        }
    }
}

impl From<diesel::result::Error> for KeyError {
    fn from(error: diesel::result::Error) -> Self {
        store::Fault::from(error).into()
    }
}

impl From<store::PoolError> for KeyError {
    fn from(error: store::PoolError) -> Self {
        Self::Store(error.to_string())
    }
}
