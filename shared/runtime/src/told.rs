//! Which events of each session this replica has published, or has committed to publishing next.

use std::collections::{BTreeSet, HashMap};
use std::sync::{Mutex, MutexGuard, PoisonError};

use contract::{Event, UserId};
use store::clock::Session;

/// How many sessions are remembered. Of one that is forgotten, the latest events are published once more, which their ids
/// make harmless.
const KEPT: usize = 100_000;

/// Numbers of events by session. The stages after the commit go through batches in order, so that what has been handed to them
/// is published before anything that is appended later.
#[derive(Debug, Default)]
pub(crate) struct Told(Mutex<HashMap<(UserId, String), Numbers>>);

#[derive(Clone, Copy, Debug, Default)]
struct Numbers {
    published: i64,
    handed: i64,
}

impl Told {
    /// What is known of sessions.
    pub(crate) fn know<'a>(&self, sessions: BTreeSet<(UserId, &'a str)>) -> Vec<Session<'a>> {
        let known = self.lock();
        let know = |(user_id, session_id): (UserId, &'a str)| {
            let numbers = known.get(&(user_id, session_id.to_owned())).copied().unwrap_or_default();
            Session { user_id, session_id, published: numbers.published, handed: numbers.handed }
        };
        sessions.into_iter().map(know).collect()
    }

    /// These are committed and are published next.
    pub(crate) fn will<'a>(&self, events: impl Iterator<Item = &'a Event>) {
        let mut known = self.lock();
        if known.len() >= KEPT {
            known.clear();
        }
        for event in events {
            let numbers = known.entry((event.user_id, event.session_id.clone())).or_default();
            numbers.handed = numbers.handed.max(event.event_sequence);
        }
    }

    /// These are published.
    pub(crate) fn has<'a>(&self, events: impl Iterator<Item = &'a Event>) {
        let mut known = self.lock();
        for event in events {
            // One that was forgotten meanwhile stays so.
            if let Some(numbers) = known.get_mut(&(event.user_id, event.session_id.clone())) {
                numbers.published = numbers.published.max(event.event_sequence);
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<(UserId, String), Numbers>> {
        // Nothing panics under the lock.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
