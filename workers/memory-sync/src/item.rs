//! What the worker takes in: requests of its stream, and ticks of its jobs.

use contract::{EventType, Malformed, Redacted, RequestFacts, RequestSubject, SyncRequest, Tick};
use runtime::WorkItem;

/// A scheduled job.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Job {
    /// Carries on the syncs that are not completed.
    Carry,
    /// Forgets removals that all sessions have seen.
    Forget,
}

impl Job {
    /// Its name in the catalogue.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Carry => "sync-carry",
            Self::Forget => "sync-forget",
        }
    }
}

/// A request or a tick.
// A batch holds references to items, and most are requests.
#[allow(clippy::large_enum_variant)]
#[derive(Clone, Debug)]
pub enum SyncItem {
    /// A request of the stream SYNC.
    Request(SyncRequest),
    /// A tick.
    Tick(Job),
}

impl WorkItem for SyncItem {
    fn from_request(subject: &RequestSubject, body: &[u8]) -> Result<Redacted<Self>, Malformed> {
        let Redacted { request, secrets } = <SyncRequest as WorkItem>::from_request(subject, body)?;
        Ok(Redacted { request: Self::Request(request), secrets })
    }

    fn from_tick(tick: &Tick) -> Result<Self, Malformed> {
        let jobs = [Job::Carry, Job::Forget];
        let job = jobs.into_iter().find(|job| job.name() == tick.job.as_str());
        job.map(Self::Tick)
            .ok_or_else(|| Malformed::new("subject", format!("this worker has no job {}", tick.job)))
    }

    fn facts(&self) -> Option<&dyn RequestFacts> {
        match self {
            Self::Request(request) => WorkItem::facts(request),
            Self::Tick(_) => None,
        }
    }

    fn event(&self, has_secrets: bool) -> Option<(EventType, Option<String>)> {
        match self {
            Self::Request(request) => WorkItem::event(request, has_secrets),
            Self::Tick(_) => None,
        }
    }
}
