//! A service's share of a replica: none may take all of it and leave the others waiting.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use contract::Service;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// What each service has under way.
#[derive(Debug)]
pub(crate) struct Shares {
    /// Queries of one service at a time, those that wait included.
    queries: usize,
    /// Of them, those that read from the database.
    reads: usize,
    /// Of services that the registry knows, of which there is a bounded number.
    services: Mutex<HashMap<Service, Share>>,
}

#[derive(Clone, Debug)]
struct Share {
    queries: Arc<Semaphore>,
    reads: Arc<Semaphore>,
}

/// A query that is under way.
pub(crate) struct Turn {
    _query: OwnedSemaphorePermit,
    reads: Arc<Semaphore>,
}

impl Shares {
    /// Shares of these sizes, at least one each.
    pub(crate) fn new(queries: usize, reads: usize) -> Self {
        Self { queries: queries.max(1), reads: reads.max(1), services: Mutex::default() }
    }

    /// Takes a query up. None if the service has as many under way as it may.
    pub(crate) fn take(&self, service: &Service) -> Option<Turn> {
        // Nothing panics under the lock.
        let mut services = self.services.lock().unwrap_or_else(PoisonError::into_inner);
        let share = services.entry(service.clone()).or_insert_with(|| Share {
            queries: Arc::new(Semaphore::new(self.queries)),
            reads: Arc::new(Semaphore::new(self.reads)),
        });
        let query = Arc::clone(&share.queries).try_acquire_owned().ok()?;
        Some(Turn { _query: query, reads: Arc::clone(&share.reads) })
    }
}

impl Turn {
    /// Waits until the service may read; for as long as this is kept it does.
    pub(crate) async fn read(&self) -> Option<OwnedSemaphorePermit> {
        // None would be a semaphore that was closed, which none is.
        Arc::clone(&self.reads).acquire_owned().await.ok()
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use super::*;

    #[tokio::test]
    async fn one_service_leaves_room_for_the_others() {
        let shares = Shares::new(2, 1);
        let (busy, other) = ("busy".parse().unwrap(), "other".parse().unwrap());
        let (first, second) = (shares.take(&busy).unwrap(), shares.take(&busy).unwrap());
        assert!(shares.take(&busy).is_none());
        assert!(shares.take(&other).is_some());
        let reading = first.read().await;
        let waiting = tokio::time::timeout(std::time::Duration::from_millis(1), second.read());
        assert!(waiting.await.is_err(), "one reads at a time");
        drop(reading);
        assert!(second.read().await.is_some());
        drop(first);
        assert!(shares.take(&busy).is_some());
    }
}
