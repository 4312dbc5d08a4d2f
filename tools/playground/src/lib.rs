//! The whole system on one machine: private servers with schema and streams, workers in this process, and recorded
//! dialogues to publish. Contains the commands `demo`, `dev` and `load` of the feature `dev`.

#![warn(clippy::print_stdout, clippy::print_stderr)]

pub mod demo;
mod demo_experts;
mod demo_search;
pub mod dev;
pub mod dialogue;
pub mod ingest;
pub mod load;
mod local;
mod private_fleet;

pub use local::Local;
pub use private_fleet::PrivateFleet;

/// The path of this program, to print in suggested commands.
fn this_program() -> String {
    std::env::current_exe().map_or_else(|_| "memfleet".to_owned(), |path| path.display().to_string())
}
