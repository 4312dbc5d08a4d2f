//! PostgreSQL: pools, migrations, the inbox, the blackboard, and what its errors mean.
//!
//! A worker's SQL lives in the worker's own `store.rs`; what every worker's transaction needs is here.
//! Nothing here knows about messages.

pub mod blackboard;
pub mod clock;
pub mod fault;
pub mod inbox;
pub mod migration;
pub mod partition;
pub mod pool;
pub mod registry;
pub mod schema;
pub mod security;
mod statement;
pub mod unnest;
pub mod vector;

pub use diesel_async::AsyncPgConnection as Connection;
pub use fault::{Fault, FaultKind};
pub use pool::{Pool, PoolError, PoolOptions, acquire, cancel, connect, discard, open_pool};
pub use statement::prepared;
