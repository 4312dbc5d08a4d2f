//! The streams and consumers that are derived from the catalogue of workers.

use contract::{JOB_ROOT, JOBS_STREAM, REQUEST_ROOT, SCHEDULE_ROOT, WAKES_STREAM, WorkerInfo};

use crate::config::{ConsumerLimits, DAY, Discard, DurableConsumer, HOUR, StreamConfig, UNLIMITED};

/// The stream of the server's advisories about messages that reached `max_deliver` without being settled.
pub(crate) const ADVISORY: &str = "ADVISORY";

/// The prefix of the subjects of these advisories; `.<stream>.<consumer>` follows.
const MAX_DELIVERIES: &str = "$JS.EVENT.ADVISORY.CONSUMER.MAX_DELIVERIES";

const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;
/// The largest request, with its headers.
const REQUEST_BYTES: i64 = 2 << 20;

/// A stream that a worker consumes, and its durable consumer there.
pub(crate) struct Source {
    pub(crate) stream: &'static str,
    pub(crate) consumer: String,
    /// What it consumes, for the description of the consumer.
    what: &'static str,
    /// The subjects of the stream that it consumes; empty for all.
    subjects: Vec<String>,
    max_ack_pending: i64,
}

/// The streams that a worker consumes: its requests, and the ticks of its jobs that schedules publish and that events cause.
pub(crate) fn sources(worker: &WorkerInfo) -> Vec<Source> {
    let requests = worker.stream.map(|stream| Source {
        stream,
        consumer: worker.name.to_owned(),
        what: "Requests for",
        subjects: Vec::new(),
        max_ack_pending: 100_000,
    });
    let ticks = |stream, consumer, what, subjects: Vec<String>| {
        // No more ticks at once than there are jobs: further ticks of a job would act for the same users.
        let max_ack_pending = i64::try_from(subjects.len()).unwrap_or(i64::MAX);
        let source = Source { stream, consumer, what, subjects, max_ack_pending };
        (!source.subjects.is_empty()).then_some(source)
    };
    let scheduled = worker.job_subjects().collect();
    let scheduled = ticks(JOBS_STREAM, worker.jobs_consumer(), "Ticks of the jobs of", scheduled);
    let woken = worker.woken_subjects().collect();
    let woken = ticks(WAKES_STREAM, worker.wakes_consumer(), "Ticks of the woken jobs of", woken);
    requests.into_iter().chain(scheduled).chain(woken).collect()
}

/// All streams, ordered by name.
pub(crate) fn streams(workers: &[WorkerInfo]) -> Vec<StreamConfig> {
    let mut streams = vec![events(), dead(), advisory(), seal()];
    streams.extend(workers.iter().filter_map(requests));
    if workers.iter().any(|worker| !worker.jobs.is_empty()) {
        streams.push(jobs());
    }
    let woken: Vec<String> = workers.iter().flat_map(WorkerInfo::woken_subjects).collect();
    if !woken.is_empty() {
        streams.push(wakes(woken));
    }
    streams.sort_by(|a, b| a.name.cmp(&b.name));
    streams
}

/// All durable consumers, ordered by name.
pub(crate) fn consumers(workers: &[WorkerInfo]) -> Vec<DurableConsumer> {
    let mut consumers: Vec<DurableConsumer> = workers.iter().flat_map(consumers_of).collect();
    consumers.sort_by(|a, b| a.config.durable_name.cmp(&b.config.durable_name));
    consumers
}

fn requests(worker: &WorkerInfo) -> Option<StreamConfig> {
    let name = worker.stream?;
    let mut subjects: Vec<String> = Vec::new();
    for kind in worker.requests() {
        let subject = format!("{REQUEST_ROOT}.*.{}.>", kind.noun);
        if !subjects.contains(&subject) {
            subjects.push(subject);
        }
    }
    let description = format!("Requests for {}.", worker.name);
    let stream = StreamConfig::new(name, &description, subjects, worker.stream_bytes);
    Some(StreamConfig { max_msg_size: REQUEST_BYTES, ..stream })
}

fn events() -> StreamConfig {
    let subjects = vec!["memory.event.>".to_owned()];
    let stream = StreamConfig::new("EVENTS", "What has happened, after it was committed.", subjects, 4 * GIB);
    StreamConfig { discard: Discard::Old, ..stream }
}

fn dead() -> StreamConfig {
    let subjects = vec!["memory.dead.>".to_owned()];
    let stream = StreamConfig::new("DEAD", "Dead letters, with the reason.", subjects, 2 * GIB);
    StreamConfig { max_age: 30 * DAY, ..stream }
}

