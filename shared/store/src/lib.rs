//! PostgreSQL: connection pools, migrations, the inbox, the blackboard, and the classification of errors.
//!
//! A worker's own statements are in its `store` module; this crate contains what the transactions of all workers share.
//! It is independent of the requests.

pub mod blackboard;
pub mod builtin;
pub mod catalog;
pub mod clock;
pub mod fault;
pub mod inbox;
pub mod job_grants;
pub mod job_runs;
pub mod language;
pub mod lock;
pub mod migration;
pub mod partition;
pub mod pool;
pub mod recovery;
pub mod registry;
pub mod schema;
pub mod security;
pub mod server;
mod statement;
pub mod unnest;
pub mod unpublished;
pub mod vector;

pub use diesel_async::AsyncPgConnection as Connection;
pub use fault::{Fault, FaultKind};
pub use lock::LockWait;
pub use pool::{
    Pool, PoolError, PoolOptions, acquire, cancel, connect, discard, discard_if_unusable, open_pool,
};
pub use statement::prepared;
