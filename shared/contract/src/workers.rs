//! The workers of the fleet.

use crate::request::EventType;
use crate::tick::{JOB_ROOT, WOKEN_ROOT};

/// The root of the subjects of schedules: `memory.schedule.<job>`.
pub const SCHEDULE_ROOT: &str = "memory.schedule";

/// A worker of the fleet. Its stream, its consumers and its NATS permissions are derived from this entry; `request.rs`
/// lists the requests that it processes. One name is used everywhere: the crate, the durable consumer, the database
/// role, the metric label.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WorkerInfo {
    /// The name of its crate and of its durable consumer, such as `context-writer`.
    pub name: &'static str,
    /// The stream of its requests; none for a worker that answers queries.
    pub stream: Option<&'static str>,
    /// The size limit of that stream in bytes, which the server reserves on disk; 0 without a stream.
    pub stream_bytes: u64,
    /// What it does, in one sentence.
    pub description: &'static str,
    /// The scheduled jobs that it runs: ticks on `memory.job.<job>`.
    pub jobs: &'static [&'static str],
    /// The types of the events that its jobs cause, beyond those of its requests.
    pub job_events: &'static [EventType],
    /// The other workers that write the [prerequisites](crate::Prerequisite) of its requests. It may read how far their
    /// consumers are.
    pub depends_on: &'static [&'static WorkerInfo],
}

const GIB: u64 = 1 << 30;

/// Sessions, contexts, conversations, accounts and the contexts of agents.
pub const CONTEXT_WRITER: WorkerInfo = WorkerInfo {
    name: "context-writer",
    stream: Some("CONTEXT"),
    stream_bytes: 8 * GIB,
    description: "Writes sessions, contexts, conversations, accounts and the contexts of agents",
    jobs: &[],
    job_events: &[],
    depends_on: &[],
};
/// Routing decisions and tool calls.
pub const ROUTER_LOGGER: WorkerInfo = WorkerInfo {
    name: "router-logger",
    stream: Some("ROUTER"),
    stream_bytes: 8 * GIB,
    description: "Writes routing decisions, hourly routing statistics and tool calls",
    jobs: &[],
    job_events: &[],
    depends_on: &[&CONTEXT_WRITER],
};
/// The semantic search index.
pub const VECTOR_INDEXER: WorkerInfo = WorkerInfo {
    name: "vector-indexer",
    stream: Some("VECTOR"),
    stream_bytes: 4 * GIB,
    description: "Maintains the semantic search index",
    jobs: &["knowledge-index"],
    job_events: &[],
    depends_on: &[&CONTEXT_WRITER],
};
/// The answers of many agents.
pub const CONSENSUS_BUILDER: WorkerInfo = WorkerInfo {
    name: "consensus-builder",
    stream: Some("CONSENSUS"),
    stream_bytes: 4 * GIB,
    description: "Turns the answers of many agents into validated knowledge",
    jobs: &["consensus-close", "consensus-reestimate"],
    job_events: &[],
    depends_on: &[&CONTEXT_WRITER],
};
/// The memory of one session carried into another.
pub const MEMORY_SYNC: WorkerInfo = WorkerInfo {
    name: "memory-sync",
    stream: Some("SYNC"),
    stream_bytes: 2 * GIB,
    description: "Carries the memory of one session into another",
    jobs: &["sync-carry", "sync-forget"],
    job_events: &[],
    depends_on: &[&CONTEXT_WRITER],
};
/// Retention policies, and what is removed by them.
pub const RETENTION_CLEANER: WorkerInfo = WorkerInfo {
    name: "retention-cleaner",
    stream: Some("RETENTION"),
    stream_bytes: GIB / 4,
    description: "Removes what retention policies do not keep",
    jobs: &["retention-sweep", "maintenance"],
    job_events: &[],
    depends_on: &[&CONTEXT_WRITER],
};
/// Service tokens.
pub const TOKEN_ISSUER: WorkerInfo = WorkerInfo {
    name: "token-issuer",
    stream: None,
    stream_bytes: 0,
    description: "Issues service tokens",
    jobs: &[],
    job_events: &[],
    depends_on: &[],
};
/// Answers to queries.
pub const MEMORY_READER: WorkerInfo = WorkerInfo {
    name: "memory-reader",
    stream: None,
    stream_bytes: 0,
    description: "Answers queries",
    jobs: &[],
    job_events: &[],
    depends_on: &[],
};

