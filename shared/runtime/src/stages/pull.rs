//! Stage one: messages from the durable consumer, in batches by count, size and time.

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

/// A message as JetStream delivered it. As long as it is not dropped, JetStream is told that it is worked on.
#[derive(Debug)]
pub struct Delivery {
    /// The message.
    pub message: jetstream::Message,
    /// The stream that holds it.
    pub stream: &'static str,
    /// Its place in the stream.
    pub sequence: u64,
    /// When JetStream stored it.
    pub stored_at: DateTime<Utc>,
    /// How often it has been delivered, this time included.
    pub deliveries: i64,
    _in_flight: InFlightGuard,
}

impl Delivery {
    /// Reads what JetStream says about a message; none if it was not delivered by a consumer.
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
    /// What tells it from every other message of the broker.
    pub(crate) fn key(&self) -> MessageKey {
        (self.stream, self.sequence)
    }
}

/// Batches out of one consumer.
pub(crate) struct Puller {
    worker: &'static str,
    /// The stream that its consumer is on.
    stream_name: &'static str,
    consumer: PullConsumer,
    /// None before the first pull and after an error.
    stream: Option<Stream>,
    /// What a pull that failed had received before.
    received: VecDeque<Delivery>,
    in_flight: InFlight,
    batch_size: usize,
    batch_wait: Duration,
}

/// A batch takes no further message once it holds this much, whatever its size may be: the largest bodies would
/// otherwise add up to more memory than a process should need, and to more than a statement can carry.
const BATCH_BYTES: usize = 8 * 1024 * 1024;
/// How long a pull request waits at the server. Nothing is lost by it running out: the next one follows.
const PULL_EXPIRES: Duration = Duration::from_secs(30);
/// A server silent for twice as long is taken for gone, and the pull is renewed.
const HEARTBEAT: Duration = Duration::from_secs(5);
/// How long to wait before pulling again after an error.
const AFTER_ERROR: Duration = Duration::from_millis(250);

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

    /// The next batch: everything that comes within `batch_wait` of its first message, up to `batch_size` messages
    /// or [`BATCH_BYTES`]. None once stopped.
    pub(crate) async fn next(&mut self, stop: &CancellationToken) -> Option<Vec<Delivery>> {
        let mut batch = Vec::new();
        let mut bytes = 0;
        while batch.is_empty() {
            tokio::select! {
                biased;
                () = stop.cancelled() => return None,
                received = self.receive() => keep(received, &mut batch, &mut bytes),
            }
        }
        let until = Instant::now() + self.batch_wait;
        while batch.len() < self.batch_size && bytes < BATCH_BYTES {
            // What is here already needs no timer.
            let received = match self.receive().now_or_never() {
                Some(received) => received,
                None => match timeout_at(until, self.receive()).await {
                    Ok(received) => received,
                    Err(_) => break,
                },
            };
            keep(received, &mut batch, &mut bytes);
        }
        Some(batch)
    }

    /// The next message; none after an error. Nothing is lost if this is dropped while it waits.
    async fn receive(&mut self) -> Option<Delivery> {
        if let Some(delivery) = self.received.pop_front() {
            return Some(delivery);
        }
        let problem = match &mut self.stream {
            Some(stream) => match stream.next().await {
                Some(Ok(message)) => return Delivery::new(message, self.stream_name, &self.in_flight),
                Some(Err(error)) => error.to_string(),
                None => "the consumer's messages ended".to_owned(),
            },
            None => match self.open().await {
                Ok(stream) => {
                    self.stream = Some(stream);
                    return None;
                }
                Err(error) => error.to_string(),
            },
        };
        tracing::warn!(worker = self.worker, problem, "cannot pull; trying again");
        // A pull does not recover from a consumer that was deleted and made again, or a server that forgot it.
        self.close();
        tokio::time::sleep(AFTER_ERROR).await;
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

    /// Ends the pull and keeps what the server has sent already.
    fn close(&mut self) {
        let Some(mut stream) = self.stream.take() else { return };
        // Unconstrained, or the task's budget of polls would end this after some dozens of messages.
        while let Some(Some(Ok(message))) = tokio::task::unconstrained(stream.next()).now_or_never() {
            self.received.extend(Delivery::new(message, self.stream_name, &self.in_flight));
        }
    }

    /// Ends the pull, and hands back what the server has sent already and no batch holds.
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

fn keep(received: Option<Delivery>, batch: &mut Vec<Delivery>, bytes: &mut usize) {
    if let Some(delivery) = received {
        *bytes += delivery.message.length;
        batch.push(delivery);
    }
}
