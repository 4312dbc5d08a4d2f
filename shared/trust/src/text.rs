//! Keys as text: their files, their names and their digits.

use std::path::Path;

/// A key that cannot be used. Nothing of its text is repeated.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    /// The file cannot be read.
    #[error("the key file {path} cannot be read: {problem}")]
    Unreadable {
        /// The file.
        path: String,
        /// What the system says.
        problem: String,
    },
    /// It does not hold a key of grants.
    #[error(
        "a key of grants is `<name> <64 to 128 hex digits>`, the name of 1 to 32 out of a-z 0-9 -; this is none"
    )]
    Grant,
    /// It does not hold a key of this sort that signs.
    #[error(
        "a key that signs is `<name> private|public <64 hex digits>`, the name of 1 to 32 out of a-z 0-9 -; {0} is needed here"
    )]
    Signing(&'static str),
    /// It holds no ring of keys that encrypt.
    #[error(
        "a key ring has lines `<name>.<version> <64 hex digits>`, the name of 1 to 64 out of a-z 0-9 -, no version of a name twice; line {0} is none"
    )]
    Ring(usize),
}

/// What a key's file holds.
pub(crate) fn content(path: &Path) -> Result<String, KeyError> {
    std::fs::read_to_string(path).map_err(|error| KeyError::Unreadable {
        path: path.display().to_string(),
        problem: error.to_string(),
    })
}

/// The most characters a key's name has.
const NAME_CHARS: usize = 32;

/// Whether it is a name of a key: 1 to 32 of `a-z 0-9 -`.
pub fn is_key_name(name: &str) -> bool {
    let allowed = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    (1..=NAME_CHARS).contains(&name.len()) && name.bytes().all(allowed)
}

/// Hex digits in lower case.
pub fn to_hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The bytes of pairs of hex digits. None if they are none.
pub fn from_hex(digits: &str) -> Option<Vec<u8>> {
    if !digits.is_ascii() || !digits.len().is_multiple_of(2) {
        return None;
    }
    (0..digits.len()).step_by(2).map(|at| u8::from_str_radix(digits.get(at..at + 2)?, 16).ok()).collect()
}
