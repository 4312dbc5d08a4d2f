//! Which events of each session this replica has published, or has committed to publishing next.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use contract::{Event, UserId};

/// How many sessions are remembered. Of one that is forgotten, the latest events are published once more, which their ids
/// make harmless.
const KEPT: usize = 100_000;

/// Numbers of events by session. The stages after the commit go through batches in order, so that what has been handed to them
/// is published before anything that is appended later.
#[derive(Debug, Default)]
pub(crate) struct Watermarks(Mutex<HashMap<(UserId, String), Marks>>);

/// Numbers of events of one session.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Marks {
    /// Up to this one they are published.
    pub(crate) published: i64,
    /// Up to this one they are committed and are published next.
    pub(crate) enqueued: i64,
}

impl Watermarks {
    /// What is known of a session; zeros if nothing is.
    pub(crate) fn of(&self, user_id: UserId, session_id: &str) -> Marks {
        self.lock().get(&(user_id, session_id.to_owned())).copied().unwrap_or_default()
    }

    /// These are committed and are published next.
    pub(crate) fn enqueued<'a>(&self, events: impl Iterator<Item = &'a Event>) {
        let mut known = self.lock();
        if known.len() >= KEPT {
            known.clear();
        }
        for event in events {
            let marks = known.entry((event.user_id, event.session_id.clone())).or_default();
            marks.enqueued = marks.enqueued.max(event.event_sequence);
        }
    }

    /// These are published.
    pub(crate) fn published<'a>(&self, events: impl Iterator<Item = &'a Event>) {
        let mut known = self.lock();
        for event in events {
            // One that was forgotten meanwhile stays so.
            if let Some(marks) = known.get_mut(&(event.user_id, event.session_id.clone())) {
                marks.published = marks.published.max(event.event_sequence);
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<(UserId, String), Marks>> {
        // Nothing panics under the lock.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use super::*;

    fn event(user: i32, session_id: &str, event_sequence: i64) -> Event {
        serde_json::from_value(serde_json::json!({
            "event_id": uuid::Uuid::nil(), "event_sequence": event_sequence, "event_type": "context.stored",
            "performative": "inform", "source_agent_id": "a", "user_id": user, "session_id": session_id,
            "logical_timestamp": 1, "created_at": "2026-11-01T00:00:00Z", "payload": {}
        }))
        .unwrap()
    }

    #[test]
    fn marks_rise_and_are_of_one_session_of_one_user() {
        let marks = Watermarks::default();
        let of = |user: i32, session: &str| {
            let marks = marks.of(UserId::new(user).unwrap(), session);
            (marks.published, marks.enqueued)
        };
        marks.enqueued([event(1, "s", 7), event(1, "s", 5), event(2, "s", 9)].iter());
        assert_eq!((of(1, "s"), of(2, "s"), of(1, "t")), ((0, 7), (0, 9), (0, 0)));
        marks.published([event(1, "s", 5), event(1, "t", 99)].iter());
        assert_eq!((of(1, "s"), of(1, "t")), ((5, 7), (0, 0)), "what was never enqueued is not remembered");
    }
}
