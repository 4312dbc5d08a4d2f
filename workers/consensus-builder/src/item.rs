//! What the worker takes in: requests of its stream, and ticks of its jobs.

use contract::{ConsensusRequest, EventType, Malformed, Redacted, RequestFacts, RequestSubject, Tick};
use runtime::WorkItem;

/// A scheduled job.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Job {
    /// Closes tasks that are past their deadline.
    Close,
    /// Estimates the records of agents anew.
    Reestimate,
}

impl Job {
    /// Its name in the catalogue.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Close => "consensus-close",
            Self::Reestimate => "consensus-reestimate",
        }
    }
}

/// A request or a tick.
// A batch holds references to items, and most are requests.
#[allow(clippy::large_enum_variant)]
#[derive(Clone, Debug)]
pub enum ConsensusItem {
    /// A request of the stream CONSENSUS.
    Request(ConsensusRequest),
    /// A tick.
    Tick(Job),
}

impl WorkItem for ConsensusItem {
    fn from_request(subject: &RequestSubject, body: &[u8]) -> Result<Redacted<Self>, Malformed> {
        let Redacted { request, secrets } = <ConsensusRequest as WorkItem>::from_request(subject, body)?;
        Ok(Redacted { request: Self::Request(request), secrets })
    }

    fn from_tick(tick: &Tick) -> Result<Self, Malformed> {
        let jobs = [Job::Close, Job::Reestimate];
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
