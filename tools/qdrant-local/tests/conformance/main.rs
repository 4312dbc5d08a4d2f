//! The behaviour that this program shares with a Qdrant server (1.16 or newer), tested through qdrant-client.
//!
//! If QDRANT_URL is set, the tests run against that server.

#![allow(clippy::unwrap_used, clippy::expect_used)]

#[path = "../common/mod.rs"]
mod common;

mod aliases;
mod collections;
mod filters;
mod indexing;
mod points;
mod queries;
