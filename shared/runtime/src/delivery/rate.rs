//! Rate limits of services: for the whole service, in messages and in bytes, for each of its scopes (noun and verb) and
//! for each user. Every replica counts separately.

use std::collections::{HashMap, VecDeque};
use std::num::NonZeroU32;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use contract::{Service, UserId};
use governor::clock::{Clock, DefaultClock};
use governor::{DefaultDirectRateLimiter, DefaultKeyedRateLimiter, Quota, RateLimiter};
use store::registry::Rates;

/// Minimum delay of a message over its rate limit.
const MIN_DELAY: Duration = Duration::from_millis(100);
/// Maximum delay before its next delivery.
const MAX_DELAY: Duration = Duration::from_secs(10);
/// Maximum number of times a message is delayed for its rate limit. After that, about 40 s, it is processed anyway:
/// before messages that depend on it are dead-lettered, and long before it reaches the consumer's `max_deliver`.
const MAX_DELAYS: i64 = 10;
/// Maximum number of messages that one replica delays at a time. Further ones are processed at once: delayed messages
/// count against the consumer's limit of unacknowledged messages, which all services share.
const MAX_WAITING: usize = 2_000;

/// The rate limiters of the services seen so far.
#[derive(Debug)]
pub(crate) struct Limits {
    /// The rate of each service in KiB per second.
    kib_per_second: NonZeroU32,
    /// The latest redelivery time of each delayed message.
    waiting: Mutex<VecDeque<Instant>>,
    services: Mutex<HashMap<Service, Arc<ServiceLimits>>>,
    clock: DefaultClock,
}

#[derive(Debug)]
struct ServiceLimits {
    rates: Rates,
    own: Option<DefaultDirectRateLimiter>,
    kib: DefaultDirectRateLimiter,
    scopes: Option<DefaultKeyedRateLimiter<String>>,
    users: Option<DefaultKeyedRateLimiter<UserId>>,
}

impl ServiceLimits {
    fn new(rates: Rates, kib_per_second: NonZeroU32) -> Self {
        // A quota is at least 1. A rate of 0 would mean a disabled service, which is configured elsewhere.
        let quota = |rate: u32| Quota::per_second(NonZeroU32::new(rate).unwrap_or(NonZeroU32::MIN));
        Self {
            rates,
            own: rates.of_service.map(|rate| RateLimiter::direct(quota(rate))),
            kib: RateLimiter::direct(Quota::per_second(kib_per_second)),
            scopes: rates.of_scope.map(|rate| RateLimiter::keyed(quota(rate))),
            users: rates.of_user.map(|rate| RateLimiter::keyed(quota(rate))),
        }
    }
}

/// What is checked against the rate limits.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Use<'a> {
    pub(crate) service: &'a Service,
    pub(crate) noun: &'a str,
    pub(crate) verb: &'a str,
    pub(crate) user_id: UserId,
}

impl Limits {
    /// Limits without any service yet.
    pub(crate) fn new(kib_per_second: NonZeroU32) -> Self {
        let clock = DefaultClock::default();
        Self { kib_per_second, waiting: Mutex::default(), services: Mutex::default(), clock }
    }

    /// How long a message of this size must wait if its service exceeds a rate limit; `None` if it is within all of them.
    /// It counts whatever becomes of it, also if it is malformed or denied.
    pub(crate) fn wait_of_service(&self, rates: Rates, service: &Service, bytes: usize) -> Option<Duration> {
        let limits = self.of(rates, service);
        let kib =
            u32::try_from(bytes.div_ceil(1024)).ok().and_then(NonZeroU32::new).unwrap_or(NonZeroU32::MIN);
        // A message larger than what passes within a second could never pass.
        let kib = kib.min(self.kib_per_second);
        let over = limits.own.as_ref().and_then(|limit| limit.check().err());
        let over = over.or_else(|| limits.kib.check_n(kib).ok().and_then(Result::err));
        over.map(|until| until.wait_time_from(self.clock.now()))
    }

    /// How long an authorized use must wait if it exceeds the rate limit of its user or its scope. A use that exceeds the
    /// latter still counts against the former.
    pub(crate) fn wait(&self, rates: Rates, what: Use<'_>) -> Option<Duration> {
        let limits = self.of(rates, what.service);
        // The narrower limit is checked first, so that one user's flood does not use up the limit shared with others.
        let user = limits.users.as_ref().and_then(|limit| limit.check_key(&what.user_id).err());
        let over = user.or_else(|| {
            let key = format!("{}:{}", what.noun, what.verb);
            limits.scopes.as_ref().and_then(|limit| limit.check_key(&key).err())
        });
        over.map(|until| until.wait_time_from(self.clock.now()))
    }

    /// Whether one more message may be delayed by `delay`. If so, it is counted as waiting.
    pub(crate) fn reserve(&self, delay: Duration) -> bool {
        let now = Instant::now();
        // No code panics while holding the lock.
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        // The queue is not sorted by time. Counting an expired entry for a while longer is harmless.
        while waiting.front().is_some_and(|until| *until <= now) {
            waiting.pop_front();
        }
        if waiting.len() >= MAX_WAITING {
            return false;
        }
        waiting.push_back(now + delay);
        true
    }

