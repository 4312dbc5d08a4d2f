use std::fmt;

use crate::limit;

/// Why a message cannot be read. It is a permanent fault: the same bytes never become valid.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Malformed {
    /// Where: a path into the body (`configuration`, `key_topics[2]`), a header's name, `subject`, or `body`
    /// for the body as a whole.
    pub field: String,
    /// What is wrong with it, and where it helps, what would be right. Never what a text says: it may be a secret.
    pub problem: String,
}

impl Malformed {
    /// A fault of the named field.
    pub fn new(field: impl Into<String>, problem: impl Into<String>) -> Self {
        // The name of an unknown field is the publisher's, and as long as it likes.
        Self { field: cut(field.into(), limit::KEY_CHARS), problem: cut(problem.into(), limit::REASON_CHARS) }
    }
}

fn cut(mut text: String, chars: usize) -> String {
    if let Some((end, _)) = text.char_indices().nth(chars) {
        text.truncate(end);
    }
    text
}

impl fmt::Display for Malformed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.field, self.problem)
    }
}

impl std::error::Error for Malformed {}
