//! What one consumer has delivered and no batch has taken yet: light messages and, apart from them, heavy ones, whose
//! processing takes so long that nobody else may wait for it.
//!
//! Light messages go in two lanes, so that those of a service that has sent many are not in the way of others. A service is in
//! one lane at a time: its messages are written in the order in which they came.
//!
//! A service holds a limited share of the heavy ones, and of those that follow them. What it sends beyond that is set aside for
//! a while, so that the messages of others, which the broker delivers after it, are reached. Other light messages are not set
//! aside: they are written quickly, and those that need earlier ones would overtake them.

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use contract::{RequestSubject, Service, UserId};
use tokio::sync::Notify;
use tokio::time::{Instant, sleep_until};

use crate::stages::fair_queue::{Amount, FairQueue, Sender};
use crate::stages::pull::Delivery;

/// Maximum number of heavy messages, with those that follow them, and their size as a multiple of what makes one heavy.
const MAX_HEAVY_MESSAGES: usize = 16_000;
const MAX_HEAVY_SIZES: usize = 256;
/// Maximum number of light messages, and their size. A message of another service behind more of them waits. What is queued
/// here cannot be taken by another replica, so that it is less while there is only one service.
const MAX_LIGHT_MESSAGES: usize = 16_000;
const MAX_LIGHT_BATCHES: usize = 8;
const MAX_LIGHT_BYTES: usize = 32 * 1024 * 1024;
/// A service counts as active for this long after a message, and is known for this long.
const ACTIVE_FOR: Duration = Duration::from_secs(60);
const KNOWN_FOR: Duration = Duration::from_secs(3_600);
/// Maximum number of services that are told apart. A server without accounts accepts any name.
const MAX_SERVICES: usize = 1_024;
/// Maximum number of messages that a replica sets aside at a time. Together with others they count against the
/// consumer's limit of unacknowledged messages, which all services share.
const MAX_SET_ASIDE: usize = 20_000;
/// How often a lane looks whether it may take messages that it may not take now. A service ceases to be active by time alone.
const LOOK_AGAIN: Duration = Duration::from_millis(100);
/// The rates at which messages that were set aside come back, for each service.
const BYTES_PER_SECOND: f64 = 4.0 * 1024.0 * 1024.0;
const MESSAGES_PER_SECOND: f64 = 2_000.0;
/// The longest time for which a message is set aside at once.
const LONGEST_ASIDE: Duration = Duration::from_secs(30);

/// The sizes of batches and queues.
#[derive(Clone, Copy, Debug)]
pub(crate) struct QueueLimits {
    /// A batch is complete with this amount.
    pub(crate) batch: Amount,
    /// How long a batch waits for more messages after its first.
    pub(crate) batch_wait: Duration,
    /// A larger message is heavy, in bytes.
    pub(crate) heavy_bytes: usize,
    /// A message of these kinds is heavy however small it is. With such kinds, each heavy message is a batch of its own.
    pub(crate) heavy_kinds: &'static [(&'static str, &'static str)],
    /// What other services leave to one of them in a batch, in bytes.
    pub(crate) part_bytes: usize,
}

impl QueueLimits {
    fn is_heavy(&self, delivery: &Delivery) -> bool {
        delivery.message.length > self.heavy_bytes || self.is_of_heavy_kind(&delivery.message.subject)
    }

    fn is_of_heavy_kind(&self, subject: &str) -> bool {
        !self.heavy_kinds.is_empty()
            && subject.parse::<RequestSubject>().is_ok_and(|subject| {
                self.heavy_kinds.contains(&(subject.noun.as_str(), subject.verb.as_str()))
            })
    }
}

/// A lane of light messages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum LightLane {
    /// For services of which less than their part of a batch is queued, and for a service that is alone.
    Quick,
    /// For the others.
    Bulk,
}

/// The queues of one consumer.
#[derive(Debug)]
pub(crate) struct Queues {
    limits: QueueLimits,
    state: Mutex<State>,
    /// A batch of light messages may be complete, or taken now.
    light: Notify,
    /// A heavy message has come, or may be taken now.
    heavy: Notify,
    /// Messages were taken.
    room: Notify,
}