fn advisory() -> StreamConfig {
    let description =
        "The server's advisories about messages that were delivered max_deliver times and never settled.";
    let stream = StreamConfig::new(ADVISORY, description, vec![format!("{MAX_DELIVERIES}.>")], 256 * MIB);
    StreamConfig { discard: Discard::Old, ..stream }
}

fn seal() -> StreamConfig {
    let description =
        "The hashes of the audit trail's seals, out of reach of whoever can change the database.";
    let stream = StreamConfig::new("SEAL", description, vec!["memory.seal.>".to_owned()], 4 * GIB);
    let max_age = 3_650 * DAY;
    StreamConfig { max_age, max_msg_size: 4_096, deny_delete: true, deny_purge: true, ..stream }
}

/// The server allows no schedules in a stream with `discard: new`, and a schedule is itself a message of the stream. A
/// limit on the ticks of each job keeps the schedules from being dropped, by age or for space. A dropped tick loses no
/// work: the next one covers everything that is due. A stream with schedules takes headers that purge it, so that nobody but
/// the operator may publish into it.
fn jobs() -> StreamConfig {
    let subjects = vec![format!("{JOB_ROOT}.>"), format!("{SCHEDULE_ROOT}.>")];
    let stream = StreamConfig::new(JOBS_STREAM, "Schedules of jobs, and their ticks.", subjects, 256 * MIB);
    StreamConfig {
        discard: Discard::Old,
        max_age: 3_650 * DAY,
        max_msg_size: 65_536,
        max_msgs_per_subject: 1_000,
        allow_msg_schedules: true,
        ..stream
    }
}

/// The ticks that events cause are apart from the schedules, because workers publish them. A dropped tick loses no work: the
/// job's schedule goes on. The limit on the ticks of each job is for a publisher that has gone wrong; a replica publishes none
/// while its last one waits. It is not 1, because the server takes a dropped message that is being processed for settled, and
/// would deliver the next one at the same time.
fn wakes(subjects: Vec<String>) -> StreamConfig {
    let description = "Ticks of jobs that events wake. No schedules: workers publish here.";
    let stream = StreamConfig::new(WAKES_STREAM, description, subjects, 16 * MIB);
    StreamConfig {
        discard: Discard::Old,
        max_age: HOUR,
        max_msg_size: 4_096,
        max_msgs_per_subject: 1_000,
        ..stream
    }
}