/// Every worker.
pub static WORKERS: &[WorkerInfo] = &[
    CONTEXT_WRITER,
    ROUTER_LOGGER,
    VECTOR_INDEXER,
    CONSENSUS_BUILDER,
    MEMORY_SYNC,
    RETENTION_CLEANER,
    TOKEN_ISSUER,
    MEMORY_READER,
];

/// How often each job of the catalogue runs, as the server's scheduler reads it.
pub static SCHEDULES: &[(&str, &str)] = &[
    ("knowledge-index", "@every 30s"),
    ("consensus-close", "@every 10s"),
    ("consensus-reestimate", "@every 5m"),
    ("sync-carry", "@every 2s"),
    ("sync-forget", "@every 1h"),
    ("retention-sweep", "@every 30s"),
    ("maintenance", "@every 10m"),
];

/// The root of the subjects of hints that a job may have work: `memory.wake.<job>`. A hint has no content and may be lost; the
/// job's schedule finds the same work later.
pub const WAKE_ROOT: &str = "memory.wake";

/// Events after which a job runs at once, if it has work.
pub static WAKES: &[(EventType, &str)] = &[
    (EventType::ContextStored, "sync-carry"),
    (EventType::ContextRemoved, "sync-carry"),
    (EventType::AgentContextStored, "sync-carry"),
    (EventType::AgentContextRemoved, "sync-carry"),
    (EventType::SessionClosed, "sync-carry"),
    (EventType::SyncCarried, "sync-carry"),
    // As long as there is something to remove, the next batch follows at once.
    (EventType::RetentionSwept, "retention-sweep"),
];

/// The jobs that run at once after events of these types, each once.
pub fn woken_by(events: impl IntoIterator<Item = EventType>) -> Vec<&'static str> {
    let mut jobs: Vec<&'static str> = Vec::new();
    for event in events {
        for (by, job) in WAKES {
            if *by == event && !jobs.contains(job) {
                jobs.push(job);
            }
        }
    }
    jobs
}

/// The subject of hints for a job.
pub fn wake_subject(job: &str) -> String {
    format!("{WAKE_ROOT}.{job}")
}

impl WorkerInfo {
    /// Its jobs that events wake.
    pub fn woken_jobs(&self) -> impl Iterator<Item = &'static str> {
        self.jobs.iter().copied().filter(|job| WAKES.iter().any(|(_, woken)| woken == job))
    }

    /// The worker with this name.
    pub fn find(name: &str) -> Option<&'static Self> {
        WORKERS.iter().find(|worker| worker.name == name)
    }

    /// The types of the events that it causes: those of its requests and of its jobs. It appends and publishes no others;
    /// its NATS permissions are derived from them.
    pub fn events(&self) -> impl Iterator<Item = EventType> {
        let of_requests = EventType::ALL.iter().copied().filter(|event| event.worker().name == self.name);
        let of_jobs = self.job_events.iter().copied().filter(|event| event.worker().name != self.name);
        of_requests.chain(of_jobs)
    }

    /// Whether it causes events of this type.
    pub fn causes(&self, event: EventType) -> bool {
        event.worker().name == self.name || self.job_events.contains(&event)
    }

    /// Its login role in the database.
    pub fn role(&self) -> String {
        worker_role(self.name)
    }

    /// The durable consumer of the server's advisories about messages that reached `max_deliver` without being settled.
    pub fn advisory_consumer(&self) -> String {
        format!("{}-advisory", self.name)
    }

    /// The durable consumer of the ticks of its jobs that schedules publish. Those that events cause have the same inbox.
    pub fn jobs_consumer(&self) -> String {
        format!("{}-jobs", self.name)
    }

    /// The durable consumer of the ticks that events cause, of its jobs.
    pub fn wakes_consumer(&self) -> String {
        format!("{}-wakes", self.name)
    }

    /// The subjects of the ticks of its jobs that schedules publish.
    pub fn job_subjects(&self) -> impl Iterator<Item = String> {
        self.jobs.iter().map(|job| format!("{JOB_ROOT}.{job}"))
    }

    /// The subjects of the ticks of its jobs that events cause.
    pub fn woken_subjects(&self) -> impl Iterator<Item = String> {
        self.woken_jobs().map(|job| format!("{WOKEN_ROOT}.{job}"))
    }
}

