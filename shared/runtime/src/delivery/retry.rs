//! How often and after which delay a message is retried.
//!
//! Each replica counts a message's tries itself. The server's delivery count cannot be used: it also grows when a
//! message is handed back at shutdown or when another message crashes the worker. The counts are lost in a crash, so a
//! message may be tried more often than configured; the consumer's `max_deliver` is the final limit.

use std::collections::HashMap;
use std::time::Duration;

/// Maximum number of messages whose tries are counted. Beyond it, the count with the lowest sequence is dropped.
const MAX_COUNTED: usize = 100_000;

/// How long to wait before try number `tries + 1`: `first` doubled with every try up to `longest`, minus a random share
/// of up to half, so that messages that failed together are not retried together.
pub fn delay(tries: u32, first: Duration, longest: Duration) -> Duration {
    let doubled = first.saturating_mul(1_u32.checked_shl(tries.saturating_sub(1)).unwrap_or(u32::MAX));
    let full = doubled.min(longest);
    full.mul_f64(fastrand::f64().mul_add(-0.5, 1.0))
}

/// The delay before a message that spends no try is delivered again, by the number of its deliveries so far. It grows
/// by half with each one, up to 30 s, so that what the message waits for is noticed soon. After 64 deliveries it grows
/// up to [`LONGEST_PARKED`], so that a message may wait for more than a day before the consumer's `max_deliver` (128)
/// ends it. A random share of up to a quarter is subtracted.
pub(crate) fn parked_delay(deliveries: i64) -> Duration {
    const FIRST: Duration = Duration::from_millis(250);
    const SHORT: Duration = Duration::from_secs(30);
    const SHORT_DELIVERIES: i32 = 64;
    let deliveries = i32::try_from(deliveries.clamp(1, 1_000)).unwrap_or(1);
    let grown = |from: Duration, times: i32, most: Duration| {
        Duration::try_from_secs_f64(from.as_secs_f64() * 1.5_f64.powi(times.clamp(0, 100)))
            .map_or(most, |grown| grown.min(most))
    };
    let full = match deliveries - SHORT_DELIVERIES {
        ..=0 => grown(FIRST, deliveries - 1, SHORT),
        more => grown(SHORT, more, LONGEST_PARKED),
    };
    full.mul_f64(fastrand::f64().mul_add(-0.25, 1.0))
}

/// The longest [`parked_delay`].
pub(crate) const LONGEST_PARKED: Duration = Duration::from_secs(45 * 60);

/// Identifies a message in the broker: its stream and its sequence number there.
pub(crate) type MessageKey = (&'static str, u64);

/// The tries spent, by message.
#[derive(Debug, Default)]
pub(crate) struct Budget {
    spent: HashMap<MessageKey, u32>,
}

impl Budget {
    /// Spends one try of a message. Returns the number of tries spent so far.
    pub(crate) fn spend(&mut self, message: MessageKey) -> u32 {
        if self.spent.len() >= MAX_COUNTED
            && !self.spent.contains_key(&message)
            && let Some(oldest) = self.spent.keys().min_by_key(|(_, sequence)| *sequence).copied()
        {
            self.spent.remove(&oldest);
        }
        let tries = self.spent.entry(message).or_insert(0);
        *tries = tries.saturating_add(1);
        *tries
    }

    /// Removes a settled message. Returns the number of tries it had spent.
    pub(crate) fn forget(&mut self, message: &MessageKey) -> u32 {
        self.spent.remove(message).unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn delays_grow_to_the_longest_and_differ() {
        let (first, longest) = (Duration::from_millis(100), Duration::from_secs(2));
        for tries in 1..=40 {
            let full = first.saturating_mul(1 << (tries - 1).min(20)).min(longest);
            let waited = delay(tries, first, longest);
            assert!(waited <= full && waited >= full / 2, "try {tries}: {waited:?} of {full:?}");
        }
    }

    #[test]
    fn a_parked_message_is_seen_soon_and_may_wait_for_a_day() {
        assert!(parked_delay(1) <= Duration::from_millis(250));
        let shortest = |deliveries: std::ops::Range<i64>| -> Duration {
            deliveries.map(parked_delay).fold(Duration::ZERO, |sum, delay| sum + delay)
        };
        assert!((1..64).all(|deliveries| parked_delay(deliveries) <= Duration::from_secs(30)));
        let all = shortest(1..128);
        assert!(all > Duration::from_secs(24 * 3_600), "{all:?}");
        assert!((1..1_000).all(|deliveries| parked_delay(deliveries) <= LONGEST_PARKED));
        assert!(parked_delay(i64::MAX) >= LONGEST_PARKED.mul_f64(0.75));
    }

    #[test]
    fn the_count_is_kept_per_message_and_bounded() {
        let mut budget = Budget::default();
        let (seventh, other) = (("CONTEXT", 7), ("JOBS", 7));
        assert_eq!((budget.spend(seventh), budget.spend(seventh), budget.spend(other)), (1, 2, 1));
        assert_eq!((budget.forget(&seventh), budget.spend(seventh)), (2, 1));
        for sequence in 0..=MAX_COUNTED as u64 + 10 {
            budget.spend(("CONTEXT", sequence));
        }
        assert!(budget.spent.len() <= MAX_COUNTED);
    }
}
