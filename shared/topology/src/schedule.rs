//! Schedules of jobs: messages of the stream JOBS, by which the server publishes the ticks.

use async_nats::jetstream::message::StreamMessage;
use async_nats::jetstream::{self, ErrorCode, stream::LastRawMessageErrorKind};
use async_nats::{HeaderMap, HeaderValue};
use contract::header::PAUSED;
use contract::{JOB_ROOT, JOBS_STREAM, SCHEDULE_ROOT, SCHEDULES};
use serde_json::Value;

use crate::TopologyError;
use crate::change::{Change, Target};
use crate::file::Topology;

/// The header that makes a message a schedule: how often the server publishes ticks.
pub(crate) const SCHEDULE: &str = "Nats-Schedule";
/// The subject of these ticks.
pub(crate) const TARGET: &str = "Nats-Schedule-Target";
/// The time zone of a cron expression.
pub(crate) const ZONE: &str = "Nats-Schedule-Time-Zone";

/// A job and how often it runs.
type Schedule = (&'static str, &'static str);

/// A schedule that the broker lacks.
pub(crate) struct Absent {
    pub(crate) change: Change,
    schedule: Schedule,
    /// The sequence number of the message in its place, which is no schedule of the job; 0 if there is none.
    in_place: u64,
}

/// The schedules of the jobs whose ticks a topology has consumers for.
fn wanted(topology: &Topology) -> impl Iterator<Item = Schedule> {
    let subjects = |field: &Value| match field {
        Value::String(subject) => vec![subject.clone()],
        Value::Array(subjects) => subjects.iter().filter_map(Value::as_str).map(str::to_owned).collect(),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::Object(_) => Vec::new(),
    };
    let filters: Vec<String> = topology
        .consumers
        .iter()
        .filter(|consumer| consumer.stream == JOBS_STREAM)
        .flat_map(|consumer| ["filter_subject", "filter_subjects"].map(|name| consumer.config.get(name)))
        .flatten()
        .flat_map(subjects)
        .collect();
    SCHEDULES.iter().copied().filter(move |(job, _)| filters.contains(&format!("{JOB_ROOT}.{job}")))
}

/// The schedules that a topology needs and the broker lacks. One that an operator has changed stays as it is.
pub(crate) async fn absent(
    broker: &jetstream::Context,
    topology: &Topology,
) -> Result<Vec<Absent>, TopologyError> {
    let mut absent = Vec::new();
    for schedule in wanted(topology) {
        let (job, _) = schedule;
        let in_place = match last_message(broker, job).await? {
            Some(last) if is_schedule(&last, job) => continue,
            Some(last) => last.sequence,
            None => 0,
        };
        let change = Change { target: Target::Schedule(job.to_owned()), field: None };
        absent.push(Absent { change, schedule, in_place });
    }
    Ok(absent)
}

/// Whether the broker has a schedule of a job.
pub(crate) async fn exists(broker: &jetstream::Context, job: &str) -> Result<bool, TopologyError> {
    Ok(last_message(broker, job).await?.is_some_and(|last| is_schedule(&last, job)))
}

/// Whether a message makes the server publish the ticks of a job, at whatever times, or an operator has paused them.
fn is_schedule(message: &StreamMessage, job: &str) -> bool {
    let value = |name: &str| message.headers.get(name).map(HeaderValue::as_str);
    let target = format!("{JOB_ROOT}.{job}");
    value(PAUSED).is_some() || value(SCHEDULE).is_some() && value(TARGET) == Some(target.as_str())
}

/// The last message on the subject of a job's schedule; a schedule replaces those before it. There is none without the stream.
pub(crate) async fn last_message(
    broker: &jetstream::Context,
    job: &str,
) -> Result<Option<StreamMessage>, TopologyError> {
    let unknown =
        |problem: String| TopologyError::Unknown { target: Target::Stream(JOBS_STREAM.to_owned()), problem };
    let stream = broker.get_stream_no_info(JOBS_STREAM).await.map_err(|error| unknown(error.to_string()))?;
    match stream.get_last_raw_message_by_subject(&format!("{SCHEDULE_ROOT}.{job}")).await {
        Ok(message) => Ok(Some(message)),
        Err(error) => match error.kind() {
            LastRawMessageErrorKind::NoMessageFound => Ok(None),
            LastRawMessageErrorKind::JetStream(error)
                if error.error_code() == ErrorCode::STREAM_NOT_FOUND =>
            {
                Ok(None)
            }
            LastRawMessageErrorKind::JetStream(_)
            | LastRawMessageErrorKind::InvalidSubject
            | LastRawMessageErrorKind::Other => Err(unknown(error.to_string())),
        },
    }
}

/// Publishes a schedule, unless something else has come into its place meanwhile.
pub(crate) async fn publish(broker: &jetstream::Context, absent: &Absent) -> Result<(), TopologyError> {
    let (job, every) = absent.schedule;
    let subject = format!("{SCHEDULE_ROOT}.{job}");
    let refused =
        |problem: String| TopologyError::Refused { refused: format!("the schedule {subject}"), problem };
    let mut headers = HeaderMap::new();
    headers.insert(SCHEDULE, every);
    headers.insert(TARGET, format!("{JOB_ROOT}.{job}"));
    headers.insert("Nats-Expected-Last-Subject-Sequence", absent.in_place.to_string());
    let sent = broker.publish_with_headers(subject.clone(), headers, "".into()).await;
    let sent = sent.map_err(|error| refused(error.to_string()))?;
    match sent.await {
        Ok(_) => Ok(()),
        Err(error) if error.kind() == jetstream::context::PublishErrorKind::WrongLastSequence => Ok(()),
        Err(error) => Err(refused(error.to_string())),
    }
}
