//! What a Qdrant server (1.16 or newer) does and this one too: asked through qdrant-client.
//!
//! With QDRANT_URL set, the same is asked of the server there.

#![allow(clippy::unwrap_used, clippy::expect_used)]

#[path = "../common/mod.rs"]
mod common;

mod aliases;
mod collections;
mod filters;
mod indexing;
mod points;
mod queries;