#[derive(Debug, Default)]
struct State {
    light: FairQueue<Delivery>,
    heavy: FairQueue<Delivery>,
    /// When the light messages become a batch even if it is not complete. `None` without messages.
    light_due: Option<Instant>,
    /// The services with light messages in a lane, and how many.
    lanes: HashMap<Option<Service>, (LightLane, usize)>,
    users: HashMap<UserId, Held>,
    /// The senders of the heavy messages that are being processed.
    busy: Vec<Sender>,
    /// When each known service was last seen.
    seen: HashMap<Option<Service>, Instant>,
    /// When the next message of a service that is set aside comes back.
    next_back: HashMap<Option<Service>, Instant>,
    /// When each message that was set aside comes back.
    set_aside: VecDeque<Instant>,
}

/// The messages of one user that are queued or being processed.
#[derive(Clone, Copy, Debug, Default)]
struct Held {
    light: usize,
    heavy: usize,
}

/// The place of a message until it is settled: the order of its user's messages, and its service's turn, depend on it.
#[derive(Debug)]
pub(crate) struct Place {
    queues: Arc<Queues>,
    sender: Sender,
    is_heavy: bool,
    /// A heavy message that is being processed.
    is_busy: bool,
    /// A light message that is being processed.
    lane: Option<LightLane>,
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut state = self.queues.lock();
        if let Some(held) = self.sender.1.and_then(|user| state.users.get_mut(&user)) {
            let count = if self.is_heavy { &mut held.heavy } else { &mut held.light };
            *count = count.saturating_sub(1);
            if (held.light, held.heavy) == (0, 0) {
                self.sender.1.map(|user| state.users.remove(&user));
            }
        }
        if self.is_busy
            && let Some(place) = state.busy.iter().position(|sender| *sender == self.sender)
        {
            state.busy.swap_remove(place);
        }
        let has_left = self.lane.is_some() && state.leave_lane(&self.sender.0);
        let may_take = has_left && state.light.total().messages > 0;
        let may_continue = state.heavy.total().messages > 0;
        drop(state);
        if may_continue {
            self.queues.heavy.notify_waiters();
        }
        if may_take {
            self.queues.light.notify_waiters();
        }
    }
}

impl Queues {
    pub(crate) fn new(limits: QueueLimits) -> Self {
        let (light, heavy, room) = (Notify::new(), Notify::new(), Notify::new());
        Self { limits, state: Mutex::default(), light, heavy, room }
    }

    /// Queues a message. One beyond the share of its service is returned, with the time for which it is set aside.
    pub(crate) fn push(self: &Arc<Self>, mut delivery: Delivery) -> Option<(Delivery, Duration)> {
        let (service, user) = delivery.sender.clone();
        let (now, bytes) = (Instant::now(), delivery.message.length);
        let mut state = self.lock();
        let (service, active) = state.note_active(service, now);
        let follows = user.and_then(|user| state.users.get(&user)).is_some_and(|held| held.heavy > 0);
        let is_heavy = self.limits.is_heavy(&delivery) || follows;
        // One share is left to a service that has not been seen yet.
        let share = self.max_heavy().part(active + 1);
        let is_over = is_heavy && state.heavy.of(service.as_ref()).reaches(share);
        if is_over && let Some(delay) = state.set_aside(service.clone(), bytes, now) {
            return Some((delivery, delay));
        }
        if let Some(user) = user {
            let held = state.users.entry(user).or_default();
            *(if is_heavy { &mut held.heavy } else { &mut held.light }) += 1;
        }
        let sender = (service, user);
        let queues = Arc::clone(self);
        let place = Place { queues, sender: sender.clone(), is_heavy, is_busy: false, lane: None };
        delivery.place = Some(place);
        if is_heavy {
            state.heavy.push(sender, bytes, delivery);
            drop(state);
            self.heavy.notify_waiters();
            return None;
        }
        state.light.push(sender.clone(), bytes, delivery);
        state.light_due.get_or_insert(now + self.limits.batch_wait);
        let queued = state.light.of(sender.0.as_ref());
        // Otherwise this message does not change what a lane may take.
        let is_news = queued.messages == 1
            || queued.reaches(self.part_of_service(active))
            || state.light.total().reaches(self.limits.batch);
        drop(state);
        if is_news {
            self.light.notify_waiters();
        }
        None
    }

