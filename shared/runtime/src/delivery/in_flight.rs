//! Extends `ack_wait` for the messages that this replica is processing. Otherwise JetStream would redeliver them to
//! another replica when processing takes long: the database is unreachable, a batch is split, or the broker does not
//! store an event.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_nats::{Client, Subject};
use bytes::Bytes;
use tokio::time::{Instant, MissedTickBehavior, interval};

/// The body of an acknowledgement that restarts `ack_wait` (in progress).
const IN_PROGRESS: Bytes = Bytes::from_static(b"+WPI");
/// A message is renewed this often within `ack_wait`.
const RENEWALS_PER_ACK_WAIT: u32 = 3;

/// The messages that a worker is processing. Clones share the same set.
#[derive(Clone, Debug, Default)]
pub(crate) struct InFlight {
    messages: Arc<Mutex<Messages>>,
}

#[derive(Debug, Default)]
struct Messages {
    next: u64,
    /// By number, and therefore by age: the subject of the acknowledgement and when the message arrived.
    by_number: BTreeMap<u64, (Subject, Instant)>,
}

/// Keeps a message in flight until dropped.
#[derive(Debug)]
pub(crate) struct InFlightGuard {
    in_flight: InFlight,
    number: u64,
}

impl InFlight {
    /// Adds a message, given the subject of its acknowledgement.
    pub(crate) fn hold(&self, acknowledge_at: Subject) -> InFlightGuard {
        let mut messages = self.lock();
        let number = messages.next;
        messages.next += 1;
        messages.by_number.insert(number, (acknowledge_at, Instant::now()));
        InFlightGuard { in_flight: self.clone(), number }
    }

    /// Renews the messages that have been in flight for a third of `ack_wait`. Runs until it is aborted.
    pub(crate) async fn renew(self, client: Client, ack_wait: Duration) {
        let every = (ack_wait / RENEWALS_PER_ACK_WAIT).max(Duration::from_millis(1));
        let mut tick = interval(every);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tick.tick().await;
            for subject in self.older_than(every) {
                // If the broker is unreachable, messages are redelivered and the inbox deduplicates them.
                if client.publish(subject, IN_PROGRESS).await.is_err() {
                    break;
                }
            }
        }
    }

    fn older_than(&self, age: Duration) -> Vec<Subject> {
        let messages = self.lock();
        let old = messages.by_number.values().take_while(|(_, since)| since.elapsed() >= age);
        old.map(|(subject, _)| subject.clone()).collect()
    }

    fn lock(&self) -> MutexGuard<'_, Messages> {
        // No code panics while holding the lock, so the map is consistent.
        self.messages.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for InFlightGuard {
    fn drop(&mut self) {
        self.in_flight.lock().by_number.remove(&self.number);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dropped_messages_are_removed_and_recent_ones_are_not_renewed() {
        let in_flight = InFlight::default();
        let (first, second) = (in_flight.hold("first".into()), in_flight.hold("second".into()));
        assert_eq!(in_flight.older_than(Duration::ZERO), ["first".into(), "second".into()]);
        assert!(in_flight.older_than(Duration::from_secs(3_600)).is_empty());
        drop(first);
        assert_eq!(in_flight.older_than(Duration::ZERO), ["second".into()]);
        drop(second);
        assert!(in_flight.lock().by_number.is_empty());
    }
}
