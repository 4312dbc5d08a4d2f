//! The broker's view of the workers.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use async_nats::jetstream;
use async_nats::jetstream::consumer::PullConsumer;
use client::Published;
use contract::WorkerInfo;
use runtime::Stats;
use tokio::time::sleep;

use super::progress::Progress;

/// How often the consumers are checked.
const POLL_INTERVAL: Duration = Duration::from_millis(10);
/// Workers that commit nothing for this long are considered stuck.
const STUCK_AFTER: Duration = Duration::from_secs(60);
/// The stream of dead letters.
const DEAD_STREAM: &str = "DEAD";

/// The broker's view of the workers, and the counters of those in this process.
pub(super) struct Broker {
    jetstream: jetstream::Context,
    pub(super) stats: Vec<Arc<Stats>>,
    /// Number of messages that the workers of this process had settled before.
    settled_before: u64,
}

impl Broker {
    pub(super) fn new(jetstream: jetstream::Context, stats: Vec<Arc<Stats>>) -> Self {
        let mut broker = Self { jetstream, stats, settled_before: 0 };
        broker.settled_before = broker.settled().unwrap_or(0);
        broker
    }

    /// How many messages the workers in this process have settled since this was created.
    pub(super) fn settled(&self) -> Option<u64> {
        let settled = |stats: &Arc<Stats>| {
            let report = stats.report();
            report.applied + report.unchanged + report.repeated + report.dead.values().sum::<u64>()
        };
        (!self.stats.is_empty()).then(|| self.stats.iter().map(settled).sum::<u64>() - self.settled_before)
    }

    /// The last sequence number of the stream of dead letters.
    pub(super) async fn dead_letters(&self) -> anyhow::Result<u64> {
        let stream = self.jetstream.get_stream(DEAD_STREAM).await;
        let stream = stream.with_context(|| {
            format!("cannot read the stream {DEAD_STREAM}; `memfleet nats apply` creates it")
        })?;
        // The sequence number, not the count: it also covers dead letters that were replayed or deleted meanwhile.
        Ok(stream.cached_info().state.last_sequence)
    }

    async fn consumers(&self, workers: &[&WorkerInfo]) -> anyhow::Result<Vec<PullConsumer>> {
        let mut consumers = Vec::new();
        for (name, stream) in workers.iter().filter_map(|worker| Some((worker.name, worker.stream?))) {
            let consumer = self.jetstream.get_consumer_from_stream(name, stream).await;
            consumers.push(consumer.with_context(|| {
                format!(
                    "cannot read the consumer {name} of the stream {stream}; `memfleet nats apply` creates it"
                )
            })?);
        }
        Ok(consumers)
    }

    /// Waits until these workers have settled every message of their streams, and their counters include all that was
    /// published.
    pub(super) async fn drained(
        &self,
        workers: &[&WorkerInfo],
        published: &Published,
        progress: &mut Progress,
    ) -> anyhow::Result<()> {
        let mut consumers = self.consumers(workers).await?;
        let (mut last_seen, mut moved_at) = (None, Instant::now());
        loop {
            let (mut waiting, mut in_flight) = (0, 0);
            for consumer in &mut consumers {
                let info = consumer.info().await.context("cannot read a worker's consumer")?;
                waiting += info.num_pending;
                in_flight += info.num_ack_pending;
            }
            let settled = self.settled();
            let all_counted = settled.is_none_or(|settled| settled >= published.stored);
            if waiting == 0 && in_flight == 0 && all_counted {
                return Ok(());
            }
            let seen = Some((waiting, in_flight, settled));
            if seen != last_seen {
                (last_seen, moved_at) = (seen, Instant::now());
            }
            if moved_at.elapsed() > STUCK_AFTER {
                bail!(
                    "the workers committed nothing for {} s: {waiting} messages are pending and {in_flight} in flight; \
                     check the workers' log, and `memfleet status` for running workers",
                    STUCK_AFTER.as_secs()
                );
            }
            let accepted = published.stored + published.duplicate;
            let left = waiting + u64::try_from(in_flight).unwrap_or(0);
            progress.update(accepted, Some(accepted.saturating_sub(left)), Some(accepted));
            sleep(POLL_INTERVAL).await;
        }
    }
}