/// The login role of a worker: `w_context_writer` for `context-writer`.
pub fn worker_role(worker: &str) -> String {
    format!("w_{}", worker.replace('-', "_"))
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use super::*;
    use crate::{Prerequisite, SessionId};

    #[test]
    fn every_worker_has_unique_names_and_a_stream_if_it_processes_requests() {
        for worker in WORKERS {
            let same = |other: &&WorkerInfo| {
                other.name == worker.name || (other.stream.is_some() && other.stream == worker.stream)
            };
            assert_eq!(WORKERS.iter().filter(same).count(), 1, "{}", worker.name);
            assert_eq!(worker.stream.is_some(), worker.requests().next().is_some(), "{}", worker.name);
            assert_eq!(worker.stream.is_some(), worker.stream_bytes > 0, "{}", worker.name);
            assert_eq!(WorkerInfo::find(worker.name), Some(worker));
        }
    }

    #[test]
    fn a_worker_depends_on_those_that_write_what_its_requests_need() {
        let session = SessionId::new("s").unwrap();
        let prerequisites =
            [Prerequisite::User, Prerequisite::Session(&session), Prerequisite::Message(uuid::Uuid::nil())];
        for worker in WORKERS.iter().filter(|worker| worker.stream.is_some()) {
            for prerequisite in prerequisites {
                let by = prerequisite.worker();
                assert!(by.name == worker.name || worker.depends_on.contains(&by), "{}", worker.name);
            }
        }
    }

    #[test]
    fn every_event_is_caused_by_a_worker_with_a_stream_and_a_job_may_cause_those_of_another() {
        for &event in EventType::ALL {
            let by: Vec<&str> =
                WORKERS.iter().filter(|worker| worker.causes(event)).map(|worker| worker.name).collect();
            assert!(by.contains(&event.worker().name) && event.worker().stream.is_some(), "{event}: {by:?}");
        }
        for worker in WORKERS {
            assert!(worker.events().all(|event| worker.causes(event)), "{}", worker.name);
        }
        let sweeper = WorkerInfo { job_events: &[EventType::ContextRemoved], ..MEMORY_READER };
        assert_eq!(sweeper.events().collect::<Vec<_>>(), [EventType::ContextRemoved]);
        assert!(sweeper.causes(EventType::ContextRemoved) && !sweeper.causes(EventType::ContextStored));
    }

    #[test]
    fn events_wake_jobs_of_the_catalogue() {
        for (_, job) in WAKES {
            let of = WORKERS.iter().filter(|worker| worker.woken_jobs().any(|woken| woken == *job));
            assert_eq!(of.count(), 1, "{job}");
            assert!(
                SCHEDULES.iter().any(|(scheduled, _)| scheduled == job),
                "{job} makes up for no lost hint"
            );
        }
        assert_eq!(woken_by([EventType::ContextStored, EventType::ContextRemoved]), ["sync-carry"]);
        assert_eq!(woken_by([EventType::MessageAdded]), Vec::<&str>::new());
    }

    #[test]
    fn a_job_belongs_to_one_worker() {
        let mut jobs: Vec<&str> = WORKERS.iter().flat_map(|worker| worker.jobs).copied().collect();
        assert!(jobs.iter().all(|job| job.parse::<crate::Job>().is_ok()), "{jobs:?}");
        let count = jobs.len();
        let scheduled: Vec<&str> = SCHEDULES.iter().map(|(job, _)| *job).collect();
        assert_eq!(scheduled, jobs, "each has a schedule");
        jobs.sort_unstable();
        jobs.dedup();
        assert_eq!(jobs.len(), count, "{jobs:?}");
    }
}
