//! The stages of a message, in order.

pub(crate) mod attempt;
pub mod authorize;
pub mod decode;
pub(crate) mod disposition;
pub(crate) mod fair_queue;
pub(crate) mod intake;
pub(crate) mod job_run;
pub(crate) mod parts;
pub(crate) mod prepare;
pub mod pull;
pub(crate) mod pull_requests;
pub(crate) mod queues;
pub(crate) mod refused;
pub mod settle;
pub(crate) mod tick_grants;
pub(crate) mod transact;
pub mod write;
