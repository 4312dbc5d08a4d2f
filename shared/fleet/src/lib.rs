//! Runs several workers in one process, with HTTP health endpoints the sealing of the audit trail, and the erasure of persons.

mod fleet;
pub mod health;
pub mod privacy;
pub mod sealer;

pub use fleet::{Fleet, FleetError, WorkerName};
