//! Keys as text: their names and their digits.

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
