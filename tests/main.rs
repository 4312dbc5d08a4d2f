//! Tests of the whole fleet, on real servers.
//!
//! They are one program, so that it is linked once and all share one harness, [`support`]. A test may run beside any
//! other one as a thread of the same process: none changes what belongs to the process, such as its environment.

#![allow(clippy::expect_used, clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

mod added_rows;
mod anchors;
mod asyncapi;
mod attack;
mod audit;
mod bench;
mod chaos;
mod cli;
mod client_library;
mod cluster;
mod configuration;
mod consensus_close;
mod consensus_crash;
mod consensus_explain;
mod consensus_jobs;
mod consensus_queries;
mod consensus_requests;
mod consensus_texts;
mod context_writer;
mod crash;
mod delivery;
mod deployment;
mod dialogue;
mod encryption;
mod event_order;
mod failover;
mod fairness;
mod false_evidence;
mod full_streams;
mod grants;
mod heavy;
mod held_back;
mod isolation;
mod job_grants;
mod kept_servers;
mod key_isolation;
mod limits;
mod live;
mod load;
mod locks;
mod message_order;
mod migration;
mod permissions;
mod publisher;
mod qdrant_local;
mod queries;
mod query_bounds;
mod readiness;
mod refusal;
mod registry;
mod replay;
mod resilience;
mod revocation;
mod rotation;
mod router_logger;
mod schema;
mod schema_file;
mod seal;
mod search;
mod subjects;
mod terminal;
mod trust;
mod unreadable;
mod vector_embedding;
mod vector_faults;
mod vector_indexer;
mod vector_owner;
mod verifier;
mod worker_contract;
mod worker_privileges;
