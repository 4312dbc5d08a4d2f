//! Messages that this replica holds for long. JetStream is told that they are still worked on, or it would deliver
//! them to another replica when `ack_wait` runs out: while the database is away, a batch is split, or the broker
//! does not store an event.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_nats::{Client, Subject};
use bytes::Bytes;
use tokio::time::{Instant, MissedTickBehavior, interval};

/// The body of an acknowledgement that asks for more time.
const IN_PROGRESS: Bytes = Bytes::from_static(b"+WPI");
/// A message is renewed when this part of `ack_wait` has passed, and again after each further such part.
const PARTS: u32 = 3;

/// The messages a worker holds. Copies share them.
#[derive(Clone, Debug, Default)]
pub(crate) struct InFlight {
    messages: Arc<Mutex<Messages>>,
}

#[derive(Debug, Default)]
struct Messages {
    next: u64,
    /// By the order in which they came.
    waiting: BTreeMap<u64, (Subject, Instant)>,
}

/// Keeps a message among those in_flight, until it is dropped.
#[derive(Debug)]
pub(crate) struct InFlightGuard {
    in_flight: InFlight,
    number: u64,
}

impl InFlight {
    /// Holds a message by the subject that its acknowledgement goes to.
    pub(crate) fn hold(&self, acknowledge_at: Subject) -> InFlightGuard {
        let mut messages = self.lock();
        let number = messages.next;
        messages.next += 1;
        messages.waiting.insert(number, (acknowledge_at, Instant::now()));
        InFlightGuard { in_flight: self.clone(), number }
    }

    /// Renews, until it is aborted, what has been in_flight for a third of `ack_wait`.
    pub(crate) async fn renew(self, client: Client, ack_wait: Duration) {
        let every = (ack_wait / PARTS).max(Duration::from_millis(1));
        let mut tick = interval(every);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tick.tick().await;
            for subject in self.older_than(every) {
                // Without the broker the messages come again, which the inbox bears.
                if client.publish(subject, IN_PROGRESS).await.is_err() {
                    break;
                }
            }
        }
    }

    fn older_than(&self, age: Duration) -> Vec<Subject> {
        let messages = self.lock();
        let old = messages.waiting.values().take_while(|(_, since)| since.elapsed() >= age);
        old.map(|(subject, _)| subject.clone()).collect()
    }

    fn lock(&self) -> MutexGuard<'_, Messages> {
        // Nothing panics under the lock that could leave the map half changed.
        self.messages.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for InFlightGuard {
    fn drop(&mut self) {
        self.in_flight.lock().waiting.remove(&self.number);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_dropped_is_held_no_longer_and_the_young_are_left_alone() {
        let in_flight = InFlight::default();
        let (first, second) = (in_flight.hold("first".into()), in_flight.hold("second".into()));
        assert_eq!(in_flight.older_than(Duration::ZERO), ["first".into(), "second".into()]);
        assert!(in_flight.older_than(Duration::from_secs(3_600)).is_empty());
        drop(first);
        assert_eq!(in_flight.older_than(Duration::ZERO), ["second".into()]);
        drop(second);
        assert!(in_flight.lock().waiting.is_empty());
    }
}