    /// Waits until there is room for another message.
    pub(crate) async fn room(&self) {
        loop {
            let taken = self.room.notified();
            if self.has_room() {
                return;
            }
            taken.await;
        }
    }

    fn has_room(&self) -> bool {
        let state = self.lock();
        !state.light.total().reaches(self.max_light(&state)) && !state.heavy.total().reaches(self.max_heavy())
    }

    /// Waits until a batch of light messages for a lane is complete, or its time is up.
    pub(crate) async fn light_is_due(&self, lane: LightLane) {
        loop {
            let arrived = self.light.notified();
            let due = {
                let state = self.lock();
                let bulk = self.bulk(&state);
                let has_some = state.light.services().any(|service| state.may_take(service, lane, &bulk));
                if has_some && state.light.total().reaches(self.limits.batch) {
                    return;
                }
                let again = || state.light_due.map(|_| Instant::now() + LOOK_AGAIN);
                if has_some { state.light_due } else { again() }
            };
            match due {
                Some(due) if due <= Instant::now() => return,
                Some(due) => tokio::select! {
                    () = arrived => {}
                    () = sleep_until(due) => {}
                },
                None => arrived.await,
            }
        }
    }

    /// Takes a batch of light messages for a lane.
    pub(crate) fn take_light(&self, lane: LightLane) -> Vec<Delivery> {
        let mut guard = self.lock();
        let of_service = self.part_of_service(guard.active());
        let bulk = self.bulk(&guard);
        let state = &mut *guard;
        let mut light = std::mem::take(&mut state.light);
        let mut batch =
            light.take(self.limits.batch, of_service, |service, _| state.may_take(service, lane, &bulk));
        state.light = light;
        for place in batch.iter_mut().filter_map(|delivery| delivery.place.as_mut()) {
            place.lane = Some(lane);
            state.lanes.entry(place.sender.0.clone()).or_insert((lane, 0)).1 += 1;
        }
        // What is left has waited for long enough.
        state.light_due = (state.light.total().messages > 0).then(Instant::now);
        drop(guard);
        self.room.notify_one();
        batch
    }

    /// The services that have at least their part of a batch in the queue of light messages, while others are active.
    fn bulk(&self, state: &State) -> HashSet<Option<Service>> {
        let active = state.active();
        if active <= 1 {
            return HashSet::new();
        }
        let part = self.part_of_service(active);
        let services = state.light.services();
        services
            .filter(|service| state.light.of(*service).reaches(part))
            .map(<Option<&Service>>::cloned)
            .collect()
    }

    /// The next heavy message of a service of which no other one is being processed, with light messages of the same
    /// service that follow earlier ones.
    pub(crate) async fn next_heavy(&self) -> Vec<Delivery> {
        loop {
            let arrived = self.heavy.notified();
            {
                let mut state = self.lock();
                let is_alone = !self.limits.heavy_kinds.is_empty();
                let messages = if is_alone { 1 } else { self.limits.batch.messages };
                let batch = state.take_heavy(Amount { bytes: self.limits.heavy_bytes, messages });
                if !batch.is_empty() {
                    drop(state);
                    self.room.notify_one();
                    return batch;
                }
            }
            arrived.await;
        }
    }

    /// Takes everything, to hand it back.
    pub(crate) fn take_all(&self) -> Vec<Delivery> {
        let mut state = self.lock();
        let all = Amount { messages: usize::MAX, bytes: usize::MAX };
        let mut taken = state.light.take(all, all, |_, _| true);
        taken.extend(state.heavy.take(all, all, |_, _| true));
        taken
    }

    fn max_light(&self, state: &State) -> Amount {
        let batches = self.limits.batch.messages.saturating_mul(MAX_LIGHT_BATCHES);
        let messages = if state.seen.len() > 1 { batches.max(MAX_LIGHT_MESSAGES) } else { batches };
        Amount { messages, bytes: MAX_LIGHT_BYTES }
    }

