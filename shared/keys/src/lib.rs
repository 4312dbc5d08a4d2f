//! Field encryption: what must not be read by whoever holds the database.
//!
//! A field that is a secret, or that a message marks `sensitive`, is encrypted under its user's *data key*
//! ([`trust::CipherKey`]). The ciphertext is in `encrypted_fields` of the main database, and the field itself holds a marker.
//! Data keys are in another database, the *key store*, wrapped by a *key-encryption key* that is in neither: in a file, in
//! Vault, or in AWS KMS ([`Provider`]).
//!
//! ```text
//! key-encryption key  --wraps-->  data key of a user  --encrypts-->  field
//! file, Vault, KMS                key store                          main database
//! ```
//!
//! So a copy of the main database shows no such field, a copy of the key store shows nothing at all, and a user whose data
//! keys are destroyed is unreadable in every backup.

mod field;
#[cfg(any(feature = "vault", feature = "aws-kms"))]
mod http;
mod key_cache;
mod key_store;
#[cfg(feature = "aws-kms")]
mod kms;
mod provider;
mod rotate;
mod schema;
#[cfg(feature = "aws-kms")]
mod sigv4;
#[cfg(feature = "vault")]
mod vault;

use diesel_migrations::{EmbeddedMigrations, embed_migrations};
use store::migration::Schema;

pub use field::{Encrypted, Field, conceal, load, seal, write};
pub use key_cache::{DataKeys, Keys};
pub use provider::KEK;
pub use rotate::{Census, Renewed, census, check_operator, reencrypt, renew, rewrap};

const MIGRATIONS: EmbeddedMigrations = embed_migrations!("migrations");

/// The key store's schema.
pub const SCHEMA: Schema = Schema::new(|| MIGRATIONS);

/// Keys cannot be had now.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    /// The key store cannot be reached, or refuses.
    #[error("the key store: {0}")]
    Store(String),
    /// The main database cannot be reached, or refuses.
    #[error("the main database: {0}")]
    Main(String),
    /// Who wraps keys cannot be reached, refuses, or lacks a key.
    #[error("the key provider: {0}")]
    Provider(String),
    /// The configuration names no provider that can be used.
    #[error("{0}")]
    Settings(String),
}

impl From<store::Fault> for KeyError {
    fn from(fault: store::Fault) -> Self {
        Self::Store(fault.reason)
    }
}

impl From<store::PoolError> for KeyError {
    fn from(error: store::PoolError) -> Self {
        Self::Store(error.to_string())
    }
}
