//! What the commands of the program share. A command reports its errors to a person, so that these functions return
//! [`anyhow::Error`] as commands do.

#![warn(clippy::print_stdout, clippy::print_stderr)]

pub mod key_file;
pub mod output;
pub mod services;
pub mod signal;
pub mod table;
pub mod tokens;
