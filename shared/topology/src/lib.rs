//! The streams, consumers and identities that a broker needs, and how a broker differs from them.
//!
//! They are derived from the catalogue of workers (`contract::WORKERS`) and from `nats/services.json`. The folder
//! `nats/` contains them as documents, which operators can change and apply instead: each file in `streams/*.json` is a
//! `StreamConfig`, each file in `consumers/*.json` is `{"stream_name", "config"}`, with the field names of the
//! JetStream API and durations in nanoseconds.
//!
//! Only the fields that a document names are compared and changed; the others stay as the server has them. Nothing is
//! deleted.

mod catalogue;
mod certificates;
mod change;
mod config;
mod cron;
mod document;
mod every;
mod file;
mod missing;
mod nkeys;
mod permission;
mod plan;
mod schedule;
mod schedule_command;
mod service;

pub use certificates::make_certificates;
pub use change::{Change, FieldChange, Target};
pub use document::{Document, documents};
pub use file::{Consumer, Stream, Topology};
pub use missing::{Missing, missing};
pub use nkeys::make_nkeys;
pub use permission::{API_PREFIX, Account, INCLUDED_NKEYS, Identity, identities, render, variable};
pub use schedule_command::{JobSchedule, pause, resume, run_now, schedules, set_schedule};
pub use service::Service;

use std::path::Path;

use async_nats::jetstream;

/// Why a topology cannot be read or applied.
#[derive(Debug, thiserror::Error)]
pub enum TopologyError {
    /// A file or folder cannot be read or written.
    #[error("{path}: {problem}")]
    Unreadable {
        /// Its path.
        path: String,
        /// The error of the operating system.
        problem: String,
    },
    /// A file is not a configuration of a stream, a consumer or a service.
    #[error("{file}: {problem}")]
    Invalid {
        /// Its path.
        file: String,
        /// What is wrong, and where.
        problem: String,
    },
    /// The broker's current configuration cannot be read.
    #[error("cannot read the configuration of {target} from the broker: {problem}")]
    Unknown {
        /// The stream or consumer.
        target: Target,
        /// The error of the server or of the connection.
        problem: String,
    },
    /// A job cannot be scheduled as it is asked for. Nothing was sent to the broker.
    #[error("job {job}: {problem}")]
    Schedule {
        /// The job, as it was named.
        job: String,
        /// What is wrong, and what is possible.
        problem: String,
    },
    /// The broker rejects a change.
    #[error("the broker refuses {refused}: {problem}; nothing was deleted, earlier changes stay applied")]
    Refused {
        /// The stream or consumer, and the fields that would change.
        refused: String,
        /// The error of the server or of the connection.
        problem: String,
    },
}

/// The differences between a topology and the broker, streams before consumers, and schedules last. It changes nothing.
///
/// # Errors
/// [`TopologyError::Unknown`] if the broker's configuration cannot be read. Each request has the timeout of the
/// JetStream context.
pub async fn diff(broker: &jetstream::Context, topology: &Topology) -> Result<Vec<Change>, TopologyError> {
    let steps = plan::plan(broker, topology).await?;
    let schedules = schedule::absent(broker, topology).await?.into_iter().map(|absent| absent.change);
    Ok(steps.into_iter().flat_map(|step| step.changes).chain(schedules).collect())
}

/// Creates and updates streams and consumers so that the broker matches a topology, creates the schedules of its jobs that
/// the broker lacks, in the place of what is none, and returns the changes. A second call changes nothing.
///
/// # Errors
/// [`TopologyError::Unknown`] if the broker's configuration cannot be read, [`TopologyError::Refused`] for the first
/// stream or consumer that the broker rejects, for example because the storage type of a stream cannot change.
pub async fn apply(broker: &jetstream::Context, topology: &Topology) -> Result<Vec<Change>, TopologyError> {
    let steps = plan::plan(broker, topology).await?;
    let mut done = Vec::new();
    for step in steps {
        plan::execute(broker, &step).await?;
        done.extend(step.changes);
    }
    for absent in schedule::absent(broker, topology).await? {
        schedule::publish(broker, &absent).await?;
        done.push(absent.change);
    }
    Ok(done)
}

pub(crate) fn unreadable(path: &Path, problem: &str) -> TopologyError {
    TopologyError::Unreadable { path: path.display().to_string(), problem: problem.to_owned() }
}

pub(crate) fn invalid(file: &str, problem: String) -> TopologyError {
    TopologyError::Invalid { file: file.to_owned(), problem }
}
