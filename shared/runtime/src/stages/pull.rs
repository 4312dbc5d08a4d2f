//! Stage one: pulls messages from the durable consumer in batches, limited by count, size and time.

use std::collections::VecDeque;
use std::time::Duration;

use async_nats::jetstream::consumer::PullConsumer;
use async_nats::jetstream::consumer::pull::Stream;
use async_nats::jetstream::{self, AckKind};
use chrono::{DateTime, Utc};
use config::WorkerSettings;
use futures::{FutureExt, StreamExt};
use tokio::time::{Instant, timeout_at};
use tokio_util::sync::CancellationToken;

use crate::delivery::in_flight::{InFlight, InFlightGuard};
use crate::delivery::retry::MessageKey;

/// A message as JetStream delivered it. Until it is dropped, its `ack_wait` is extended.
#[derive(Debug)]
pub struct Delivery {
    /// The message.
    pub message: jetstream::Message,
    /// The stream that holds it.
    pub stream: &'static str,
    /// Its sequence number in the stream.
    pub sequence: u64,
    /// When JetStream stored it.
    pub stored_at: DateTime<Utc>,
    /// The number of deliveries, including this one.
    pub deliveries: i64,
    _in_flight: InFlightGuard,
}

impl Delivery {
    /// Reads the JetStream metadata of a message. `None` if no consumer delivered it.
    fn new(message: jetstream::Message, stream: &'static str, in_flight: &InFlight) -> Option<Self> {
        let info = message.info().ok()?;
        let (sequence, deliveries) = (info.stream_sequence, info.delivered);
        let nanos = i64::try_from(info.published.unix_timestamp_nanos()).ok()?;
        let hold = in_flight.hold(message.reply.clone()?);
        let stored_at = DateTime::from_timestamp_nanos(nanos);
        Some(Self { stream, sequence, stored_at, deliveries, message, _in_flight: hold })
    }
}

impl Delivery {
    /// Identifies the message among all messages of the broker.
    pub(crate) fn key(&self) -> MessageKey {
        (self.stream, self.sequence)
    }
}

/// Pulls batches from one consumer.
pub(crate) struct Puller {
    worker: &'static str,
    /// The stream of the consumer.
    stream_name: &'static str,
    consumer: PullConsumer,
    /// The open pull. `None` before the first pull and after an error.
    stream: Option<Stream>,
    /// Messages that a closed pull had already received.
    received: VecDeque<Delivery>,
    in_flight: InFlight,
    batch_size: usize,
    batch_wait: Duration,
}

/// A batch is complete once it holds this many bytes, whatever its number of messages. Without this limit, a batch of
/// the largest bodies would take too much memory and exceed the size of a statement.
const BATCH_BYTES: usize = 8 * 1024 * 1024;
/// How long a pull request stays open at the server. The client renews it when it expires; no message is lost.
const PULL_EXPIRES: Duration = Duration::from_secs(30);
/// Interval of the server's idle heartbeats. If none arrives for twice as long, the pull is closed and opened again.
const HEARTBEAT: Duration = Duration::from_secs(5);
/// Pause before pulling again after an error.
const PAUSE_AFTER_ERROR: Duration = Duration::from_millis(250);

impl Puller {
    pub(crate) fn new(
        worker: &'static str,
        stream_name: &'static str,
        consumer: PullConsumer,
        in_flight: InFlight,
        settings: &WorkerSettings,
    ) -> Self {
        let (batch_size, batch_wait) = (settings.batch_size, settings.batch_wait());
        Self {
            worker,
            stream_name,
            consumer,
            stream: None,
            received: VecDeque::new(),
            in_flight,
            batch_size,
            batch_wait,
        }
    }

    /// Returns the next batch: all messages that arrive within `batch_wait` of the first one, up to `batch_size`
    /// messages or [`BATCH_BYTES`]. `None` once stopped.
    pub(crate) async fn next(&mut self, stop: &CancellationToken) -> Option<Vec<Delivery>> {
        let mut batch = Vec::new();
        let mut bytes = 0;
        while batch.is_empty() {
            tokio::select! {
                biased;
                () = stop.cancelled() => return None,
                received = self.receive() => add_to_batch(received, &mut batch, &mut bytes),
            }
        }
        let until = Instant::now() + self.batch_wait;
        while batch.len() < self.batch_size && bytes < BATCH_BYTES {
            // A message that has already arrived needs no timer.
            let received = match self.receive().now_or_never() {
                Some(received) => received,
                None => match timeout_at(until, self.receive()).await {
                    Ok(received) => received,
                    Err(_) => break,
                },
            };
            add_to_batch(received, &mut batch, &mut bytes);
        }
        Some(batch)
    }

    /// Returns the next message, or `None` after an error. Cancel-safe: dropping the future loses no message.
    async fn receive(&mut self) -> Option<Delivery> {
        if let Some(delivery) = self.received.pop_front() {
            return Some(delivery);
        }
        let problem = match &mut self.stream {
            Some(stream) => match stream.next().await {
                Some(Ok(message)) => return Delivery::new(message, self.stream_name, &self.in_flight),
                Some(Err(error)) => error.to_string(),
                None => "the pull subscription ended".to_owned(),
            },
            None => match self.open().await {
                Ok(stream) => {
                    self.stream = Some(stream);
                    return None;
                }
                Err(error) => error.to_string(),
            },
        };
        tracing::warn!(worker = self.worker, problem, "pull failed, retrying");
        // An open pull does not recover if its consumer was deleted and created again, or if the server lost the pull.
        self.close();
        tokio::time::sleep(PAUSE_AFTER_ERROR).await;
        None
    }

    async fn open(&self) -> Result<Stream, jetstream::consumer::StreamError> {
        self.consumer
            .stream()
            .max_messages_per_batch(self.batch_size)
            .max_bytes_per_batch(BATCH_BYTES)
            .expires(PULL_EXPIRES)
            .heartbeat(HEARTBEAT)
            .messages()
            .await
    }

    /// Closes the pull and keeps the messages that the server has already sent.
    fn close(&mut self) {
        let Some(mut stream) = self.stream.take() else { return };
        // Without `unconstrained`, tokio's cooperative budget would end the loop after some dozens of messages.
        while let Some(Some(Ok(message))) = tokio::task::unconstrained(stream.next()).now_or_never() {
            self.received.extend(Delivery::new(message, self.stream_name, &self.in_flight));
        }
    }

    /// Closes the pull and naks the received messages that are in no batch. Returns how many.
    pub(crate) async fn hand_back(mut self) -> usize {
        self.close();
        let mut handed_back = 0;
        for delivery in self.received {
            if delivery.message.ack_with(AckKind::Nak(None)).await.is_ok() {
                handed_back += 1;
            }
        }
        handed_back
    }
}

fn add_to_batch(received: Option<Delivery>, batch: &mut Vec<Delivery>, bytes: &mut usize) {
    if let Some(delivery) = received {
        *bytes += delivery.message.length;
        batch.push(delivery);
    }
}
