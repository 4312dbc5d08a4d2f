//! A worker as a process: start, stop, connections, readiness, counters.

pub(crate) mod blocked;
pub(crate) mod crash;
pub mod pipeline;
pub mod readiness;
pub mod run_error;
pub mod start;
pub mod startup_deadline;
pub mod stats;
pub mod trust_refresh;
pub(crate) mod wake;
