//! How often and after how long a message is tried again.
//!
//! The server's delivery count is no measure of it: a hand-back at shutdown and a crash of a neighbour raise it
//! too. So the tries are counted here, by each replica for the faults it has seen. A crash forgets them, which
//! errs on the side of trying more often; the consumer's `max_deliver` is the bound behind this one.

use std::collections::HashMap;
use std::time::Duration;

/// How many messages may be between tries before the oldest counts are forgotten.
const REMEMBERED: usize = 100_000;

/// How long to wait before try number `tries + 1`: `first` doubled with every try up to `longest`, of which a
/// random half is taken off, so that messages that failed together do not come back together.
pub fn delay(tries: u32, first: Duration, longest: Duration) -> Duration {
    let doubled = first.saturating_mul(1_u32.checked_shl(tries.saturating_sub(1)).unwrap_or(u32::MAX));
    let full = doubled.min(longest);
    full.mul_f64(fastrand::f64().mul_add(-0.5, 1.0))
}

/// A message of the broker: its stream, and its sequence there.
pub(crate) type MessageKey = (&'static str, u64);

/// Tries spent, by message.
#[derive(Debug, Default)]
pub(crate) struct Budget {
    spent: HashMap<MessageKey, u32>,
}

impl Budget {
    /// Spends one try of a message and gives how many it has spent.
    pub(crate) fn spend(&mut self, message: MessageKey) -> u32 {
        if self.spent.len() >= REMEMBERED
            && !self.spent.contains_key(&message)
            && let Some(oldest) = self.spent.keys().min_by_key(|(_, sequence)| *sequence).copied()
        {
            self.spent.remove(&oldest);
        }
        let tries = self.spent.entry(message).or_insert(0);
        *tries = tries.saturating_add(1);
        *tries
    }

    /// Forgets a message that is settled, and gives how many tries it had spent.
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
    fn the_count_is_kept_per_message_and_bounded() {
        let mut budget = Budget::default();
        let (seventh, other) = (("CONTEXT", 7), ("JOBS", 7));
        assert_eq!((budget.spend(seventh), budget.spend(seventh), budget.spend(other)), (1, 2, 1));
        assert_eq!((budget.forget(&seventh), budget.spend(seventh)), (2, 1));
        for sequence in 0..=REMEMBERED as u64 + 10 {
            budget.spend(("CONTEXT", sequence));
        }
        assert!(budget.spent.len() <= REMEMBERED);
    }
}
