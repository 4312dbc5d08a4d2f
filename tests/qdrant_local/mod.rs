//! The local vector engine: what it shares with a Qdrant server, and what is its own.

mod common;
mod conformance;
mod local;
