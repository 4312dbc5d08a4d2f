//! What a merge decided, and what lost: the content of the column `conflict_resolution`.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::json::{Json, present};
use crate::key::Key;
use crate::rules::Merging;
use crate::vector::Stamp;

/// A step to a part of a value.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Step {
    /// The member of an object.
    Member(String),
    /// The item of a list, by the JSON text of its identifying member.
    Item(String),
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Member(name) => write!(f, "/{}", name.replace('~', "~0").replace('/', "~1")),
            Self::Item(id) => write!(f, "[{id}]"),
        }
    }
}

/// How sessions came into conflict.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Cause {
    /// They wrote the same part, differently.
    Edited,
    /// One removed what another edited.
    Removed,
    /// They wrote values that have no parts in common, such as a string and an object.
    Shape,
    /// They gave the key different attributes.
    Attributes,
}

/// One of the values that were written concurrently.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Candidate {
    /// Who wrote it, and when.
    pub stamp: Stamp,
    /// The value; absent: removed.
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "present")]
    pub value: Option<Json>,
}

/// What a rule decided about one part of a value.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Conflict {
    /// The key.
    pub key: Key,
    /// The part of its value; empty: all of it.
    pub path: Vec<Step>,
    /// How it came about.
    pub cause: Cause,
    /// The rule that decided.
    pub rule: Merging,
    /// The value of the common ancestor; absent: there was none, or it is not known.
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "present")]
    pub base: Option<Json>,
    /// The value in the target before; absent: it had none.
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "present")]
    pub ours: Option<Json>,
    /// The value in the source; absent: it had none.
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "present")]
    pub theirs: Option<Json>,
    /// The value in the target after; absent: removed.
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "present")]
    pub kept: Option<Json>,
    /// What is not visible any more.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub lost: Vec<Candidate>,
    /// Whether the values belong to a key that is stored encrypted only: then this record must be, too.
    #[serde(default)]
    pub sensitive: bool,
}

/// Values that are never merged: both stay, and a disputed node is to be raised.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Dispute {
    /// The key.
    pub key: Key,
    /// [`Merging::Fact`] or [`Merging::Consensus`].
    pub rule: Merging,
    /// What each session says, in the order of time.
    pub values: Vec<Candidate>,
    /// Whether the values belong to a key that is stored encrypted only.
    #[serde(default)]
    pub sensitive: bool,
}

/// Why a key is not synced. The other keys of the round are.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error, Serialize, Deserialize)]
#[serde(tag = "reason", rename_all = "kebab-case")]
pub enum Unmergeable {
    /// A value is not of the type of its rule.
    #[error(
        "the rule {rule:?} cannot merge what was written concurrently at {path:?}; write it once more in one session"
    )]
    NotOfType {
        /// Where.
        path: String,
        /// The rule.
        rule: Merging,
    },
    /// The sum of a counter is no 64-bit integer.
    #[error("the counter at {path:?} would be {sum}, which is no 64-bit integer; lower it in one session")]
    CounterOverflow {
        /// Where.
        path: String,
        /// The sum.
        sum: String,
    },
    /// A limit of the rule file is exceeded.
    #[error("{what} would be {value}, and at most {limit} are allowed")]
    Limit {
        /// Of what.
        what: String,
        /// How much it would be.
        value: usize,
        /// How much it may be.
        limit: usize,
    },
    /// A write is later than now: the clock that it comes from runs ahead.
    #[error(
        "a write of session {session:?} is more than {ahead_ms} ms ahead of the clock; correct that clock, and sync again later"
    )]
    ClockAhead {
        /// Whose write.
        session: String,
        /// What is allowed, in milliseconds.
        ahead_ms: u32,
    },
}

impl Unmergeable {
    /// The reason without any part of the values: for those that are stored encrypted only.
    pub fn without_values(&self) -> String {
        match self {
            Self::NotOfType { rule, path: _ } => format!(
                "the rule {rule:?} cannot merge what was written concurrently; write it once more in one session"
            ),
            Self::CounterOverflow { path: _, sum: _ } => {
                "a counter would be no 64-bit integer; lower it in one session".to_owned()
            }
            Self::Limit { .. } | Self::ClockAhead { .. } => self.to_string(),
        }
    }
}

/// A conflict within one key, before it is known which side is the target.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Clash {
    pub path: Vec<Step>,
    pub cause: Cause,
    pub candidates: Vec<Candidate>,
    pub base: Option<Json>,
    pub kept: Option<Json>,
    pub lost: Vec<Candidate>,
}

impl Clash {
    /// Whether it is the same conflict: the same writes about the same part.
    pub fn is(&self, other: &Self) -> bool {
        let stamps = |clash: &Self| -> Vec<Stamp> {
            clash.candidates.iter().map(|candidate| candidate.stamp.clone()).collect()
        };
        self.path == other.path && self.cause == other.cause && stamps(self) == stamps(other)
    }
}

pub(crate) fn path_text(path: &[Step]) -> String {
    path.iter().map(ToString::to_string).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reason_without_values_names_neither_a_path_nor_a_sum() {
        let path = || "/secret-path".to_owned();
        for error in [
            Unmergeable::NotOfType { path: path(), rule: Merging::Set },
            Unmergeable::CounterOverflow { path: path(), sum: "18000000000000000001".to_owned() },
        ] {
            let (with, without) = (error.to_string(), error.without_values());
            assert!(with.contains("/secret-path"), "{with}");
            assert!(
                !without.contains("secret-path") && !without.contains("18000000000000000001"),
                "{without}"
            );
            assert!(without.contains("in one session"), "{without}");
        }
    }
}
