//! Counters and latencies of a worker since it started.

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::time::Duration;

use chrono::{DateTime, Utc};
use contract::DeadLetterClass;
use hdrhistogram::Histogram;
use serde::Serialize;

use crate::stages::disposition::Effect;

/// Counters and latencies of one worker in this process.
#[derive(Debug)]
pub struct Stats {
    inner: Mutex<Inner>,
}

#[derive(Debug)]
struct Inner {
    applied: u64,
    unchanged: u64,
    repeated: u64,
    retried: u64,
    delayed: u64,
    batches: u64,
    dead: BTreeMap<&'static str, u64>,
    /// Microseconds from storage by JetStream to the commit in PostgreSQL. `None` only if the histogram rejected its
    /// bounds, which are valid constants.
    commit_delay: Option<Histogram<u64>>,
}

/// A snapshot of [`Stats`].
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct StatsReport {
    /// Messages that took effect.
    pub applied: u64,
    /// Valid messages that changed nothing.
    pub unchanged: u64,
    /// Messages whose effect had been committed before.
    pub repeated: u64,
    /// Deliveries that were retried later and spent a try.
    pub retried: u64,
    /// Deliveries that were deferred without spending a try: over a rate limit, or waiting for a lock or another worker.
    pub delayed: u64,
    /// Transactions committed.
    pub batches: u64,
    /// Dead letters by class.
    pub dead: BTreeMap<&'static str, u64>,
    /// Median time from publish to commit, in milliseconds.
    pub publish_to_commit_ms_p50: f64,
    /// 99th percentile of the time from publish to commit, in milliseconds.
    pub publish_to_commit_ms_p99: f64,
}

/// One hour. Longer times are recorded as this.
const LONGEST_MICROS: u64 = 3_600_000_000;

impl Default for Stats {
    fn default() -> Self {
        Self {
            inner: Mutex::new(Inner {
                applied: 0,
                unchanged: 0,
                repeated: 0,
                retried: 0,
                delayed: 0,
                batches: 0,
                dead: BTreeMap::new(),
                commit_delay: Histogram::new_with_bounds(1, LONGEST_MICROS, 2).ok(),
            }),
        }
    }
}

impl Stats {
    fn with<T>(&self, work: impl FnOnce(&mut Inner) -> T) -> T {
        // The counters are valid even if a panic poisoned the lock.
        work(&mut self.inner.lock().unwrap_or_else(std::sync::PoisonError::into_inner))
    }

    pub(crate) fn committed(
        &self,
        now: DateTime<Utc>,
        messages: impl Iterator<Item = (Effect, DateTime<Utc>)>,
    ) {
        self.with(|inner| {
            inner.batches += 1;
            for (what, stored_at) in messages {
                match what {
                    Effect::Applied => inner.applied += 1,
                    Effect::Unchanged => inner.unchanged += 1,
                    Effect::Repeated => inner.repeated += 1,
                }
                if what == Effect::Repeated {
                    continue;
                }
                let micros = (now - stored_at).num_microseconds().unwrap_or(i64::MAX);
                if let Some(delays) = &mut inner.commit_delay {
                    delays.saturating_record(u64::try_from(micros).unwrap_or(0).clamp(1, LONGEST_MICROS));
                }
            }
        });
    }

    pub(crate) fn retried(&self) {
        self.with(|inner| inner.retried += 1);
    }

    pub(crate) fn delayed(&self) {
        self.with(|inner| inner.delayed += 1);
    }

    pub(crate) fn dead_lettered(&self, class: DeadLetterClass) {
        self.with(|inner| *inner.dead.entry(class.as_str()).or_insert(0) += 1);
    }

    /// Returns the counters and latencies so far.
    pub fn report(&self) -> StatsReport {
        self.with(|inner| {
            let at = |quantile| {
                let micros =
                    inner.commit_delay.as_ref().map_or(0, |delays| delays.value_at_quantile(quantile));
                Duration::from_micros(micros).as_secs_f64() * 1e3
            };
            StatsReport {
                applied: inner.applied,
                unchanged: inner.unchanged,
                repeated: inner.repeated,
                retried: inner.retried,
                delayed: inner.delayed,
                batches: inner.batches,
                dead: inner.dead.clone(),
                publish_to_commit_ms_p50: at(0.5),
                publish_to_commit_ms_p99: at(0.99),
            }
        })
    }

    /// Resets everything, to measure from now on.
    pub fn reset(&self) {
        let Self { inner: fresh } = Self::default();
        let fresh = fresh.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner);
        self.with(|inner| *inner = fresh);
    }
}
