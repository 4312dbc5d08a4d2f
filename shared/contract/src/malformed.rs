use std::fmt;

use crate::limit;
use crate::printable::printable_within;

/// Why a message cannot be decoded. The error is permanent: the same bytes never become valid.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Malformed {
    /// The field at fault: a path into the body (`configuration`, `key_topics[2]`), the name of a header, `subject`, or
    /// `body` for the body as a whole. Characters that a terminal does not show as they are [are
    /// escaped](crate::printable), here and in `problem`.
    pub field: String,
    /// What is wrong with it and, where it helps, what is expected. It may quote numbers, and the invalid value of an
    /// enumeration if that is a short word. It never quotes free text, which may be a secret.
    pub problem: String,
}

impl Malformed {
    /// An error of the named field.
    pub fn new(field: impl Into<String>, problem: impl Into<String>) -> Self {
        // The publisher chooses the name of an unknown field, of any length and with any characters.
        Self {
            field: printable_within(&field.into(), limit::KEY_CHARS),
            problem: printable_within(&problem.into(), limit::REASON_CHARS),
        }
    }
}

impl fmt::Display for Malformed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.field, self.problem)
    }
}

impl std::error::Error for Malformed {}
