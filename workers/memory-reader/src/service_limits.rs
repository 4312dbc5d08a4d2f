//! Concurrency limits per service, so that no service uses a replica's whole capacity.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use contract::Service;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// The concurrency limits of every service, and what each has in use.
#[derive(Debug)]
pub(crate) struct ServiceLimits {
    /// The maximum number of queries of one service in progress, including those that wait for a connection.
    max_queries: usize,
    /// The maximum number of them that read from the database.
    max_reads: usize,
    /// Services that have sent a query. `None` for those beyond [`MAX_SERVICES`], which share one limit.
    services: Mutex<HashMap<Option<Service>, Semaphores>>,
}

/// Maximum number of services that are told apart. A server without accounts accepts any name.
const MAX_SERVICES: usize = 1_024;

#[derive(Clone, Debug)]
struct Semaphores {
    queries: Arc<Semaphore>,
    reads: Arc<Semaphore>,
}

/// The right to process a query, until it is dropped.
pub(crate) struct Permit {
    _query: OwnedSemaphorePermit,
    reads: Arc<Semaphore>,
}

impl ServiceLimits {
    /// Limits of these sizes, at least one each.
    pub(crate) fn new(max_queries: usize, max_reads: usize) -> Self {
        Self { max_queries: max_queries.max(1), max_reads: max_reads.max(1), services: Mutex::default() }
    }

    /// Admits a query of a service. `None` if the service is at its limit.
    pub(crate) fn try_acquire(&self, service: &Service) -> Option<Permit> {
        // No code panics while holding the lock.
        let mut services = self.services.lock().unwrap_or_else(PoisonError::into_inner);
        let known = Some(service.clone());
        let is_known = services.len() < MAX_SERVICES || services.contains_key(&known);
        let semaphores = services.entry(known.filter(|_| is_known)).or_insert_with(|| Semaphores {
            queries: Arc::new(Semaphore::new(self.max_queries)),
            reads: Arc::new(Semaphore::new(self.max_reads)),
        });
        let query = Arc::clone(&semaphores.queries).try_acquire_owned().ok()?;
        Some(Permit { _query: query, reads: Arc::clone(&semaphores.reads) })
    }
}

impl Permit {
    /// Waits until the service may read from the database, until the result is dropped.
    pub(crate) async fn acquire_read(&self) -> Option<OwnedSemaphorePermit> {
        // None would mean a closed semaphore, and none is ever closed.
        Arc::clone(&self.reads).acquire_owned().await.ok()
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use super::*;

    #[tokio::test]
    async fn one_service_leaves_room_for_the_others() {
        let limits = ServiceLimits::new(2, 1);
        let (busy, other) = ("busy".parse().unwrap(), "other".parse().unwrap());
        let (first, second) = (limits.try_acquire(&busy).unwrap(), limits.try_acquire(&busy).unwrap());
        assert!(limits.try_acquire(&busy).is_none());
        assert!(limits.try_acquire(&other).is_some());
        let reading = first.acquire_read().await;
        let waiting = tokio::time::timeout(std::time::Duration::from_millis(1), second.acquire_read());
        assert!(waiting.await.is_err(), "one reads at a time");
        drop(reading);
        assert!(second.acquire_read().await.is_some());
        drop(first);
        assert!(limits.try_acquire(&busy).is_some());
    }

    #[test]
    fn the_number_of_services_is_limited() {
        let limits = ServiceLimits::new(1, 1);
        for number in 0..MAX_SERVICES * 2 {
            drop(limits.try_acquire(&format!("s{number}").parse().unwrap()));
        }
        assert_eq!(limits.services.lock().unwrap().len(), MAX_SERVICES + 1);
    }
}
