//! Helpers shared by the commands of the program. Commands report errors to a person, so these functions return
//! [`anyhow::Error`].

#![warn(clippy::print_stdout, clippy::print_stderr)]

pub mod confirm;
pub mod database;
pub mod json;
pub mod key_file;
pub mod message_ids;
pub mod output;
pub mod services;
pub mod signal;
pub mod table;
pub mod tokens;
