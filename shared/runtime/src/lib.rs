//! The way of a message, one file per stage.
//!
//! ```text
//! pull ─▶ decode ─▶ authorise ─▶ write ─▶ settle
//! batch   malformed  refused     one       ack · nak(delay) · dead letter + term
//!         ─▶ dead    ─▶ dead     transaction
//! ```
//!
//! [`run`] drives one [`Worker`] along it. Three tasks share the way: one pulls, decodes and authorises the next
//! batch while a second writes the current one and a third settles the one before. Channels between them hold one
//! batch each, which is all the back-pressure there is.
//!
//! A message is acknowledged only after its transaction has committed, by construction: `settle` takes a
//! [`write::Settlement`], and only `write` can make one that says so.

mod advisory;
pub mod ask;
pub mod authorise;
pub mod broker;
mod crash;
pub mod dead;
pub mod decode;
mod held;
mod outlet;
mod patience;
mod pipeline;
mod published;
pub mod pull;
mod rate;
pub mod readiness;
pub mod retry;
pub mod settings;
pub mod settle;
mod start;
pub mod stats;
mod transact;
pub mod watch;
pub mod worker;
pub mod write;

pub use patience::{NotReady, Patience};
pub use pipeline::{Observed, RunError, run};
pub use readiness::{Dependency, Looked, Phase, Readiness, ReadinessReport};
pub use settings::{Settings, SettingsError};
pub use start::check_database;
pub use stats::{Stats, StatsReport};
pub use worker::{Effect, Ended, FollowUp, Message, Payload, Verdict, Worker};