    /// Removes the state of users and scopes without recent uses.
    pub(crate) fn prune(&self) {
        for limits in self.lock().values() {
            if let Some(scopes) = &limits.scopes {
                scopes.retain_recent();
            }
            if let Some(users) = &limits.users {
                users.retain_recent();
            }
        }
    }

    fn of(&self, rates: Rates, service: &Service) -> Arc<ServiceLimits> {
        let mut services = self.lock();
        match services.get(service) {
            Some(known) if known.rates == rates => Arc::clone(known),
            // The map is limited by the number of registered services.
            Some(_) | None => {
                let limits = Arc::new(ServiceLimits::new(rates, self.kib_per_second));
                services.insert(service.clone(), Arc::clone(&limits));
                limits
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Service, Arc<ServiceLimits>>> {
        // No code panics while holding the lock.
        self.services.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The delay of a message over its rate limit. It doubles with each delivery, because other messages wait as well.
/// `None` after [`MAX_DELAYS`] deliveries.
pub(crate) fn delay(wait: Duration, deliveries: i64) -> Option<Duration> {
    if deliveries > MAX_DELAYS {
        return None;
    }
    let doublings = u32::try_from(deliveries.clamp(1, 16) - 1).unwrap_or(0);
    Some((wait.max(MIN_DELAY) * 2_u32.pow(doublings)).min(MAX_DELAY))
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use super::*;

    fn waits(limits: &Limits, rates: Rates, times: usize, service: &str, verb: &str, user: i32) -> usize {
        let service: Service = service.parse().unwrap();
        let user_id = UserId::new(user).unwrap();
        let what = Use { service: &service, noun: "context", verb, user_id };
        let waits = |_: &usize| {
            limits.wait_of_service(rates, &service, 1).or_else(|| limits.wait(rates, what)).is_some()
        };
        (0..times).filter(waits).count()
    }

    fn unlimited() -> Limits {
        Limits::new(NonZeroU32::new(100_000).unwrap())
    }

    #[test]
    fn bytes_count_as_well() {
        let limits = Limits::new(NonZeroU32::new(1_000).unwrap());
        let (service, other): (Service, Service) = ("a".parse().unwrap(), "b".parse().unwrap());
        let wait =
            |service: &Service, kib: usize| limits.wait_of_service(Rates::default(), service, kib * 1024);
        assert_eq!((wait(&service, 600), wait(&service, 300)), (None, None));
        assert!(wait(&service, 600).is_some_and(|wait| wait > Duration::from_millis(400)));
        assert_eq!(wait(&other, 100_000), None, "as much as a second allows");
        assert!(wait(&other, 1).is_some());
    }

    #[test]
    fn limits_are_independent() {
        let hour = Rates { of_service: Some(20), of_scope: Some(10), of_user: Some(5) };
        let limits = unlimited();
        assert_eq!(waits(&limits, hour, 5, "a", "put", 1), 0);
        assert!(waits(&limits, hour, 5, "a", "put", 1) >= 4, "the user's");
        assert!(waits(&limits, hour, 5, "a", "put", 2) <= 5, "another user's");
        assert!(waits(&limits, hour, 20, "a", "remove", 3) >= 14);
        assert_eq!(waits(&limits, hour, 5, "b", "put", 1), 0, "another service's");
        assert_eq!(waits(&limits, Rates::default(), 10_000, "c", "put", 1), 0, "no limit");
        // A changed rate takes effect at once.
        let more = Rates { of_service: None, of_scope: None, of_user: Some(100) };
        assert_eq!(waits(&limits, more, 50, "a", "put", 1), 0);
        limits.prune();
    }

    #[test]
    fn the_number_of_delayed_messages_is_limited() {
        let limits = unlimited();
        let hour = Duration::from_secs(3_600);
        assert_eq!((0..MAX_WAITING + 5).filter(|_| limits.reserve(hour)).count(), MAX_WAITING);
        let limits = unlimited();
        assert!((0..MAX_WAITING + 5).all(|_| limits.reserve(Duration::ZERO)));
    }

    #[test]
    fn a_delay_grows_to_its_maximum_and_ends() {
        let wait = Duration::from_millis(1);
        assert_eq!(delay(wait, 1), Some(MIN_DELAY));
        assert_eq!(delay(wait, 2), Some(MIN_DELAY * 2));
        assert_eq!(delay(Duration::from_secs(60), 1), Some(MAX_DELAY));
        assert_eq!(delay(wait, MAX_DELAYS), Some(MAX_DELAY));
        let all: Duration = (1..=MAX_DELAYS).filter_map(|delivery| delay(wait, delivery)).sum();
        assert!(all < Duration::from_secs(60), "{all:?}");
        assert_eq!(delay(wait, MAX_DELAYS + 1), None);
    }
}
