//! What a broker lacks that the workers of the catalogue need.

use std::fmt;

use async_nats::jetstream;
use async_nats::jetstream::stream::LastRawMessageErrorKind;
use contract::{JOBS_STREAM, SCHEDULE_ROOT, WorkerInfo};

use crate::change::Target;
use crate::file::Topology;
use crate::{TopologyError, diff};

/// Something that a worker needs and the broker lacks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Missing {
    /// A stream or a consumer, which `memfleet nats apply` creates.
    Target(Target),
    /// The schedule of this job: a message of the stream JOBS, which an operator publishes.
    Schedule(&'static str),
}

impl fmt::Display for Missing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Target(target) => target.fmt(f),
            Self::Schedule(job) => write!(f, "schedule {SCHEDULE_ROOT}.{job}"),
        }
    }
}

/// The streams, consumers (those of requests, ticks and advisories) and schedules that these workers need and the
/// broker lacks. Streams come before consumers, and schedules last.
///
/// # Errors
/// [`TopologyError::Unknown`] if the broker's configuration cannot be read.
pub async fn missing(
    broker: &jetstream::Context,
    workers: &[WorkerInfo],
) -> Result<Vec<Missing>, TopologyError> {
    let changes = diff(broker, &Topology::of(workers)?).await?;
    let absent = changes.into_iter().filter(|change| change.field.is_none()).map(|change| change.target);
    let mut missing: Vec<Missing> = absent.map(Missing::Target).collect();
    let jobs = Missing::Target(Target::Stream(JOBS_STREAM.to_owned()));
    let without_jobs = missing.contains(&jobs);
    for job in workers.iter().flat_map(|worker| worker.jobs) {
        if without_jobs || !has_schedule(broker, job).await? {
            missing.push(Missing::Schedule(job));
        }
    }
    Ok(missing)
}

async fn has_schedule(broker: &jetstream::Context, job: &str) -> Result<bool, TopologyError> {
    let unknown =
        |problem: String| TopologyError::Unknown { target: Target::Stream(JOBS_STREAM.to_owned()), problem };
    let stream = broker.get_stream_no_info(JOBS_STREAM).await.map_err(|error| unknown(error.to_string()))?;
    match stream.get_last_raw_message_by_subject(&format!("{SCHEDULE_ROOT}.{job}")).await {
        Ok(_) => Ok(true),
        Err(error) if error.kind() == LastRawMessageErrorKind::NoMessageFound => Ok(false),
        Err(error) => Err(unknown(error.to_string())),
    }
}
