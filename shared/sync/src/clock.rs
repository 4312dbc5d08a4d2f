//! The hybrid logical clock of writes.
//!
//! [`uhlc::HLC`] owns a clock and keeps its last time; here both are arguments, and the steps are the same ones (a test compares
//! them). The time of a write is when its request was stored, raised above everything that its session had seen: of two writes of
//! which one knew the other, it has the later time, whatever the clocks said.

use chrono::{DateTime, Utc};
use uhlc::NTP64;

/// The low bits of a time count writes of the same moment.
const COUNTER: u64 = 0b1111;

/// A moment as a time of the clock. Moments before 1970 or after 2106 become the first or the last one.
pub fn moment(at: DateTime<Utc>) -> u64 {
    let micros = u64::try_from(at.timestamp_micros()).unwrap_or(0);
    match u32::try_from(micros / 1_000_000) {
        Ok(_) => NTP64::from(std::time::Duration::from_micros(micros)).as_u64() & !COUNTER,
        Err(_) => !COUNTER,
    }
}

/// The time of a write that was stored at a moment by a session that has seen the time `seen`.
pub fn tick(at: DateTime<Utc>, seen: u64) -> u64 {
    let at = moment(at);
    if at > seen { at } else { seen.saturating_add(1) }
}

/// Whether a time is more than `ahead_ms` milliseconds after a moment: the clock that it comes from runs ahead.
pub fn runs_ahead(time: u64, now: DateTime<Utc>, ahead_ms: u32) -> bool {
    let allowed = NTP64::from(std::time::Duration::from_millis(ahead_ms.into())).as_u64();
    time.saturating_sub(moment(now)) > allowed
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use std::cell::Cell;
    use std::time::Duration;

    use proptest::prelude::*;

    use super::*;

    thread_local!(static NOW: Cell<i64> = const { Cell::new(0) });

    fn at(micros: i64) -> DateTime<Utc> {
        DateTime::from_timestamp_micros(micros).unwrap()
    }

    proptest! {
        #[test]
        fn the_steps_are_those_of_uhlc(steps in proptest::collection::vec((0..50_i64, any::<bool>()), 1..40)) {
            let clock = uhlc::HLCBuilder::new()
                .with_clock(|| NTP64(moment(at(NOW.get()))))
                .with_max_delta(Duration::from_millis(500))
                .build();
            let mut seen = 0;
            for (micros, hears) in steps {
                NOW.set(1_000_000_000 + micros);
                if hears {
                    // What another session wrote a little later reaches this one.
                    let heard = moment(at(NOW.get() + 20));
                    let id = uhlc::ID::try_from([7_u8]).unwrap();
                    clock.update_with_timestamp(&uhlc::Timestamp::new(NTP64(heard), id)).unwrap();
                    // uhlc counts hearing as an event of its own.
                    seen = seen.max(heard) + 1;
                }
                seen = tick(at(NOW.get()), seen);
                prop_assert_eq!(seen, clock.new_timestamp().get_time().as_u64());
            }
        }
    }

    #[test]
    fn a_write_is_later_than_all_that_its_session_had_seen() {
        let late = moment(at(5_000_000));
        assert!(tick(at(1_000_000), late) > late);
        assert!(tick(at(9_000_000), late) > late);
        assert_eq!(tick(at(9_000_000), late), moment(at(9_000_000)));
    }

    #[test]
    fn a_clock_that_runs_ahead_is_found() {
        let now = at(1_000_000_000);
        assert!(!runs_ahead(moment(at(1_000_499_000)), now, 500));
        assert!(runs_ahead(moment(at(1_000_501_000)), now, 500));
        assert!(!runs_ahead(0, now, 500));
    }

    #[test]
    fn moments_out_of_range_are_the_first_or_the_last() {
        assert_eq!(moment(at(-1)), 0);
        assert_eq!(moment(at(i64::from(u32::MAX) * 2_000_000)), !COUNTER);
        assert!(tick(at(-5), u64::MAX) == u64::MAX);
    }
}
