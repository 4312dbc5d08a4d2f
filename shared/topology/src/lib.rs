//! Streams and consumers as files, and what a broker lacks of them.
//!
//! The files are JSON as the JetStream API takes it, durations in nanoseconds, in two folders:
//! `streams/*.json` holds a `StreamConfig` each, `consumers/*.json` a consumer's `{"stream_name", "config"}`.
//!
//! Only what a file names is compared and changed; the rest stays as the server has it. Nothing is ever deleted.

mod change;
mod file;
mod nkeys;
mod permission;
mod plan;
mod service;

pub use change::{Change, FieldChange, Target};
pub use file::{Consumer, Stream, Topology};
pub use nkeys::make_nkeys;
pub use permission::{API_PREFIX, Account, INCLUDED_NKEYS, Identity, identities, render, variable};
pub use service::Service;

use async_nats::jetstream;

/// Streams and consumers cannot be read or made as they should be.
#[derive(Debug, thiserror::Error)]
pub enum TopologyError {
    /// A file or folder cannot be read.
    #[error("{path}: {problem}")]
    Unreadable {
        /// Which.
        path: String,
        /// What the system says.
        problem: String,
    },
    /// A file holds no configuration of a stream or a consumer.
    #[error("{file}: {problem}")]
    Invalid {
        /// Which.
        file: String,
        /// What is wrong, and where.
        problem: String,
    },
    /// The server does not say what it has.
    #[error("the broker cannot be asked about {target}: {problem}")]
    Unknown {
        /// The stream or consumer.
        target: Target,
        /// What the server or the network says.
        problem: String,
    },
    /// The server refuses what the file asks for.
    #[error("the broker refuses {refused}: {problem}; nothing was deleted, what was done before stays")]
    Refused {
        /// What it refuses: the stream or consumer, and the fields that would change.
        refused: String,
        /// What the server or the network says.
        problem: String,
    },
}

/// What the broker lacks of a topology, streams before consumers. Changes nothing.
///
/// # Errors
/// [`TopologyError::Unknown`] if the broker cannot be asked. Each query has the deadline of the JetStream
/// context.
pub async fn diff(broker: &jetstream::Context, topology: &Topology) -> Result<Vec<Change>, TopologyError> {
    let steps = plan::plan(broker, topology).await?;
    Ok(steps.into_iter().flat_map(|step| step.changes).collect())
}

/// Creates and updates what the broker lacks of a topology, and says what that was. Applied again, it does
/// nothing.
///
/// # Errors
/// [`TopologyError::Unknown`] if the broker cannot be asked, [`TopologyError::Refused`] at the first stream or
/// consumer that it refuses, for example because storage cannot change.
pub async fn apply(broker: &jetstream::Context, topology: &Topology) -> Result<Vec<Change>, TopologyError> {
    let steps = plan::plan(broker, topology).await?;
    let mut done = Vec::new();
    for step in steps {
        plan::carry_out(broker, &step).await?;
        done.extend(step.changes);
    }
    Ok(done)
}
