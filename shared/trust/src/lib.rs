//! Who may act for whom.
//!
//! A [`Grant`] says that a database role may act for a user until a moment. It is sealed with a key that an issuer and
//! PostgreSQL hold. Workers only carry grants: `sec.open_context` in the database checks each of them and opens the
//! security context of a transaction, without which no role sees or writes a row of any user.

mod grant;
pub mod text;

pub use grant::{Grant, GrantKey, KeyError, role_of};
