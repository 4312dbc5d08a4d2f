//! What the program prints. Whoever reads it may be gone before the end, as `head` is after its lines; what was asked
//! for is done all the same, and nobody is told of lines that nobody reads.

use std::fmt::Arguments;
use std::io::{Write, stderr, stdout};

/// Writes to standard output.
pub fn out(text: Arguments<'_>) {
    let _ = stdout().write_fmt(text);
}

/// Writes to standard error.
pub fn err(text: Arguments<'_>) {
    let _ = stderr().write_fmt(text);
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
