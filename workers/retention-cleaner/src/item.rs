//! What the worker takes in: requests of its stream, and ticks of its job.

use contract::RetentionRequest;
use runtime::RequestOrTick;

/// A scheduled job.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Job {
    /// Removes what is due.
    Sweep,
}

impl runtime::Job for Job {
    const ALL: &'static [Self] = &[Self::Sweep];

    fn name(self) -> &'static str {
        match self {
            Self::Sweep => "retention-sweep",
        }
    }
}

/// A request of the stream RETENTION, or a tick.
pub type RetentionItem = RequestOrTick<RetentionRequest, Job>;