    fn max_heavy(&self) -> Amount {
        let bytes = self.limits.heavy_bytes.saturating_mul(MAX_HEAVY_SIZES);
        Amount { messages: MAX_HEAVY_MESSAGES, bytes }
    }

    /// What one of so many active services may have of a batch. The others wait for it, so that it is small.
    fn part_of_service(&self, active: usize) -> Amount {
        if active <= 1 {
            return self.limits.batch;
        }
        let part = self.limits.batch.part(2 * active);
        Amount { bytes: part.bytes.min(self.limits.part_bytes), ..part }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // No code panics while holding the lock.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// Notes that a service is active. Returns it, or `None` if there are too many to tell it apart, and the number of
    /// active ones.
    fn note_active(&mut self, service: Option<Service>, now: Instant) -> (Option<Service>, usize) {
        let oldest = now.checked_sub(KNOWN_FOR);
        self.seen.retain(|_, seen| oldest.is_none_or(|oldest| *seen > oldest));
        let is_known = self.seen.len() < MAX_SERVICES || self.seen.contains_key(&service);
        let service = service.filter(|_| is_known);
        self.seen.insert(service.clone(), now);
        (service, self.active())
    }

    /// The number of services that are active.
    fn active(&self) -> usize {
        self.seen.values().filter(|seen| seen.elapsed() <= ACTIVE_FOR).count()
    }

    /// For how long a message is set aside; `None` if too many are.
    fn set_aside(&mut self, service: Option<Service>, bytes: usize, now: Instant) -> Option<Duration> {
        // The queue is not sorted by time. Counting an expired entry for a while longer is harmless.
        while self.set_aside.front().is_some_and(|until| *until <= now) {
            self.set_aside.pop_front();
        }
        if self.set_aside.len() >= MAX_SET_ASIDE {
            return None;
        }
        self.next_back.retain(|_, next| *next > now);
        let next = self.next_back.entry(service).or_insert(now);
        *next += Duration::from_secs_f64((bytes as f64 / BYTES_PER_SECOND).max(1.0 / MESSAGES_PER_SECOND));
        *next = (*next).min(now + LONGEST_ASIDE);
        self.set_aside.push_back(*next);
        Some(*next - now)
    }

    /// Notes that a light message of a service has left its lane. True if it was the last one.
    fn leave_lane(&mut self, service: &Option<Service>) -> bool {
        let Some((_, messages)) = self.lanes.get_mut(service) else { return false };
        *messages = messages.saturating_sub(1);
        let is_last = *messages == 0;
        if is_last {
            self.lanes.remove(service);
        }
        is_last
    }

    /// Whether a lane may take light messages of a service: not while some of it are in the other one.
    fn may_take(&self, service: Option<&Service>, lane: LightLane, bulk: &HashSet<Option<Service>>) -> bool {
        let service = service.cloned();
        let wanted = if bulk.contains(&service) { LightLane::Bulk } else { LightLane::Quick };
        wanted == lane && self.lanes.get(&service).is_none_or(|(taken_by, _)| *taken_by == lane)
    }

    fn take_heavy(&mut self, batch: Amount) -> Vec<Delivery> {
        let Self { heavy, users, busy, .. } = self;
        let may_begin = |service: Option<&Service>, user: Option<UserId>| {
            let is_busy = |(of, who): &Sender| of.as_ref() == service || (who.is_some() && *who == user);
            // Earlier messages of the user come first.
            !busy.iter().any(is_busy)
                && user.and_then(|user| users.get(&user)).is_none_or(|held| held.light == 0)
        };
        let mut taken = heavy.take(Amount { messages: 1, ..batch }, batch, may_begin);
        let first = taken.first().map(|first| (first.message.length, first.sender.0.clone()));
        let Some((bytes, service)) = first else { return taken };
        let rest =
            Amount { messages: batch.messages.saturating_sub(1), bytes: batch.bytes.saturating_sub(bytes) };
        taken.extend(
            heavy.take(rest, rest, |other, user| other == service.as_ref() && may_begin(other, user)),
        );
        for place in taken.iter_mut().filter_map(|delivery| delivery.place.as_mut()) {
            place.is_busy = true;
            busy.push(place.sender.clone());
        }
        taken
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use super::*;

    fn service(name: &str) -> Option<Service> {
        Some(name.parse().unwrap())
    }

    #[test]
    fn a_service_is_in_one_lane_until_its_messages_there_are_settled() {
        let (flooding, mut state) = (service("flooding"), State::default());
        let may_take = |state: &State, lane, bulk: &HashSet<Option<Service>>| {
            state.may_take(flooding.as_ref(), lane, bulk)
        };
        let (few, many) = (HashSet::new(), HashSet::from([flooding.clone()]));
        assert!(may_take(&state, LightLane::Quick, &few) && !may_take(&state, LightLane::Bulk, &few));
        assert!(may_take(&state, LightLane::Bulk, &many) && !may_take(&state, LightLane::Quick, &many));
        // Two of its first messages are being written when the others come.
        state.lanes.insert(flooding.clone(), (LightLane::Quick, 2));
        assert!(!state.leave_lane(&flooding));
        assert!(!may_take(&state, LightLane::Bulk, &many), "they would overtake the second one");
        assert!(state.leave_lane(&flooding));
        assert!(may_take(&state, LightLane::Bulk, &many));
    }

    #[test]
    fn what_is_set_aside_comes_back_at_a_rate_of_its_service() {
        let (now, mut state) = (Instant::now(), State::default());
        let megabyte = 1024 * 1024;
        let delays: Vec<Duration> =
            (0..200).filter_map(|_| state.set_aside(service("flooding"), megabyte, now)).collect();
        assert_eq!((delays[0], delays[3]), (Duration::from_millis(250), Duration::from_secs(1)));
        assert_eq!(delays[199], LONGEST_ASIDE);
        assert_eq!(
            state.set_aside(service("other"), 1, now),
            Some(Duration::from_micros(500)),
            "its own rate"
        );
        while state.set_aside.len() < MAX_SET_ASIDE {
            state.set_aside(service("flooding"), 1, now).unwrap();
        }
        assert_eq!(state.set_aside(service("other"), 1, now), None, "too many are");
        let later = now + LONGEST_ASIDE * 2;
        assert!(state.set_aside(service("other"), 1, later).is_some(), "all are back");
    }

    #[test]
    fn a_limited_number_of_services_is_told_apart() {
        let (now, mut state) = (Instant::now(), State::default());
        for number in 0..MAX_SERVICES {
            let known = service(&format!("s{number}"));
            assert_eq!(state.note_active(known.clone(), now).0, known);
        }
        assert_eq!(state.note_active(service("one-more"), now).0, None);
        assert_eq!(state.note_active(service("s1"), now), (service("s1"), MAX_SERVICES + 1));
        let known = state.note_active(service("one-more"), now + KNOWN_FOR * 2);
        assert_eq!(known.0, service("one-more"), "those before are forgotten");
    }

    #[test]
    fn one_of_several_services_has_a_small_part_of_a_batch() {
        let batch = Amount { messages: 500, bytes: 8 * 1024 * 1024 };
        let (heavy_bytes, part_bytes) = (64 * 1024, 256 * 1024);
        let (heavy_kinds, batch_wait) = ([("verdict", "give")].as_slice(), Duration::ZERO);
        let queues = Queues::new(QueueLimits { batch, batch_wait, heavy_bytes, heavy_kinds, part_bytes });
        assert_eq!((queues.part_of_service(0), queues.part_of_service(1)), (batch, batch), "alone");
        assert_eq!(queues.part_of_service(2), Amount { messages: 125, bytes: part_bytes });
        assert_eq!(queues.part_of_service(5), Amount { messages: 50, bytes: part_bytes });
        assert_eq!(queues.part_of_service(1_000), Amount { messages: 1, bytes: 4_194 });
        let is_heavy = |subject| queues.limits.is_of_heavy_kind(subject);
        assert!(is_heavy("memory.req.test.verdict.give.1") && !is_heavy("memory.req.test.give.verdict.1"));
        assert!(!is_heavy("memory.req.verdict.give.put.1") && !is_heavy("memory.req.test.verdict.give"));
    }
}
