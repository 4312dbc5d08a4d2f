//! The one program. Every command is a file under `command`; what several of them need is beside it.

#![warn(clippy::print_stdout, clippy::print_stderr)]

pub mod asyncapi;
pub mod carry;
pub mod cli;
pub mod collection;
pub mod command;
pub mod dialogue;
pub mod fleet;
pub mod health;
pub mod local;
pub mod logging;
pub mod output;
pub mod payloads;
pub mod publisher;
pub mod replay;
pub mod table;
pub mod tokens;
