//! Real servers for tests.
//!
//! Every test has a database of its own, copied from a migrated template, and a NATS server of its own: a server
//! starts in a few hundredths of a second, and what it holds cannot be mistaken for another test's. The one
//! PostgreSQL that all databases live in is started by the program `with-servers`, which `make test` runs the
//! tests under, or else by each test process for itself.
//!
//! Nothing here waits for a length of time. [`eventually`] waits for a condition, with a deadline.

pub mod attack;
mod change;
mod database;
mod fixture;
pub mod logs;
mod publish;
pub mod token;
mod wait;
mod worker;

pub use change::{deliver_again_after, forget_duplicates_after};
pub use database::{
    GRANT_KEY, KEK_RING, PAYLOAD_RING, POSTGRES_VARIABLE, TOKEN_KEY, create_database, create_key_store,
};
pub use fixture::{Fixture, Running, lines_on, next};
pub use logs::LOGS_VARIABLE;
pub use publish::{CANARY, Published, context, everything_of, request, session, user};
pub use wait::{DEADLINE, eventually};
pub use worker::start_worker;
