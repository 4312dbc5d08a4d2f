//! Everything on one machine: private servers that are migrated and have their streams, the workers in this process, and
//! recorded dialogues to publish. Commands of the program behind its feature `dev`.

#![warn(clippy::print_stdout, clippy::print_stderr)]

pub mod demo;
mod demo_search;
pub mod dev;
pub mod dialogue;
pub mod ingest;
pub mod load;
mod local;
mod private_fleet;

pub use local::Local;
pub use private_fleet::PrivateFleet;

/// What to type to run this program again.
fn this_program() -> String {
    std::env::current_exe().map_or_else(|_| "memfleet".to_owned(), |path| path.display().to_string())
}
