//! How often a service may ask: of itself, of each of its nouns and verbs, and for each user. Every replica counts for
//! itself.

use std::collections::{HashMap, VecDeque};
use std::num::NonZeroU32;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use contract::{Service, UserId};
use governor::clock::{Clock, DefaultClock};
use governor::{DefaultDirectRateLimiter, DefaultKeyedRateLimiter, Quota, RateLimiter};
use store::registry::Rates;

/// The least that a request over its rate waits.
const LEAST_DELAY: Duration = Duration::from_millis(100);
/// The most that it waits before it is asked about again.
const LONGEST_DELAY: Duration = Duration::from_secs(10);
/// How often a message is put off for its rate before it goes through all the same, after some forty seconds: sooner than
/// another one is given up that needs it, and long before the broker gives up a message that was delivered too often.
const MOST_DELAYS: i64 = 10;
/// How many messages one replica puts off at a time. What is over that goes through: the broker counts those that wait among
/// the messages in flight, of which the consumer has a bounded number for all services together.
const AT_A_TIME: usize = 2_000;

/// The rates of every service that asked lately.
#[derive(Debug, Default)]
pub(crate) struct Limits {
    /// When each message that was put off comes again, at the latest.
    waiting: Mutex<VecDeque<Instant>>,
    services: Mutex<HashMap<Service, Arc<ServiceLimits>>>,
    clock: DefaultClock,
}

#[derive(Debug)]
struct ServiceLimits {
    rates: Rates,
    own: Option<DefaultDirectRateLimiter>,
    scopes: Option<DefaultKeyedRateLimiter<String>>,
    users: Option<DefaultKeyedRateLimiter<UserId>>,
}

impl ServiceLimits {
    fn new(rates: Rates) -> Self {
        // A rate of nothing would be a service that is disabled; a quota has at least one.
        let quota = |rate: u32| Quota::per_second(NonZeroU32::new(rate).unwrap_or(NonZeroU32::MIN));
        Self {
            rates,
            own: rates.of_service.map(|rate| RateLimiter::direct(quota(rate))),
            scopes: rates.of_scope.map(|rate| RateLimiter::keyed(quota(rate))),
            users: rates.of_user.map(|rate| RateLimiter::keyed(quota(rate))),
        }
    }
}

/// What is asked for.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Use<'a> {
    pub(crate) service: &'a Service,
    pub(crate) noun: &'a str,
    pub(crate) verb: &'a str,
    pub(crate) user_id: UserId,
}

impl Limits {
    /// How long a use over its rate is to wait; none if it is within. It counts in either case where it is within.
    pub(crate) fn wait(&self, rates: Rates, what: Use<'_>) -> Option<Duration> {
        let limits = self.of(rates, what.service);
        let now = self.clock.now();
        // The narrowest first, so that one user's flood uses up nothing of what the others share.
        let user = limits.users.as_ref().and_then(|limit| limit.check_key(&what.user_id).err());
        let over = user
            .or_else(|| {
                let key = format!("{}:{}", what.noun, what.verb);
                limits.scopes.as_ref().and_then(|limit| limit.check_key(&key).err())
            })
            .or_else(|| limits.own.as_ref().and_then(|limit| limit.check().err()));
        over.map(|until| until.wait_time_from(now))
    }

    /// Whether one more message may be put off for so long. It counts as waiting from now on.
    pub(crate) fn has_room(&self, delay: Duration) -> bool {
        let now = Instant::now();
        // Nothing panics under the lock.
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        // Those that come again first need not stand first; who stays counted for a while longer does no harm.
        while waiting.front().is_some_and(|until| *until <= now) {
            waiting.pop_front();
        }
        if waiting.len() >= AT_A_TIME {
            return false;
        }
        waiting.push_back(now + delay);
        true
    }

    /// Forgets users and scopes that have not asked lately.
    pub(crate) fn tidy(&self) {
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
            // As many as are registered.
            Some(_) | None => {
                let limits = Arc::new(ServiceLimits::new(rates));
                services.insert(service.clone(), Arc::clone(&limits));
                limits
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Service, Arc<ServiceLimits>>> {
        // Nothing panics under the lock.
        self.services.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// How long a message waits that is over its rate and was delivered so often: longer each time, since others wait with it.
/// None once it has waited often enough.
pub(crate) fn delay(wait: Duration, deliveries: i64) -> Option<Duration> {
    if deliveries > MOST_DELAYS {
        return None;
    }
    let doublings = u32::try_from(deliveries.clamp(1, 16) - 1).unwrap_or(0);
    Some((wait.max(LEAST_DELAY) * 2_u32.pow(doublings)).min(LONGEST_DELAY))
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use super::*;

    fn waits(limits: &Limits, rates: Rates, times: usize, service: &str, verb: &str, user: i32) -> usize {
        let service: Service = service.parse().unwrap();
        let user_id = UserId::new(user).unwrap();
        let what = Use { service: &service, noun: "context", verb, user_id };
        (0..times).filter(|_| limits.wait(rates, what).is_some()).count()
    }

    #[test]
    fn each_bound_is_of_its_own() {
        let hour = Rates { of_service: Some(20), of_scope: Some(10), of_user: Some(5) };
        let limits = Limits::default();
        assert_eq!(waits(&limits, hour, 5, "a", "put", 1), 0);
        assert!(waits(&limits, hour, 5, "a", "put", 1) >= 4, "the user's");
        assert!(waits(&limits, hour, 5, "a", "put", 2) <= 5, "another user's");
        assert!(waits(&limits, hour, 20, "a", "remove", 3) >= 14);
        assert_eq!(waits(&limits, hour, 5, "b", "put", 1), 0, "another service's");
        assert_eq!(waits(&limits, Rates::default(), 10_000, "c", "put", 1), 0, "no bound");
        // A rate that changes holds at once.
        let more = Rates { of_service: None, of_scope: None, of_user: Some(100) };
        assert_eq!(waits(&limits, more, 50, "a", "put", 1), 0);
        limits.tidy();
    }

    #[test]
    fn so_many_wait_at_a_time_and_no_more() {
        let limits = Limits::default();
        let hour = Duration::from_secs(3_600);
        assert_eq!((0..AT_A_TIME + 5).filter(|_| limits.has_room(hour)).count(), AT_A_TIME);
        let limits = Limits::default();
        assert!((0..AT_A_TIME + 5).all(|_| limits.has_room(Duration::ZERO)));
    }

    #[test]
    fn a_delay_grows_to_a_bound_and_ends() {
        let wait = Duration::from_millis(1);
        assert_eq!(delay(wait, 1), Some(LEAST_DELAY));
        assert_eq!(delay(wait, 2), Some(LEAST_DELAY * 2));
        assert_eq!(delay(Duration::from_secs(60), 1), Some(LONGEST_DELAY));
        assert_eq!(delay(wait, MOST_DELAYS), Some(LONGEST_DELAY));
        let all: Duration = (1..=MOST_DELAYS).filter_map(|delivery| delay(wait, delivery)).sum();
        assert!(all < Duration::from_secs(60), "{all:?}");
        assert_eq!(delay(wait, MOST_DELAYS + 1), None);
    }
}
