use std::fmt;
use std::str::FromStr;

/// Why a message became a dead letter.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum DeadLetterClass {
    /// It cannot be decoded.
    Malformed,
    /// It may not do what it asks for.
    Denied,
    /// The database refuses it for good, whatever it is tried with.
    Permanent,
    /// What it needs has not appeared within the retry budget.
    MissingPrerequisite,
    /// It kept failing for passing reasons until the retry budget was spent.
    Exhausted,
    /// It was delivered `max_deliver` times and never settled: a worker may have died on it.
    Undeliverable,
}

impl DeadLetterClass {
    /// Every class.
    pub const ALL: [Self; 6] = [
        Self::Malformed,
        Self::Denied,
        Self::Permanent,
        Self::MissingPrerequisite,
        Self::Exhausted,
        Self::Undeliverable,
    ];

    /// The word that travels in [`header::DEAD_CLASS`](crate::header::DEAD_CLASS).
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Malformed => "malformed",
            Self::Denied => "denied",
            Self::Permanent => "permanent",
            Self::MissingPrerequisite => "missing-prerequisite",
            Self::Exhausted => "exhausted",
            Self::Undeliverable => "undeliverable",
        }
    }
}

impl fmt::Display for DeadLetterClass {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A word that names no [`DeadLetterClass`].
#[derive(Debug, thiserror::Error)]
#[error("{0:?} is no class of dead letters")]
pub struct UnknownDeadLetterClass(String);

impl FromStr for DeadLetterClass {
    type Err = UnknownDeadLetterClass;

    fn from_str(word: &str) -> Result<Self, Self::Err> {
        Self::ALL
            .into_iter()
            .find(|class| class.as_str() == word)
            .ok_or_else(|| UnknownDeadLetterClass(word.to_owned()))
    }
}
