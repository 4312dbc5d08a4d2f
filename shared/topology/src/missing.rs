//! What a broker lacks that the workers of the catalogue need.

use std::fmt;

use async_nats::jetstream;
use contract::{JOBS_STREAM, SCHEDULE_ROOT, WorkerInfo};

use crate::change::Target;
use crate::file::Topology;
use crate::{TopologyError, plan, schedule};

/// Something that a worker needs and the broker lacks. `memfleet nats apply` creates it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Missing {
    /// A stream or a consumer.
    Target(Target),
    /// The schedule of this job: a message of the stream JOBS.
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
    let steps = plan::plan(broker, &Topology::of(workers)?).await?;
    let changes = steps.into_iter().flat_map(|step| step.changes);
    let absent = changes.filter(|change| change.field.is_none()).map(|change| change.target);
    let mut missing: Vec<Missing> = absent.map(Missing::Target).collect();
    let jobs = Missing::Target(Target::Stream(JOBS_STREAM.to_owned()));
    let without_jobs = missing.contains(&jobs);
    for job in workers.iter().flat_map(|worker| worker.jobs) {
        if without_jobs || !schedule::exists(broker, job).await? {
            missing.push(Missing::Schedule(job));
        }
    }
    Ok(missing)
}
