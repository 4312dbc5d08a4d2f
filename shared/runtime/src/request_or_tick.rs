//! The input of a worker that has a stream and jobs.

use std::fmt;

use contract::{EventType, Malformed, Redacted, RequestFacts, RequestSubject, StreamRequest, Tick};

use crate::worker::WorkItem;

/// The jobs of a worker, an enumeration.
pub trait Job: Copy + fmt::Debug + Send + Sync + 'static {
    /// Each of them.
    const ALL: &'static [Self];

    /// Its name in the catalogue ([`contract::WorkerInfo::jobs`]).
    fn name(self) -> &'static str;
}

/// A request of the worker's stream, or a tick of one of its jobs.
// A batch holds references to items, and most are requests.
#[allow(clippy::large_enum_variant)]
#[derive(Clone, Debug)]
pub enum RequestOrTick<R, J> {
    /// A request.
    Request(R),
    /// A tick of this job.
    Tick(J),
}

impl<R: StreamRequest, J: Job> WorkItem for RequestOrTick<R, J> {
    fn from_request(subject: &RequestSubject, body: &[u8]) -> Result<Redacted<Self>, Malformed> {
        let Redacted { request, secrets } = <R as WorkItem>::from_request(subject, body)?;
        Ok(Redacted { request: Self::Request(request), secrets })
    }

    fn from_tick(tick: &Tick) -> Result<Self, Malformed> {
        let job = J::ALL.iter().find(|job| job.name() == tick.job.as_str());
        job.map(|job| Self::Tick(*job))
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
