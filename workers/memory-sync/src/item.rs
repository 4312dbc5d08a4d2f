//! What the worker takes in: requests of its stream, and ticks of its jobs.

use contract::SyncRequest;
use runtime::RequestOrTick;

/// A scheduled job.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Job {
    /// Carries on the syncs that are not completed.
    Carry,
    /// Forgets removals that all sessions have seen.
    Forget,
}

impl runtime::Job for Job {
    const ALL: &'static [Self] = &[Self::Carry, Self::Forget];

    fn name(self) -> &'static str {
        match self {
            Self::Carry => "sync-carry",
            Self::Forget => "sync-forget",
        }
    }
}

/// A request of the stream SYNC, or a tick.
pub type SyncItem = RequestOrTick<SyncRequest, Job>;
