//! What the worker takes in: requests of its stream, and ticks of its job.

use contract::RetentionRequest;
use runtime::RequestOrTick;

/// A scheduled job.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Job {
    /// Removes what is due.
    Sweep,
    /// Looks after the platform: partitions, figures, anomalies, and what ages out.
    Maintain,
}

impl runtime::Job for Job {
    const ALL: &'static [Self] = &[Self::Sweep, Self::Maintain];

    fn name(self) -> &'static str {
        match self {
            Self::Sweep => "retention-sweep",
            Self::Maintain => "maintenance",
        }
    }
}

/// A request of the stream RETENTION, or a tick.
pub type RetentionItem = RequestOrTick<RetentionRequest, Job>;
