//! What a Qdrant server (1.16 or newer) does and this one too: asked through qdrant-client.
//!
//! With QDRANT_URL set, the same is asked of the server there.

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
