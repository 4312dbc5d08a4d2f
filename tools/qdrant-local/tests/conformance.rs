//! The behaviour that this program shares with a Qdrant server (1.16 or newer), tested through qdrant-client.
//!
//! If QDRANT_URL is set, the tests run against that server.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

#[path = "conformance/aliases.rs"]
mod aliases;
#[path = "conformance/collections.rs"]
mod collections;
#[path = "conformance/filters.rs"]
mod filters;
#[path = "conformance/indexing.rs"]
mod indexing;
#[path = "conformance/points.rs"]
mod points;
#[path = "conformance/queries.rs"]
mod queries;
