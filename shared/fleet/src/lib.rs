//! Workers by name, several of them in one process, and what runs beside them: HTTP health endpoints and the sealing of the
//! audit trail.

mod fleet;
pub mod health;
pub mod sealer;

pub use fleet::{Fleet, FleetError, WorkerName};
