//! The events of each session up to which this replica has published, or has committed and enqueued for publishing.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use contract::{Event, UserId};

/// Maximum number of sessions kept; all are dropped when it is reached. The latest events of a dropped session are then
/// published again, and the broker deduplicates them by event id.
const MAX_SESSIONS: usize = 100_000;

/// The watermarks by session. The stages after the commit process batches in order, so enqueued events are published
/// before any event that is appended later.
#[derive(Debug, Default)]
pub(crate) struct Watermarks(Mutex<HashMap<(UserId, String), Marks>>);

/// The watermarks of one session, as event sequence numbers.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Marks {
    /// Events up to this one are published.
    pub(crate) published: i64,
    /// Events up to this one are committed and enqueued for publishing.
    pub(crate) enqueued: i64,
}

impl Watermarks {
    /// The watermarks of a session; zeros if it is unknown.
    pub(crate) fn of(&self, user_id: UserId, session_id: &str) -> Marks {
        self.lock().get(&(user_id, session_id.to_owned())).copied().unwrap_or_default()
    }

    /// Records events that are committed and enqueued for publishing. None of them may wait for another worker.
    pub(crate) fn enqueued<'a>(&self, events: impl Iterator<Item = &'a Event>) {
        let mut known = self.lock();
        if known.len() >= MAX_SESSIONS {
            known.clear();
        }
        for event in events {
            let marks = known.entry((event.user_id, event.session_id.clone())).or_default();
            marks.enqueued = marks.enqueued.max(event.event_sequence);
        }
    }

    /// Records published events.
    pub(crate) fn published<'a>(&self, events: impl Iterator<Item = &'a Event>) {
        let mut known = self.lock();
        for event in events {
            // A session that was dropped meanwhile is not added again.
            if let Some(marks) = known.get_mut(&(event.user_id, event.session_id.clone())) {
                marks.published = marks.published.max(event.event_sequence);
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<(UserId, String), Marks>> {
        // No code panics while holding the lock.
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
    fn marks_only_rise_and_belong_to_one_session_of_one_user() {
        let marks = Watermarks::default();
        let of = |user: i32, session: &str| {
            let marks = marks.of(UserId::new(user).unwrap(), session);
            (marks.published, marks.enqueued)
        };
        marks.enqueued([event(1, "s", 7), event(1, "s", 5), event(2, "s", 9)].iter());
        assert_eq!((of(1, "s"), of(2, "s"), of(1, "t")), ((0, 7), (0, 9), (0, 0)));
        marks.published([event(1, "s", 5), event(1, "t", 99)].iter());
        assert_eq!(
            (of(1, "s"), of(1, "t")),
            ((5, 7), (0, 0)),
            "a session without enqueued events is not kept"
        );
        marks.published([event(1, "s", 7)].iter());
        marks.published([event(1, "s", 6)].iter());
        marks.enqueued([event(1, "s", 2)].iter());
        assert_eq!(of(1, "s"), (7, 7));
    }
}