fn consumers_of(worker: &WorkerInfo) -> Vec<DurableConsumer> {
    let (mut consumers, mut advisories) = (Vec::new(), Vec::new());
    for Source { stream, consumer, what, subjects, max_ack_pending } in sources(worker) {
        advisories.push(format!("{MAX_DELIVERIES}.{stream}.{consumer}"));
        let description = format!(
            "{what} {}, shared by its replicas. The worker keeps the retry budget; max_deliver is the backstop.",
            worker.name
        );
        let limits = ConsumerLimits { max_deliver: 128, max_ack_pending };
        consumers.push(DurableConsumer::new(stream, consumer, description, subjects, limits));
    }
    if !advisories.is_empty() {
        let description = format!("Messages that {} never settled; it makes them dead letters.", worker.name);
        let limits = ConsumerLimits { max_deliver: UNLIMITED, max_ack_pending: 1_000 };
        let name = worker.advisory_consumer();
        consumers.push(DurableConsumer::new(ADVISORY, name, description, advisories, limits));
    }
    consumers
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use contract::CONTEXT_WRITER;
    use serde_json::json;

    use crate::Topology;

    use super::*;

    const WITH_JOBS: WorkerInfo =
        WorkerInfo { jobs: &["sync-forget", "retention-archive"], ..CONTEXT_WRITER };

    fn names(topology: &Topology) -> Vec<String> {
        let consumers = topology.consumers.iter().map(|one| format!("{}/{}", one.stream, one.name));
        topology.streams.iter().map(|stream| stream.name.clone()).chain(consumers).collect()
    }

    #[test]
    fn a_worker_has_a_stream_and_two_consumers() {
        let topology = Topology::of(&[CONTEXT_WRITER]).unwrap();
        let expected = [
            "ADVISORY",
            "CONTEXT",
            "DEAD",
            "EVENTS",
            "SEAL",
            "CONTEXT/context-writer",
            "ADVISORY/context-writer-advisory",
        ];
        assert_eq!(names(&topology), expected);
        let advisories = topology.consumers.get(1).unwrap();
        let subject = format!("{MAX_DELIVERIES}.CONTEXT.context-writer");
        assert_eq!(advisories.config.get("filter_subject"), Some(&json!(subject)));
        assert_eq!(advisories.config.get("filter_subjects"), None);
    }

    #[test]
    fn a_worker_with_jobs_consumes_their_ticks_too() {
        let topology = Topology::of(&[WITH_JOBS]).unwrap();
        let expected = [
            "ADVISORY",
            "CONTEXT",
            "DEAD",
            "EVENTS",
            "JOBS",
            "SEAL",
            "CONTEXT/context-writer",
            "ADVISORY/context-writer-advisory",
            "JOBS/context-writer-jobs",
        ];
        assert_eq!(names(&topology), expected);
        let stream = topology.streams.iter().find(|stream| stream.name == JOBS_STREAM).unwrap();
        for (field, value) in [
            ("subjects", json!(["memory.job.>", "memory.schedule.>"])),
            ("retention", json!("limits")),
            ("storage", json!("file")),
            ("allow_msg_schedules", json!(true)),
        ] {
            assert_eq!(stream.config.get(field), Some(&value), "{field}");
        }
        let consumer = |name: &str| topology.consumers.iter().find(|one| one.name == name).unwrap();
        let ticks = json!(["memory.job.sync-forget", "memory.job.retention-archive"]);
        assert_eq!(consumer("context-writer-jobs").config.get("filter_subjects"), Some(&ticks));
        let at_once = consumer("context-writer-jobs").config.get("max_ack_pending");
        assert_eq!(at_once, Some(&json!(2)), "as many as jobs");
        let advisories = json!([
            format!("{MAX_DELIVERIES}.CONTEXT.context-writer"),
            format!("{MAX_DELIVERIES}.JOBS.context-writer-jobs"),
        ]);
        let config = &consumer("context-writer-advisory").config;
        assert_eq!(config.get("filter_subjects"), Some(&advisories));
        assert_eq!(config.get("filter_subject"), None, "the server accepts one of the two only");
    }

    #[test]
    fn a_worker_with_woken_jobs_consumes_their_ticks_from_a_stream_without_schedules() {
        let worker = WorkerInfo { jobs: &["sync-forget", "sync-carry"], ..CONTEXT_WRITER };
        let topology = Topology::of(&[worker]).unwrap();
        let expected = [
            "ADVISORY",
            "CONTEXT",
            "DEAD",
            "EVENTS",
            "JOBS",
            "SEAL",
            "WAKES",
            "CONTEXT/context-writer",
            "ADVISORY/context-writer-advisory",
            "JOBS/context-writer-jobs",
            "WAKES/context-writer-wakes",
        ];
        assert_eq!(names(&topology), expected);
        let stream = topology.streams.iter().find(|stream| stream.name == WAKES_STREAM).unwrap();
        assert_eq!(stream.config.get("subjects"), Some(&json!(["memory.woken.sync-carry"])));
        assert_eq!(stream.config.get("discard"), Some(&json!("old")));
        assert_eq!(stream.config.get("allow_msg_schedules"), None);
        let consumer = |name: &str| topology.consumers.iter().find(|one| one.name == name).unwrap();
        let wakes = &consumer("context-writer-wakes").config;
        assert_eq!(wakes.get("filter_subject"), Some(&json!("memory.woken.sync-carry")));
        assert_eq!(wakes.get("max_ack_pending"), Some(&json!(1)), "as many as woken jobs");
        let advisories = consumer("context-writer-advisory").config.get("filter_subjects");
        let advisories: Vec<String> = serde_json::from_value(advisories.unwrap().clone()).unwrap();
        let of_wakes = format!("{MAX_DELIVERIES}.WAKES.context-writer-wakes");
        assert!(advisories.contains(&of_wakes), "{advisories:?}");
    }

    #[test]
    fn a_worker_can_have_jobs_alone() {
        let worker = WorkerInfo { stream: None, stream_bytes: 0, jobs: &["sweep"], ..CONTEXT_WRITER };
        let topology = Topology::of(&[worker]).unwrap();
        let expected = [
            "ADVISORY",
            "DEAD",
            "EVENTS",
            "JOBS",
            "SEAL",
            "ADVISORY/context-writer-advisory",
            "JOBS/context-writer-jobs",
        ];
        assert_eq!(names(&topology), expected);
        let ticks = topology.consumers.get(1).unwrap();
        assert_eq!(ticks.config.get("filter_subject"), Some(&json!("memory.job.sweep")));
    }
}
