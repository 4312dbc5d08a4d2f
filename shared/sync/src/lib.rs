//! One session's memory carried into another, without losing either: the arithmetic.
//!
//! A session is a replica of the user's memory, and PostgreSQL holds all of them. A put brings a whole JSON value; which parts of it
//! are new is found by comparing it with the ancestor that the last sync left ([`KeyState`]). From there on:
//!
//! 1. [`KeyState::join`] unites the writes that two sessions know, less those that either knows to be replaced. It is
//!    associative, commutative and idempotent, so the order, the batches and the repetition of syncs have no influence;
//! 2. the value of a state is a function of its set of writes: disjoint parts merge, the same part goes by the key's rule
//!    ([`Rules`]), and what loses is on record ([`Conflict`]);
//! 3. [`Sync::plan`] says what is written to the target, what must be kept in the source, and which keys fail, each by itself;
//! 4. [`Undo::plan`] takes a sync back where nothing depends on it; [`forgettable`] says when a removal has been seen by all.
//!
//! Nothing here reads a clock, a database or the network.

mod absorb;
mod cell;
mod clock;
mod conflict;
mod filter;
mod forget;
mod json;
mod key;
mod merge;
mod node;
mod overlay;
mod plan;
mod resolve;
mod rules;
mod share;
mod state;
mod text;
mod undo;
mod vector;

pub use cell::Cell;
pub use clock::{moment, runs_ahead, tick};
pub use conflict::{Candidate, Cause, Conflict, Dispute, Step, Unmergeable};
pub use filter::{Filter, Scope, Stays, crosses};
pub use forget::{Holder, forgettable};
pub use json::{Json, JsonError};
pub use key::{Attributes, Key};
pub use plan::{Effect, Failure, Memory, NotRead, Plan, Sync, Write, round};
pub use rules::{Deletion, Limits, Merging, Rule, Rules, RulesError, RulesId};
pub use share::{Knowledge, Share, Withheld, share};
pub use state::KeyState;
pub use undo::{Applied, Dependent, Later, Undo};
pub use vector::{Relation, Session, Stamp, Vector};
