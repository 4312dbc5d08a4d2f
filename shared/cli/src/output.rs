//! Output of commands. Failed writes are ignored: a command completes even if its reader, such as `head`, has exited.

use std::fmt::{Arguments, Display};
use std::future::Future;
use std::io::{Write, stderr, stdout};
use std::time::Instant;

pub use contract::printable;
use contract::{printable_json, printable_lines};

use crate::errln;

/// Writes text to standard output. Characters that a terminal does not show as they are [are
/// escaped](contract::printable_lines), except line feeds: a value from outside that belongs on one line needs
/// [`printable`] too.
pub fn out(text: Arguments<'_>) {
    let _ = stdout().write_all(printable_lines(&text.to_string()).as_bytes());
}

/// Writes JSON to standard output, on a line or lines of its own. The same characters are escaped as JSON escapes them.
pub fn out_json(json: impl Display) {
    let _ = stdout().write_all(format!("{}\n", printable_json(&json.to_string())).as_bytes());
}

/// Writes text to standard error, as [`out`] does.
pub fn err(text: Arguments<'_>) {
    let _ = stderr().write_all(printable_lines(&text.to_string()).as_bytes());
}

/// Runs a step, and prints its description and duration on standard error.
///
/// # Errors
/// The error of the step.
pub async fn step<T>(description: &str, work: impl Future<Output = anyhow::Result<T>>) -> anyhow::Result<T> {
    err(format_args!("{description} … "));
    let began = Instant::now();
    let done = work.await;
    let seconds = began.elapsed().as_secs_f64();
    match &done {
        Ok(_) => errln!("{seconds:.1} s"),
        Err(_) => errln!("failed after {seconds:.1} s"),
    }
    done
}

/// Prints to standard output.
#[macro_export]
macro_rules! out {
    ($($text:tt)*) => { $crate::output::out(format_args!($($text)*)) };
}

/// Prints a line to standard output.
#[macro_export]
macro_rules! outln {
    () => { $crate::output::out(format_args!("\n")) };
    ($($text:tt)*) => { $crate::output::out(format_args!("{}\n", format_args!($($text)*))) };
}

/// Prints a line to standard error.
#[macro_export]
macro_rules! errln {
    ($($text:tt)*) => { $crate::output::err(format_args!("{}\n", format_args!($($text)*))) };
}
