//! Real servers for tests.
//!
//! Every test has a NATS server of its own, which starts in some ten milliseconds, and a database of its own, copied
//! from a migrated template. All databases are in one PostgreSQL. `make test` starts it with the program
//! `with-servers`; otherwise each test process starts its own.
//!
//! Nothing here waits for a fixed time. [`eventually`] waits for a condition, with a deadline.

pub mod attack;
mod database;
mod fixture;
mod grant;
pub mod logs;
mod publish;
mod secrets;
pub mod token;
mod topology_changes;
mod wait;

pub use database::{
    POSTGRES_VARIABLE, PREPARED_TRANSACTIONS, create_database, create_database_on, create_key_store,
    worker_url,
};
pub use fixture::{Fixture, RunningWorker, lines_on, next};
pub use logs::LOGS_VARIABLE;
pub use publish::{RequestMessage, context, request, requests_for_all_tables, session, user};
pub use secrets::{CANARY, GRANT_KEY, KEK_RING, PAYLOAD_RING, TOKEN_KEY};
pub use topology_changes::{set_duplicate_window, set_redelivery};
pub use wait::{DEADLINE, eventually};
