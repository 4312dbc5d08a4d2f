//! The worker's SQL.

pub(crate) mod policies;
pub(crate) mod progress;
pub(crate) mod steps;
pub(crate) mod sweep;
