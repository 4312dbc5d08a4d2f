//! Stage one: messages from the durable consumer, in batches by count and time.

use std::pin::pin;
use std::time::Duration;

use async_nats::jetstream::consumer::PullConsumer;
use async_nats::jetstream::consumer::pull::Stream;
use async_nats::jetstream::{self, AckKind};
use chrono::{DateTime, Utc};
use futures::{FutureExt, StreamExt};
use tokio::time::{Instant, timeout_at};
use tokio_util::sync::CancellationToken;

use crate::settings::WorkerSettings;

/// A message as JetStream delivered it.
#[derive(Debug)]
pub struct Delivery {
    /// The message.
    pub message: jetstream::Message,
    /// Its place in the stream.
    pub sequence: u64,
    /// When JetStream stored it.
    pub stored_at: DateTime<Utc>,
}

impl Delivery {
    /// Reads what JetStream says about a message; none if it was not delivered by a consumer.
    pub fn new(message: jetstream::Message) -> Option<Self> {
        let info = message.info().ok()?;
        let sequence = info.stream_sequence;
        let nanos = i64::try_from(info.published.unix_timestamp_nanos()).ok()?;
        Some(Self { sequence, stored_at: DateTime::from_timestamp_nanos(nanos), message })
    }
}

/// Batches out of one consumer.
pub(crate) struct Puller {
    stream: Stream,
    batch_size: usize,
    batch_wait: Duration,
}

/// How long a pull request waits at the server. Nothing is lost by it running out: the next one follows.
const PULL_EXPIRES: Duration = Duration::from_secs(30);
/// A server silent for twice as long is taken for gone, and the pull is renewed.
const HEARTBEAT: Duration = Duration::from_secs(5);
/// How long to wait before pulling again after an error.
const AFTER_ERROR: Duration = Duration::from_millis(250);

impl Puller {
    pub(crate) async fn open(
        consumer: &PullConsumer,
        settings: &WorkerSettings,
    ) -> Result<Self, jetstream::consumer::StreamError> {
        let stream = consumer
            .stream()
            .max_messages_per_batch(settings.batch_size)
            .expires(PULL_EXPIRES)
            .heartbeat(HEARTBEAT)
            .messages()
            .await?;
        Ok(Self { stream, batch_size: settings.batch_size, batch_wait: settings.batch_wait() })
    }

    /// The next batch: everything that comes within `batch_wait` of its first message, up to `batch_size`. None
    /// once stopped.
    pub(crate) async fn next(&mut self, stop: &CancellationToken) -> Option<Vec<Delivery>> {
        let mut batch = Vec::new();
        while batch.is_empty() {
            tokio::select! {
                biased;
                () = stop.cancelled() => return None,
                () = self.receive(&mut batch) => {}
            }
        }
        let until = Instant::now() + self.batch_wait;
        while batch.len() < self.batch_size {
            let received = pin!(self.receive(&mut batch));
            if timeout_at(until, received).await.is_err() {
                break;
            }
        }
        Some(batch)
    }

    async fn receive(&mut self, batch: &mut Vec<Delivery>) {
        match self.stream.next().await {
            Some(Ok(message)) => batch.extend(Delivery::new(message)),
            Some(Err(error)) => {
                tracing::warn!(%error, "pulling failed; trying again");
                tokio::time::sleep(AFTER_ERROR).await;
            }
            None => {
                tracing::warn!("the consumer's stream ended; trying again");
                tokio::time::sleep(AFTER_ERROR).await;
            }
        }
    }

    /// Hands back what the server has sent already and no batch holds.
    pub(crate) async fn hand_back(mut self) -> usize {
        let mut handed_back = 0;
        while let Some(Some(Ok(message))) = self.stream.next().now_or_never() {
            if message.ack_with(AckKind::Nak(None)).await.is_ok() {
                handed_back += 1;
            }
        }
        handed_back
    }
}
