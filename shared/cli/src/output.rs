//! Output of commands. Failed writes are ignored: a command completes even if its reader, such as `head`, has exited.

use std::fmt::Arguments;
use std::future::Future;
use std::io::{Write, stderr, stdout};
use std::time::Instant;

use crate::errln;

/// Writes to standard output.
pub fn out(text: Arguments<'_>) {
    let _ = stdout().write_fmt(text);
}

/// Writes to standard error.
pub fn err(text: Arguments<'_>) {
    let _ = stderr().write_fmt(text);
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

/// Untrusted text with terminal control and bidirectional control characters escaped.
#[must_use]
pub fn printable(text: &str) -> String {
    let mut shown = String::with_capacity(text.len());
    for character in text.chars() {
        if is_harmless(character) {
            shown.push(character);
        } else {
            shown.extend(character.escape_unicode());
        }
    }
    shown
}

/// Whether a character is neither a control character nor one that changes the text direction.
fn is_harmless(character: char) -> bool {
    !character.is_control()
        && !matches!(character, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn control_characters_are_escaped() {
        assert_eq!(printable("a\u{1b}[2Jb\u{202e}é"), "a\\u{1b}[2Jb\\u{202e}é");
    }
}
