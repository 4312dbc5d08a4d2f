//! Who may act for whom.
//!
//! A service publishes with a [`Token`], signed by an issuer, that says what it may do for which user. It carries grants.
//!
//! A [`Grant`] says that a database role may act for a user until a moment. It is sealed with a key that an issuer and
//! PostgreSQL hold. Workers only carry grants: `sec.open_context` in the database checks each of them and opens the
//! security context of a transaction, without which no role sees or writes a row of any user.
//!
//! A [`CipherKey`] encrypts what must not be read without it; a [`KeyRing`] is a file of them.

mod cipher;
mod grant;
mod issuer;
mod key;
mod refusal;
mod ring;
mod scope;
pub mod text;
mod token;

pub use cipher::{Bound, CipherError, CipherKey, OVERHEAD, PLAINTEXT_BYTES, key_version};
pub use contract::role_of;
pub use grant::{Grant, GrantKey};
pub use issuer::{GRANT_OUTLIVES_TOKEN, IssueError, Issued, TokenIssuer, TokenRequest};
pub use key::{PrivateKey, PublicKey};
pub use refusal::Refusal;
pub use ring::{KeyRing, RingFile, is_ring_name, key_id, parse_key_id};
pub use scope::{SCOPES, Scope, ScopeError};
pub use text::KeyError;
pub use token::{LONGEST_LIFE, TOKEN_BYTES, Token, verify};
