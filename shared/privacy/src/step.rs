use std::collections::BTreeMap;
use std::fmt;

use chrono::{DateTime, Utc};
use contract::UserId;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// A step of an erasure, in this order. Each can be repeated.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Step {
    /// The fence is put up in both databases.
    Fence,
    /// What ran before the fence has ended.
    Drain,
    /// The rows are counted. Nobody writes any more.
    Count,
    /// The rows of the main database go.
    Rows,
    /// The messages go.
    Streams,
    /// The points go.
    Vectors,
    /// Archives are written anew without the person.
    Archives,
    /// The data keys and the person's token go, and the tombstone comes.
    Keys,
    /// The row of the trail that commits to the receipt comes under a seal.
    Seal,
    /// The receipt is signed and filed, and the fence goes.
    Receipt,
}

impl Step {
    /// All steps in their order.
    pub const ALL: [Self; 10] = [
        Self::Fence,
        Self::Drain,
        Self::Count,
        Self::Rows,
        Self::Streams,
        Self::Vectors,
        Self::Archives,
        Self::Keys,
        Self::Seal,
        Self::Receipt,
    ];

    /// The name in `privacy_requests.step`.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Fence => "fence",
            Self::Drain => "drain",
            Self::Count => "count",
            Self::Rows => "rows",
            Self::Streams => "streams",
            Self::Vectors => "vectors",
            Self::Archives => "archives",
            Self::Keys => "keys",
            Self::Seal => "seal",
            Self::Receipt => "receipt",
        }
    }

    /// The step of this name.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|step| step.as_str() == name)
    }

    /// The next step. None after the last.
    #[must_use]
    pub fn next(self) -> Option<Self> {
        Self::ALL.into_iter().find(|step| *step > self)
    }
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// What a step needs to resume, and what the receipt is made of. It is stored in `privacy_requests.progress`, at most 1 MiB, and has no
/// value of a row.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Progress {
    /// When the fence was committed in both databases.
    pub fenced_at: Option<DateTime<Utc>>,
    /// The transactions that ran when the fence was up, by database: `main` and `keys`. None before they are listed.
    pub running: Option<BTreeMap<String, Vec<String>>>,
    /// The prepared transactions that there were when those had ended. None before they are listed.
    pub prepared: Option<BTreeMap<String, Vec<String>>>,
    /// The number of rows of each table before the first deletion.
    pub before: BTreeMap<String, u64>,
    /// The number of rows deleted so far from each table.
    pub deleted: BTreeMap<String, u64>,
    /// What the other steps keep, by step.
    #[serde(flatten)]
    pub of_steps: BTreeMap<String, serde_json::Value>,
}

/// What becomes of a person's data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Removal {
    /// They go.
    Erase,
    /// They go, and what they count is added to the sums of [`statistics`](crate::statistics).
    Anonymise,
}

impl Removal {
    /// The name in `privacy_requests.request_type` and in receipts.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Erase => "erase",
            Self::Anonymise => "anonymise",
        }
    }

    /// The removal of this name.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        [Self::Erase, Self::Anonymise].into_iter().find(|removal| removal.as_str() == name)
    }
}

/// A request that this process has taken for some seconds.
#[derive(Clone, Debug)]
pub struct Claimed {
    /// The id of the request.
    pub id: Uuid,
    /// The run of the process that has taken it. What another run stores is refused.
    pub run: Uuid,
    /// The person.
    pub user: UserId,
    /// What becomes of the person's data.
    pub removal: Removal,
    /// The step to do.
    pub step: Step,
    /// What the steps before have left.
    pub progress: Progress,
    /// When the person asked.
    pub requested_at: DateTime<Utc>,
    /// By when it must be done.
    pub due_at: DateTime<Utc>,
}

/// A hold that keeps a person's rows from being erased.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hold {
    /// The id of the row of `retention_holds`.
    pub id: Uuid,
    /// Why the rows are held.
    pub reason: String,
}

/// What became of a step.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Advance {
    /// The next step can begin.
    Next(Step),
    /// The step has to wait, such as for a seal. It is tried again at the next pass.
    Waiting(String),
    /// The erasure is complete.
    Done,
    /// A hold keeps it from beginning.
    Held(Hold),
}
