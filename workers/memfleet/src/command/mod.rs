//! The commands, one per module.

pub mod archive;
pub mod ask;
pub mod audit;
pub mod consensus;
pub mod contract;
pub mod dead;
pub mod keys;
pub mod maintenance;
pub mod migrate;
pub mod nats;
pub mod privacy;
pub mod publish;
pub mod recover;
pub mod replay;
pub mod retention;
mod revocations;
pub mod run;
pub mod schedule;
pub mod security;
pub mod status;
pub mod sync;
pub mod tail;
pub mod token;
pub mod vectors;
