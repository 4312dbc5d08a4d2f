//! Ticks of scheduled jobs.

use std::fmt;
use std::str::FromStr;

use chrono::{DateTime, Utc};
use uuid::Uuid;

use crate::limit;
use crate::subject::SubjectError;

/// The root of the subjects that ticks arrive on.
pub const JOB_ROOT: &str = "memory.job";

/// The name of a job: 1 to 64 of `a-z 0-9 -`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Job(String);

impl Job {
    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Job {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for Job {
    type Err = SubjectError;

    fn from_str(name: &str) -> Result<Self, SubjectError> {
        let allowed = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
        if name.is_empty() || name.len() > limit::SERVICE_CHARS || !name.bytes().all(allowed) {
            return Err(SubjectError::Job);
        }
        Ok(Self(name.to_owned()))
    }
}

/// `memory.job.<job>`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JobSubject(pub Job);

impl FromStr for JobSubject {
    type Err = SubjectError;

    fn from_str(subject: &str) -> Result<Self, SubjectError> {
        let rest = subject.strip_prefix(JOB_ROOT).and_then(|rest| rest.strip_prefix('.'));
        rest.ok_or(SubjectError::Shape)?.parse().map(Self)
    }
}

impl fmt::Display for JobSubject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{JOB_ROOT}.{}", self.0)
    }
}

/// One run of a scheduled job, as the server's scheduler published it. It has no user and no token: the worker acts for the
/// users whose work is due, under job grants that the database mints.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tick {
    /// The job.
    pub job: Job,
    /// The subject of its schedule ([`header::SCHEDULER`](crate::header::SCHEDULER)).
    pub scheduler: String,
    /// When JetStream stored it.
    pub stored_at: DateTime<Utc>,
}

impl Tick {
    /// The id under which the inbox knows a tick. The server gives ticks no message id, so it follows from the schedule and
    /// from the time of the next tick as the server wrote it: a redelivery has the same one.
    pub fn message_id(scheduler: &str, next: &str) -> Uuid {
        Uuid::new_v5(&Uuid::NAMESPACE_OID, format!("{scheduler}\n{next}").as_bytes())
    }
}
