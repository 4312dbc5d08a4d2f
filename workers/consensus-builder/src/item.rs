//! What the worker takes in: requests of its stream, and ticks of its jobs.

use contract::ConsensusRequest;
use runtime::RequestOrTick;

/// A scheduled job.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Job {
    /// Closes tasks that are past their deadline.
    Close,
    /// Estimates the records of agents anew.
    Reestimate,
}

impl runtime::Job for Job {
    const ALL: &'static [Self] = &[Self::Close, Self::Reestimate];

    fn name(self) -> &'static str {
        match self {
            Self::Close => "consensus-close",
            Self::Reestimate => "consensus-reestimate",
        }
    }
}

/// A request of the stream CONSENSUS, or a tick.
pub type ConsensusItem = RequestOrTick<ConsensusRequest, Job>;
