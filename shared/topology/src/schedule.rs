//! Schedules of jobs: messages of the stream JOBS, by which the server publishes the ticks.

use async_nats::HeaderMap;
use async_nats::jetstream::{self, ErrorCode, stream::LastRawMessageErrorKind};
use contract::{JOB_ROOT, JOBS_STREAM, SCHEDULE_ROOT, SCHEDULES};
use serde_json::Value;

use crate::TopologyError;
use crate::change::{Change, Target};
use crate::file::Topology;

/// A job and how often it runs.
type Schedule = (&'static str, &'static str);

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
) -> Result<Vec<(Change, Schedule)>, TopologyError> {
    let mut absent = Vec::new();
    for schedule in wanted(topology) {
        if !exists(broker, schedule.0).await? {
            let target = Target::Schedule(schedule.0.to_owned());
            absent.push((Change { target, field: None }, schedule));
        }
    }
    Ok(absent)
}

/// Whether the broker has a schedule of a job. It has none without the stream.
pub(crate) async fn exists(broker: &jetstream::Context, job: &str) -> Result<bool, TopologyError> {
    let unknown =
        |problem: String| TopologyError::Unknown { target: Target::Stream(JOBS_STREAM.to_owned()), problem };
    let stream = broker.get_stream_no_info(JOBS_STREAM).await.map_err(|error| unknown(error.to_string()))?;
    match stream.get_last_raw_message_by_subject(&format!("{SCHEDULE_ROOT}.{job}")).await {
        Ok(_) => Ok(true),
        Err(error) => match error.kind() {
            LastRawMessageErrorKind::NoMessageFound => Ok(false),
            LastRawMessageErrorKind::JetStream(error)
                if error.error_code() == ErrorCode::STREAM_NOT_FOUND =>
            {
                Ok(false)
            }
            LastRawMessageErrorKind::JetStream(_)
            | LastRawMessageErrorKind::InvalidSubject
            | LastRawMessageErrorKind::Other => Err(unknown(error.to_string())),
        },
    }
}

/// Publishes a schedule, unless the job has got one meanwhile.
pub(crate) async fn publish(
    broker: &jetstream::Context,
    (job, every): Schedule,
) -> Result<(), TopologyError> {
    let subject = format!("{SCHEDULE_ROOT}.{job}");
    let refused =
        |problem: String| TopologyError::Refused { refused: format!("the schedule {subject}"), problem };
    let mut headers = HeaderMap::new();
    headers.insert("Nats-Schedule", every);
    headers.insert("Nats-Schedule-Target", format!("{JOB_ROOT}.{job}"));
    headers.insert("Nats-Expected-Last-Subject-Sequence", "0");
    let sent = broker.publish_with_headers(subject.clone(), headers, "".into()).await;
    let sent = sent.map_err(|error| refused(error.to_string()))?;
    match sent.await {
        Ok(_) => Ok(()),
        Err(error) if error.kind() == jetstream::context::PublishErrorKind::WrongLastSequence => Ok(()),
        Err(error) => Err(refused(error.to_string())),
    }
}
