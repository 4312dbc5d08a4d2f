//! What the stages share: extending `ack_wait`, rate limits, retries, publishing, dead letters.

pub(crate) mod accounts;
pub(crate) mod awaited;
pub mod dead_letter;
pub(crate) mod event_order;
pub(crate) mod event_publisher;
pub(crate) mod in_flight;
pub(crate) mod rate;
pub mod retry;
pub(crate) mod share;
pub(crate) mod summary;
pub(crate) mod undeliverable;
pub(crate) mod watermarks;
