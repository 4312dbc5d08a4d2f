//! The erasure of a person from all stores, and its proof; the export of all that is stored of a person ([`access`]), and
//! the correction of what is wrong ([`rectify`]).
//!
//! An erasure is a row of `privacy_requests` that goes through [`Step`]s. The first fences the person: from its commit on, no context
//! opens for the person in either database, and none that was open goes on. The next waits until whatever ran before has ended
//! ([`fence`]). Then each step empties one store. Every step can be repeated, and is, if the process ends within it.
//!
//! [`catalogue`] is the one list of where a person's data are. A table that is missing there fails the tests.
//!
//! What services have requested for a person is in the same table: restrictions and exports are carried out beside the erasures (`pending`), and
//! an operator decides about each [`rectify`].
//!
//! The [`restriction`] of a person is no step: the data stay, and no role reads or writes them until it is lifted.
//!
//! What remains is a tombstone, by which the database knows the id again and refuses it for ever; a signed list of the events that may
//! be missing, without which `memfleet audit verify` would report them; and a signed receipt with the counts ([`receipt`]).

pub mod access;
pub mod aftercare;
pub mod archives;
mod blockers;
pub mod catalogue;
pub mod crash;
mod error;
pub mod fence;
pub mod keys;
mod pass;
pub mod pending;
mod person;
pub mod process;
pub mod reapply;
pub mod receipt;
pub mod rectify;
pub mod reject;
pub mod request;
pub mod restriction;
pub mod rows;
pub mod statistics;
mod step;
mod stores;
pub mod streams;
pub mod vectors;
pub mod verify;
mod vouch;

pub use error::{PrivacyError, Store};
pub use pending::Carried;
pub use step::{Advance, Claimed, Hold, Progress, Removal, Step};
pub use vouch::Receipts;
