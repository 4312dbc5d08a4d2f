//! How far other workers are whose records a message needs.
//!
//! A message may arrive before its prerequisite, which a message of another stream brings. How long that takes depends
//! on the other stream's worker and not on this message. So it spends no try before that worker has settled everything
//! that was in its stream when the prerequisite was first found missing.

use std::collections::HashMap;
use std::time::Duration;

use async_nats::jetstream::{self, consumer::PullConsumer};
use chrono::Utc;
use contract::WorkerInfo;
use tokio::time::{Instant, timeout};

use crate::delivery::retry::MessageKey;
use crate::stages::pull::Delivery;

/// The progress of the workers that one worker depends on.
pub(crate) struct AwaitedWorkers {
    worker: &'static str,
    jetstream: jetstream::Context,
    /// The age of a message at which it no longer waits for another worker.
    longest: Duration,
    /// By the name of the awaited worker.
    progress: HashMap<&'static str, Progress>,
    /// For each message that waits, the last sequence of the awaited stream when it began to wait.
    marks: HashMap<MessageKey, u64>,
    batch: u64,
}

struct Progress {
    read_at: Instant,
    /// The batch in which it was read.
    batch: u64,
    /// `None` if it could not be read.
    positions: Option<Positions>,
}

/// Positions in the stream of an awaited worker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Positions {
    /// The last message.
    last: u64,
    /// Everything up to here is settled.
    settled: u64,
}

/// How long a read position is used for messages that wait already.
const USED_FOR: Duration = Duration::from_secs(1);
/// How long after a failure no position is read. Settling waits for each read.
const AFTER_FAILURE: Duration = Duration::from_secs(10);
/// The time limit of one read.
const READ_TIMEOUT: Duration = Duration::from_secs(1);
/// The maximum number of messages whose position is remembered. Beyond it, the one with the lowest sequence is dropped.
const MAX_MARKS: usize = 100_000;

impl AwaitedWorkers {
    pub(crate) fn new(worker: &'static str, jetstream: jetstream::Context, longest: Duration) -> Self {
        let (progress, marks) = (HashMap::new(), HashMap::new());
        Self { worker, jetstream, longest, progress, marks, batch: 0 }
    }

    /// Whether the awaited worker has yet to settle messages that may bring what this message needs. False also if that
    /// cannot be found out, so that no message waits for ever. `batch` is the number of batches so far; the message was
    /// stored before the last one began.
    pub(crate) async fn is_behind(
        &mut self,
        awaited: &'static WorkerInfo,
        delivery: &Delivery,
        batch: u64,
    ) -> bool {
        self.batch = batch;
        let age = (Utc::now() - delivery.stored_at).to_std().unwrap_or_default();
        if age >= self.longest {
            return false;
        }
        let mark = self.marks.get(&delivery.key()).copied();
        // A mark is taken from a position that was read after the message was stored.
        let Some(positions) = self.positions(awaited, mark.is_none()).await else { return false };
        let mark = mark.unwrap_or_else(|| self.mark(delivery.key(), positions.last));
        positions.settled < mark
    }

    /// Removes a settled message.
    pub(crate) fn forget(&mut self, message: &MessageKey) {
        self.marks.remove(message);
    }

    fn mark(&mut self, message: MessageKey, last: u64) -> u64 {
        if self.marks.len() >= MAX_MARKS
            && let Some(oldest) = self.marks.keys().min_by_key(|(_, sequence)| *sequence).copied()
        {
            self.marks.remove(&oldest);
        }
        self.marks.insert(message, last);
        last
    }

    async fn positions(&mut self, awaited: &'static WorkerInfo, in_this_batch: bool) -> Option<Positions> {
        if let Some(known) = self.progress.get(awaited.name) {
            let age = known.read_at.elapsed();
            let is_good = match known.positions {
                None => age < AFTER_FAILURE,
                Some(_) => known.batch == self.batch || (!in_this_batch && age < USED_FOR),
            };
            if is_good {
                return known.positions;
            }
        }
        let stream = awaited.stream?;
        let read = self.jetstream.get_consumer_from_stream(awaited.name, stream);
        let positions = match timeout(READ_TIMEOUT, read).await {
            Ok(Ok(consumer)) => Ok(positions_of(&consumer)),
            Ok(Err(error)) => Err(error.to_string()),
            Err(_) => Err(format!("no answer within {} s", READ_TIMEOUT.as_secs())),
        };
        if let Err(problem) = &positions {
            tracing::warn!(
                worker = self.worker,
                awaited = awaited.name,
                problem,
                "cannot read how far another worker is; messages that need its records are retried within their budget"
            );
        }
        let positions = positions.ok();
        let (read_at, batch) = (Instant::now(), self.batch);
        self.progress.insert(awaited.name, Progress { read_at, batch, positions });
        positions
    }
}

fn positions_of(consumer: &PullConsumer) -> Positions {
    let info = consumer.cached_info();
    let last = info.delivered.stream_sequence.saturating_add(info.num_pending);
    // The server does not move the floor over messages that have left the stream.
    let is_done = info.num_pending == 0 && info.num_ack_pending == 0;
    Positions { last, settled: if is_done { last } else { info.ack_floor.stream_sequence } }
}
