//! The one program. Every command is a file under `command`; what several of them need is beside it.

pub mod asyncapi;
pub mod carry;
pub mod cli;
pub mod command;
pub mod dialogue;
pub mod fleet;
pub mod local;
pub mod logging;
pub mod publisher;
pub mod table;
