//! The worker's SQL.

pub(crate) mod archive;
pub(crate) mod policies;
mod privacy;
pub(crate) mod progress;
mod removal;
pub(crate) mod steps;
pub(crate) mod sweep;
