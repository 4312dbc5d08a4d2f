//! Runs several workers in one process, with HTTP health endpoints and the sealing of the audit trail.

mod fleet;
pub mod health;
pub mod sealer;

pub use fleet::{Fleet, FleetError, WorkerName};
