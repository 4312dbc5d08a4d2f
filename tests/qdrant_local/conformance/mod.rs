//! The behaviour that this program shares with a Qdrant server (1.16 or newer), tested through qdrant-client.
//!
//! If QDRANT_URL is set, the tests run against that server.

mod aliases;
mod collections;
mod filters;
mod indexing;
mod points;
mod queries;
