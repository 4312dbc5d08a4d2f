//! The owners of collections that were checked a moment ago.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use uuid::Uuid;

/// How long a check of an owner counts.
const LIFETIME: Duration = Duration::from_secs(5);
/// The maximum number of checks that are remembered.
const CAPACITY: usize = 100;

/// The owner of a collection that this deployment may use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Owner {
    /// This deployment.
    Us,
    /// No owner is recorded: the collection is missing, or it was created by an earlier version.
    Nobody,
}

/// A collection, and the deployment for which its owner was checked.
type Key = (String, Uuid);

/// The checks of a process. Clones share the same cache.
#[derive(Clone, Debug, Default)]
pub(crate) struct OwnerCache {
    checks: Arc<Mutex<HashMap<Key, (Owner, Instant)>>>,
}

impl OwnerCache {
    /// The owner, if it was checked within the last 5 seconds.
    pub(crate) fn get(&self, key: &Key) -> Option<Owner> {
        let checks = self.lock();
        checks.get(key).filter(|(_, since)| since.elapsed() < LIFETIME).map(|(owner, _)| *owner)
    }

    /// Remembers an owner that was just checked. A full cache is cleared.
    pub(crate) fn insert(&self, key: Key, owner: Owner) {
        let mut checks = self.lock();
        if checks.len() >= CAPACITY {
            checks.clear();
        }
        checks.insert(key, (owner, Instant::now()));
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Key, (Owner, Instant)>> {
        // No code panics while holding the lock.
        self.checks.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
