//! The path of a message from the stream to its acknowledgement.
//!
//! ```text
//! pull ─▶ decode ─▶ authorize ─▶ write ─▶ settle
//! batch   malformed  refused      one       ack · nak(delay) · dead letter + term
//!         ─▶ dead    ─▶ dead      transaction
//! ```
//!
//! [`run`] drives one [`Worker`]. One task pulls, into queues; several lanes share the rest of the work. In each lane of small
//! messages one task decodes and authorizes the next batch while a second writes the current one and a third settles the
//! previous one. The queues are bounded and the channels between the tasks hold one batch each; that is the only back-pressure.
//!
//! A message is acknowledged only after its transaction has committed, by construction: `settle` takes a
//! [`Settlement`](stages::write::Settlement), and only `write` creates one.
//!
//! - [`stages`]: one file per stage.
//! - [`delivery`]: what the stages share: extending `ack_wait`, rate limits, retries, publishing, dead letters.
//! - [`process`]: start, stop, connections, readiness, counters.

pub mod delivery;
pub mod process;
pub mod query;
mod reason;
mod request_or_tick;
pub mod stages;
pub mod worker;

pub use broker;
pub use process::blocked::BlockedReport;
pub use process::pipeline::{Observed, run};
pub use process::readiness::{Dependency, Phase, ProbeResults, Readiness, ReadinessReport};
pub use process::run_error::RunError;
pub use process::start::check_database;
pub use process::startup_deadline::{NotReady, StartupDeadline};
pub use process::stats::{Stats, StatsReport};
pub use process::{readiness, trust_refresh};
pub use reason::Reason;
pub use request_or_tick::{Job, RequestOrTick};
pub use stages::authorize;
pub use worker::{
    Ended, EventDraft, ExternalWorker, Message, Retry, Source, Verdict, WorkItem, Worker, Written,
};
