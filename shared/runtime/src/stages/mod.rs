//! The stages of a message, in order.

pub mod authorize;
pub mod decode;
pub(crate) mod disposition;
pub mod pull;
pub mod settle;
pub(crate) mod tick_grants;
pub(crate) mod transact;
pub mod write;
