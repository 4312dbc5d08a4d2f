//! The program `memfleet`. Each command is a module of `command`; what they share is in the crate `cli`.

#![warn(clippy::print_stdout, clippy::print_stderr)]

pub mod arguments;
pub mod command;
pub mod dispatch;
pub mod dossiers;
pub mod logging;
pub mod replay;
mod replay_retention;
mod replay_sync;
mod server_warnings;
mod visibility;
