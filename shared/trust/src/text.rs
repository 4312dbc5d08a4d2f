//! The text format of keys: files, names and hex digits.

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

/// A key that cannot be read. No message quotes the text of a key.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    /// The file cannot be read.
    #[error("the file {path} cannot be read: {problem}")]
    Unreadable {
        /// The file.
        path: String,
        /// The error of the operating system.
        problem: String,
    },
    /// Every user of the machine can read or change the file.
    #[error(
        "the file {path} holds a secret and is accessible to every user of this machine (mode {mode:03o}): run `chmod o-rwx {path}`, \
         and replace the secret if others may have read it"
    )]
    Exposed {
        /// The file.
        path: String,
        /// Its permissions.
        mode: u32,
    },
    /// The text is not a grant key.
    #[error(
        "not a grant key: expected `<name> <64 to 128 hex digits>`, with a name of 1 to 32 characters out of a-z 0-9 -"
    )]
    Grant,
    /// The text is not a signing key of the expected kind.
    #[error(
        "{0} is needed here: expected `<name> private|public <64 hex digits>`, with a name of 1 to 32 characters out of a-z 0-9 -"
    )]
    Signing(&'static str),
    /// The line of this number is not a line of a key ring, or repeats a version.
    #[error(
        "line {0} is not a line of a key ring: expected `<name>.<version> <64 hex digits>`, with a name of 1 to 64 characters out of a-z 0-9 - and each version of a name once"
    )]
    Ring(usize),
}

/// The contents of a file of public keys.
pub(crate) fn content(path: &Path) -> Result<String, KeyError> {
    std::fs::read_to_string(path).map_err(|error| unreadable(path, &error))
}

/// The contents of a file with secret keys or a password, which only its owner and group may access: Kubernetes mounts
/// secrets with the group of the pod.
///
/// # Errors
/// [`KeyError`] if the file cannot be read or is accessible to every user of the machine.
pub fn secret_content(path: &Path) -> Result<String, KeyError> {
    let mut text = String::new();
    let mut read = || {
        let mut file = File::open(path)?;
        let mode = file.metadata()?.permissions().mode() & 0o777;
        if mode & 0o007 == 0 {
            file.read_to_string(&mut text)?;
        }
        Ok(mode)
    };
    let mode = read().map_err(|error| unreadable(path, &error))?;
    if mode & 0o007 == 0 {
        Ok(text)
    } else {
        Err(KeyError::Exposed { path: path.display().to_string(), mode })
    }
}

fn unreadable(path: &Path, error: &io::Error) -> KeyError {
    KeyError::Unreadable { path: path.display().to_string(), problem: error.to_string() }
}

/// The longest name of a key, in characters.
const NAME_CHARS: usize = 32;

/// Whether it is a valid name of a key: 1 to 32 of `a-z 0-9 -`.
pub fn is_key_name(name: &str) -> bool {
    let allowed = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    (1..=NAME_CHARS).contains(&name.len()) && name.bytes().all(allowed)
}

/// Encodes bytes as lower-case hex digits.
pub fn to_hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Decodes pairs of hex digits. None if the text is anything else.
pub fn from_hex(digits: &str) -> Option<Vec<u8>> {
    if !digits.is_ascii() || !digits.len().is_multiple_of(2) {
        return None;
    }
    (0..digits.len()).step_by(2).map(|at| u8::from_str_radix(digits.get(at..at + 2)?, 16).ok()).collect()
}
