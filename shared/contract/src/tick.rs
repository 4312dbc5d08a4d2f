//! Ticks of scheduled jobs.

use std::fmt;
use std::str::FromStr;

use chrono::{DateTime, Utc};
use uuid::Uuid;

use crate::limit;
use crate::subject::SubjectError;

/// The root of the subjects of ticks that schedules publish.
pub const JOB_ROOT: &str = "memory.job";

/// The stream of schedules and their ticks. Nobody but the operator and the server publishes into it.
pub const JOBS_STREAM: &str = "JOBS";

/// The root of the subjects of ticks that events cause.
pub const WOKEN_ROOT: &str = "memory.woken";

/// The stream of ticks that events cause, which the workers of the jobs publish. It takes no schedules.
pub const WAKES_STREAM: &str = "WAKES";

/// Whether the messages of a stream are ticks, and not requests.
pub fn has_ticks(stream: &str) -> bool {
    [JOBS_STREAM, WAKES_STREAM].contains(&stream)
}

/// The name of a job: 1 to 48 of `a-z 0-9 -`, the first a letter.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Job {
    /// `job:<name>`
    publisher: String,
}

/// No service name contains a colon, so that a job is never mistaken for a service.
const PUBLISHER_PREFIX: &str = "job:";

impl Job {
    /// The name.
    pub fn as_str(&self) -> &str {
        self.publisher.strip_prefix(PUBLISHER_PREFIX).unwrap_or_default()
    }

    /// Whether a name in an event or in the audit trail is that of a job, and not of a service.
    pub fn is_publisher(name: &str) -> bool {
        name.starts_with(PUBLISHER_PREFIX)
    }

    /// The name under which the job appears where others have a service: in events and in the audit trail.
    /// `job:<name>`.
    pub fn publisher(&self) -> &str {
        &self.publisher
    }
}

impl fmt::Display for Job {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for Job {
    type Err = SubjectError;

    fn from_str(name: &str) -> Result<Self, SubjectError> {
        let allowed = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
        let begins_with_a_letter = name.starts_with(|first: char| first.is_ascii_lowercase());
        if !begins_with_a_letter || name.len() > limit::JOB_CHARS || !name.bytes().all(allowed) {
            return Err(SubjectError::Job);
        }
        Ok(Self { publisher: format!("{PUBLISHER_PREFIX}{name}") })
    }
}

/// The subject of a tick.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TickSubject {
    /// `memory.job.<job>`: a schedule has published it.
    Scheduled(Job),
    /// `memory.woken.<job>`: the worker of the job has published it, after events that may give it work.
    Woken(Job),
}

impl FromStr for TickSubject {
    type Err = SubjectError;

    fn from_str(subject: &str) -> Result<Self, SubjectError> {
        let below = |root: &str| subject.strip_prefix(root).and_then(|rest| rest.strip_prefix('.'));
        match (below(JOB_ROOT), below(WOKEN_ROOT)) {
            (Some(job), _) => job.parse().map(Self::Scheduled),
            (None, Some(job)) => job.parse().map(Self::Woken),
            (None, None) => Err(SubjectError::Shape),
        }
    }
}

impl fmt::Display for TickSubject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Scheduled(job) => write!(f, "{JOB_ROOT}.{job}"),
            Self::Woken(job) => write!(f, "{WOKEN_ROOT}.{job}"),
        }
    }
}

/// One run of a job, as the server's scheduler or the worker of a woken job published it. It has no user and no token: the
/// worker acts for the users whose work is due, under job grants that the database mints.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tick {
    /// The job.
    pub job: Job,
    /// The subject of its schedule ([`header::SCHEDULER`](crate::header::SCHEDULER)), or that of the hints that wake its job.
    pub scheduler: String,
    /// When JetStream stored it.
    pub stored_at: DateTime<Utc>,
}

impl Tick {
    /// Derives the id of a tick in the inbox from `next`, the header [`SCHEDULE_NEXT`](crate::header::SCHEDULE_NEXT):
    /// the server gives ticks no message id. A redelivered tick has the same id. The last tick of a schedule has no
    /// time there, so that the time at which JetStream stored it distinguishes it from those of later schedules on the
    /// same subject.
    pub fn message_id(&self, next: &str) -> Uuid {
        let run = match DateTime::parse_from_rfc3339(next) {
            Ok(next) => next.timestamp_nanos_opt(),
            Err(_) => self.stored_at.timestamp_nanos_opt(),
        };
        let name = format!("{}\n{}\n{next}\n{}", self.job, self.scheduler, run.unwrap_or_default());
        Uuid::new_v5(&Uuid::NAMESPACE_OID, name.as_bytes())
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use super::*;

    #[test]
    fn a_job_has_a_name_that_no_service_has() {
        let job: Job = "expire-contexts".parse().unwrap();
        assert_eq!((job.as_str(), job.publisher()), ("expire-contexts", "job:expire-contexts"));
        assert!("job:expire-contexts".parse::<crate::Service>().is_err());
        assert!(Job::is_publisher(job.publisher()) && !Job::is_publisher("jobs"));
        let (longest, too_long) = ("j".repeat(48), "j".repeat(49));
        assert!(longest.parse::<Job>().is_ok());
        for bad in ["", "7", "7-days", "-x", "Expire", "a.b", "a b", "job:x", too_long.as_str()] {
            assert!(bad.parse::<Job>().is_err(), "{bad}");
        }
    }

    #[test]
    fn the_subject_of_a_tick_says_who_has_published_it() {
        let job: Job = "sync-carry".parse().unwrap();
        for (text, subject) in [
            ("memory.job.sync-carry", TickSubject::Scheduled(job.clone())),
            ("memory.woken.sync-carry", TickSubject::Woken(job)),
        ] {
            assert_eq!(text.parse::<TickSubject>().unwrap(), subject);
            assert_eq!(subject.to_string(), text);
        }
        for bad in
            ["memory.job", "memory.woken.", "memory.wokensync-carry", "memory.wake.x", "memory.job.a.b"]
        {
            assert!(bad.parse::<TickSubject>().is_err(), "{bad}");
        }
        assert!(has_ticks(JOBS_STREAM) && has_ticks(WAKES_STREAM) && !has_ticks("CONTEXT"));
    }

    #[test]
    fn the_id_of_a_tick_is_that_of_its_run() {
        let tick = |job: &str, scheduler: &str, stored_at: i64| Tick {
            job: job.parse().unwrap(),
            scheduler: scheduler.to_owned(),
            stored_at: DateTime::from_timestamp_nanos(stored_at),
        };
        let next = "2026-11-28T00:00:00Z";
        let id = tick("a", "s", 1).message_id(next);
        assert_eq!(id, tick("a", "s", 2).message_id(next), "the server stored it twice");
        for other in [tick("b", "s", 1), tick("a", "t", 1)] {
            assert_ne!(id, other.message_id(next));
        }
        assert_ne!(id, tick("a", "s", 1).message_id("2026-11-28T00:01:00Z"));
        let last = tick("a", "s", 1).message_id("purge");
        assert_eq!(last, tick("a", "s", 1).message_id("purge"));
        assert_ne!(last, tick("a", "s", 2).message_id("purge"), "of a later schedule");
    }
}
