use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// The reason class of a dead letter.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum DeadLetterClass {
    /// The message cannot be decoded.
    Malformed,
    /// Its token does not authorize it.
    Denied,
    /// The database rejects it permanently; a retry cannot succeed.
    Permanent,
    /// A prerequisite, such as its session, did not appear within the retry budget; or the processing of its user's data is restricted.
    MissingPrerequisite,
    /// Transient failures exhausted the retry budget.
    Exhausted,
    /// It was delivered `max_deliver` times without an acknowledgement: the worker may have crashed on it.
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

    /// The value of [`header::DEAD_CLASS`](crate::header::DEAD_CLASS).
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

/// The body of a dead letter that lists many messages: those of a service beyond its share of dead letters. The header
/// [`DEAD_COUNT`](crate::header::DEAD_COUNT) tells it from others.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DeadLetterSummary {
    /// The service that published the messages. `None` if their subjects name none.
    #[serde(default)]
    pub service: Option<String>,
    /// The stream that holds the messages until it drops them for their age.
    pub stream: String,
    /// Their sequence numbers there: the first and the last of each range, in order.
    pub ranges: Vec<(u64, u64)>,
}

/// A text that is not the name of a [`DeadLetterClass`].
#[derive(Debug, thiserror::Error)]
#[error(
    "{0:?} is not a class of dead letters; the classes are malformed, denied, permanent, missing-prerequisite, exhausted and undeliverable"
)]
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
