//! Service tokens, database grants and encryption keys.
//!
//! A service publishes with a [`Token`], signed by a [`TokenIssuer`], that states what the service may do for which
//! user. The token contains grants.
//!
//! A [`Grant`] allows a database role to act for a user until it expires. It is authenticated with a key that only the
//! issuer and PostgreSQL have. Workers pass grants on: `sec.open_context` in the database verifies each one and opens
//! the security context of the transaction, without which row-level security hides every user's rows.
//!
//! A [`CipherKey`] encrypts fields, data keys and payloads; a [`KeyRing`] is a file of such keys.

mod cipher;
mod grant;
mod issuer;
mod key;
mod refusal;
mod ring;
mod scope;
pub mod text;
mod token;

pub use cipher::{
    AssociatedData, CIPHERTEXT_OVERHEAD, CipherError, CipherKey, MAX_PLAINTEXT_BYTES, key_version,
};
pub use contract::worker_role;
pub use grant::{Grant, GrantKey};
pub use issuer::{GRANT_OUTLIVES_TOKEN, IssueError, IssuedToken, TokenIssuer, TokenRequest};
pub use key::{PrivateKey, PublicKey};
pub use refusal::Refusal;
pub use ring::{KeyRing, RingFile, is_ring_name, key_id, parse_key_id};
pub use scope::{MAX_SCOPES, Scope, ScopeError};
pub use text::KeyError;
pub use token::{MAX_TOKEN_BYTES, MAX_TOKEN_LIFETIME, Token, verify};
