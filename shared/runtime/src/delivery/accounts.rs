//! What the lanes of a worker keep account of together: tries, shares of services, summaries of dead letters.

use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use contract::{DeadLetterClass, Service, WorkerInfo};
use tokio::time::Instant;

use crate::delivery::awaited::AwaitedWorkers;
use crate::delivery::dead_letter::DeadLetterReason;
use crate::delivery::retry::Budget;
use crate::delivery::share::{Share, Shares};
use crate::delivery::summary::{Summaries, Summary};
use crate::stages::pull::Delivery;

/// Maximum number of messages of a service that wait for a retry in one replica. They count against the consumer's limit of
/// unacknowledged messages, which all services share.
const MAX_RETRIED: usize = 5_000;
/// Maximum number of services that are told apart. A server without accounts accepts any name.
const MAX_SERVICES: usize = 1_024;
/// For how long no dead letter is published after the broker did not store one. Each try costs its lane a tenth of a second.
const PAUSE_AFTER_REFUSAL: Duration = Duration::from_secs(2);

/// What a delayed message waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum WaitsFor {
    /// A retry, because a record is missing.
    Retry,
    /// Another worker, a locked row or the events of another worker: nothing that the message or its service is to blame for.
    Others,
}

/// The accounts of one worker.
pub(crate) struct Accounts {
    awaited: tokio::sync::Mutex<AwaitedWorkers>,
    /// The number of batches that lanes have begun to settle.
    batches: AtomicU64,
    inner: Mutex<Inner>,
}

struct Inner {
    budget: Budget,
    shares: Shares,
    summaries: Summaries,
    waiting: Waiting,
    /// Until when no dead letter is published.
    dead_letters_pause: Option<Instant>,
}

impl Accounts {
    /// `max_waiting`: see [`config::WorkerSettings::waiting_per_service`].
    pub(crate) fn new(awaited: AwaitedWorkers, max_waiting: usize) -> Self {
        Self {
            awaited: tokio::sync::Mutex::new(awaited),
            batches: AtomicU64::new(0),
            inner: Mutex::new(Inner {
                budget: Budget::default(),
                shares: Shares::default(),
                summaries: Summaries::default(),
                waiting: Waiting { max_waiting, services: HashMap::new() },
                dead_letters_pause: None,
            }),
        }
    }

    /// Begins a batch. All its messages were stored before this.
    pub(crate) fn next_batch(&self) {
        self.batches.fetch_add(1, Ordering::Relaxed);
    }

    /// See [`AwaitedWorkers::is_behind`].
    pub(crate) async fn is_behind(&self, awaited: &'static WorkerInfo, delivery: &Delivery) -> bool {
        let mut workers = self.awaited.lock().await;
        workers.is_behind(awaited, delivery, self.batches.load(Ordering::Relaxed)).await
    }

    /// Spends one try of a message. Returns the number of tries spent so far.
    pub(crate) fn spend(&self, delivery: &Delivery) -> u32 {
        self.lock().budget.spend(delivery.key())
    }

    /// Whether a message may wait for this time. Its service may have so many that do at a time.
    pub(crate) fn may_wait(&self, delivery: &Delivery, waits_for: WaitsFor, delay: Duration) -> bool {
        self.lock().waiting.add(delivery.sender.0.as_ref(), waits_for, Instant::now(), delay)
    }

    /// Forgets what is remembered of a message that is settled for good. Returns the number of tries it had spent.
    pub(crate) fn forget(&self, delivery: &Delivery) -> u32 {
        // While another lane reads a position, the mark stays. That is harmless: their number is limited.
        if let Ok(mut workers) = self.awaited.try_lock() {
            workers.forget(&delivery.key());
        }
        self.lock().budget.forget(&delivery.key())
    }

    /// Takes the share of a dead letter. See [`Shares::take`].
    pub(crate) fn take_share(&self, delivery: &Delivery, class: DeadLetterClass) -> Share {
        self.lock().shares.take(delivery.sender.0.as_ref(), class, delivery.message.length)
    }

    /// Adds a message to a summary of dead letters.
    pub(crate) fn summarize(&self, delivery: Delivery, cause: DeadLetterReason) {
        self.lock().summaries.add(delivery.sender.0.clone(), delivery, cause);
    }

    /// Removes the summaries that are to be published: all of them at the end.
    pub(crate) fn summaries_due(&self, is_end: bool) -> Vec<Summary> {
        self.lock().summaries.take_due(is_end)
    }

    /// Whether it makes sense to publish a dead letter: not while the broker has just refused one.
    pub(crate) fn may_dead_letter(&self) -> bool {
        self.lock().dead_letters_pause.is_none_or(|until| until <= Instant::now())
    }

    /// Notes whether the broker stored a dead letter.
    pub(crate) fn note_dead_letter(&self, is_stored: bool) {
        self.lock().dead_letters_pause = (!is_stored).then(|| Instant::now() + PAUSE_AFTER_REFUSAL);
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        // No code panics while holding the lock.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The messages of each service that wait, by when they come back. One that comes back early is counted until then.
#[derive(Debug)]
struct Waiting {
    /// Of a service, for others.
    max_waiting: usize,
    services: HashMap<(Option<Service>, WaitsFor), VecDeque<Instant>>,
}

impl Waiting {
    /// Adds a message. False if its service has too many already.
    fn add(&mut self, service: Option<&Service>, waits_for: WaitsFor, now: Instant, delay: Duration) -> bool {
        let limit = match waits_for {
            WaitsFor::Retry => MAX_RETRIED,
            WaitsFor::Others => self.max_waiting,
        };
        let is_known = self.services.contains_key(&(service.cloned(), waits_for));
        if !is_known && self.services.len() >= MAX_SERVICES {
            self.services.retain(|_, waiting| waiting.iter().any(|until| *until > now));
        }
        let service = service.filter(|_| is_known || self.services.len() < MAX_SERVICES);
        let waiting = self.services.entry((service.cloned(), waits_for)).or_default();
        if waiting.len() >= limit {
            waiting.retain(|until| *until > now);
        }
        let has_room = waiting.len() < limit;
        if has_room {
            waiting.push_back(now + delay);
        }
        has_room
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use super::*;

    #[test]
    fn each_service_has_a_limited_number_of_messages_that_wait() {
        let (first, second): (Service, Service) = ("first".parse().unwrap(), "second".parse().unwrap());
        let (now, minute) = (Instant::now(), Duration::from_secs(60));
        let mut waiting = Waiting { max_waiting: 20, services: HashMap::new() };
        let retry = WaitsFor::Retry;
        let added = (0..MAX_RETRIED + 5).filter(|_| waiting.add(Some(&first), retry, now, minute)).count();
        assert_eq!(added, MAX_RETRIED);
        assert!(waiting.add(Some(&second), retry, now, minute), "another service's");
        assert!(waiting.add(Some(&first), retry, now + minute, minute), "those before have come back");
        let others = |_: &usize| waiting.add(Some(&first), WaitsFor::Others, now, minute);
        assert_eq!((0..25).filter(others).count(), 20, "apart from those that are retried");
        for number in 0..MAX_SERVICES * 2 {
            waiting.add(Some(&format!("s{number}").parse().unwrap()), retry, now, minute);
        }
        assert!(waiting.services.len() <= MAX_SERVICES + 2);
    }
}
