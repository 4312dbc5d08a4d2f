//! The share of each service in the stream of dead letters.
//!
//! Without it, one service with a fault could fill the stream, and the dead letters of all others would have to wait.
//! Every replica counts separately.

use std::collections::HashMap;
use std::num::NonZeroU32;
use std::time::Duration;

use contract::{DeadLetterClass, Service};
use governor::{DefaultDirectRateLimiter, Quota, RateLimiter};

/// How much of a message its dead letter holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Share {
    /// All of it.
    Complete,
    /// Everything but the body, which stays in the stream of the message.
    WithoutBody,
    /// Nothing: one dead letter lists many messages.
    Summary,
}

/// Dead letters that a service may cause at once by faults of its messages.
const LETTERS: NonZeroU32 = NonZeroU32::new(1_000).expect("positive");
/// The time after which it may cause another one. With [`LETTERS`], 44,200 within the 30 days that the stream keeps.
const LETTER_EVERY: Duration = Duration::from_secs(60);
/// The same for messages that may succeed later: it is convenient to have each of them.
const CURABLE_LETTERS: NonZeroU32 = NonZeroU32::new(10_000).expect("positive");
const CURABLE_LETTER_EVERY: Duration = Duration::from_secs(30);
/// Bytes of a service's messages that are copied at once, in KiB.
const KIB: NonZeroU32 = NonZeroU32::new(64 * 1024).expect("positive");
/// The time after which another KiB may be copied. With [`KIB`], 127 MiB within 30 days.
const KIB_EVERY: Duration = Duration::from_secs(40);
/// Maximum number of services that are told apart. A server without accounts accepts any name.
const MAX_SERVICES: usize = 1_024;

/// The shares of the services seen so far.
#[derive(Debug, Default)]
pub(crate) struct Shares {
    /// `None` for messages whose subject names no service, and for services beyond [`MAX_SERVICES`].
    services: HashMap<Option<Service>, ServiceShare>,
}

#[derive(Debug)]
struct ServiceShare {
    letters: DefaultDirectRateLimiter,
    curable_letters: DefaultDirectRateLimiter,
    kib: DefaultDirectRateLimiter,
}

impl ServiceShare {
    fn new() -> Self {
        let quota = |every: Duration, burst: NonZeroU32| {
            Quota::with_period(every).map_or_else(|| Quota::per_hour(burst), |quota| quota.allow_burst(burst))
        };
        Self {
            letters: RateLimiter::direct(quota(LETTER_EVERY, LETTERS)),
            curable_letters: RateLimiter::direct(quota(CURABLE_LETTER_EVERY, CURABLE_LETTERS)),
            kib: RateLimiter::direct(quota(KIB_EVERY, KIB)),
        }
    }
}

impl Shares {
    /// Takes the share of a dead letter of this class and size, in bytes.
    pub(crate) fn take(&mut self, service: Option<&Service>, class: DeadLetterClass, bytes: usize) -> Share {
        let share = self.of(service);
        let letters = if is_fault_of_message(class) { &share.letters } else { &share.curable_letters };
        if letters.check().is_err() {
            return Share::Summary;
        }
        let kib = u32::try_from(bytes / 1024 + 1).ok().and_then(NonZeroU32::new).unwrap_or(NonZeroU32::MAX);
        match share.kib.check_n(kib) {
            Ok(Ok(())) => Share::Complete,
            Ok(Err(_)) | Err(_) => Share::WithoutBody,
        }
    }

    fn of(&mut self, service: Option<&Service>) -> &ServiceShare {
        let has_room = self.services.len() < MAX_SERVICES;
        let known =
            service.filter(|service| has_room || self.services.contains_key(&Some((*service).clone())));
        self.services.entry(known.cloned()).or_insert_with(ServiceShare::new)
    }
}

/// Whether the same message, published again, would become a dead letter again. Others may succeed once what they lacked is
/// there.
fn is_fault_of_message(class: DeadLetterClass) -> bool {
    match class {
        DeadLetterClass::Malformed | DeadLetterClass::Denied | DeadLetterClass::Permanent => true,
        DeadLetterClass::MissingPrerequisite
        | DeadLetterClass::Exhausted
        | DeadLetterClass::Undeliverable => false,
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use super::*;

    #[test]
    fn a_service_that_used_up_its_share_leaves_that_of_others_alone() {
        let (first, second): (Service, Service) = ("first".parse().unwrap(), "second".parse().unwrap());
        let mut shares = Shares::default();
        let mut take = |service: &Service, class, bytes| shares.take(Some(service), class, bytes);
        let of_first: Vec<Share> =
            (0..1_100).map(|_| take(&first, DeadLetterClass::Malformed, 100_000)).collect();
        let count = |wanted| of_first.iter().filter(|share| **share == wanted).count();
        assert_eq!((count(Share::Summary), of_first[0]), (100, Share::Complete));
        assert!((600..700).contains(&count(Share::Complete)), "{}", count(Share::Complete));
        // A message that may succeed when it is replayed has another share.
        let curable: Vec<Share> =
            (0..10_100).map(|_| take(&first, DeadLetterClass::MissingPrerequisite, 100_000)).collect();
        assert_eq!(curable[0], Share::WithoutBody);
        assert_eq!(curable.iter().filter(|share| **share == Share::Summary).count(), 100);
        assert_eq!(take(&second, DeadLetterClass::Denied, 100_000), Share::Complete);
    }

    #[test]
    fn the_number_of_services_is_limited() {
        let mut shares = Shares::default();
        for number in 0..MAX_SERVICES * 2 {
            shares.take(Some(&format!("s{number}").parse().unwrap()), DeadLetterClass::Malformed, 10);
        }
        assert_eq!(shares.services.len(), MAX_SERVICES + 1);
    }
}
