//! Confirmation before something is destroyed.

use std::io::{BufRead, IsTerminal, Read, stdin};

use anyhow::{Context, ensure};

use crate::output;

/// Maximum length of an answer, in bytes.
const ANSWER_BYTES: u64 = 64;

/// Continues if the user has confirmed with `--yes`, or confirms now at the terminal. `consequence` is a sentence that
/// says what would be destroyed, without its end, such as "this deletes dead letter 17 permanently".
///
/// # Errors
/// If standard input is not a terminal, with the advice to add `--yes`, or if the user does not confirm.
pub fn confirm(consequence: &str, yes: bool) -> anyhow::Result<()> {
    if yes {
        return Ok(());
    }
    ensure!(stdin().is_terminal(), "{consequence}; add --yes to confirm");
    output::err(format_args!("{consequence}. Continue? [y/N] "));
    let is_confirmed = answer(&mut stdin().lock()).context("cannot read the answer")?;
    ensure!(is_confirmed, "not confirmed; nothing was changed");
    Ok(())
}

/// Whether a line says yes.
fn answer(input: &mut impl BufRead) -> std::io::Result<bool> {
    let mut line = Vec::new();
    input.take(ANSWER_BYTES).read_until(b'\n', &mut line)?;
    let word = line.trim_ascii().to_ascii_lowercase();
    Ok(matches!(word.as_slice(), b"y" | b"yes"))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn only_yes_confirms() {
        for yes in ["y\n", "Y\n", "yes\n", " YES \r\n", "y"] {
            assert!(answer(&mut yes.as_bytes()).unwrap(), "{yes:?}");
        }
        let long = "y".repeat(1_000);
        for no in ["", "\n", "n\n", "no\n", "yess\n", "\ny\n", "yes please\n", "\u{1b}y\n", &long] {
            assert!(!answer(&mut no.as_bytes()).unwrap(), "{no:?}");
        }
    }
}
