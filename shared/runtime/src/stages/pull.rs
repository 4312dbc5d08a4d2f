//! Stage one: pulls messages from the durable consumer.

use std::time::Duration;

use async_nats::jetstream::consumer::PullConsumer;
use async_nats::jetstream::{self, AckKind};
use chrono::{DateTime, Utc};
use contract::RequestSubject;

use crate::delivery::in_flight::{InFlight, InFlightGuard};
use crate::delivery::retry::MessageKey;
use crate::stages::fair_queue::Sender;
use crate::stages::pull_requests::PullRequests;
use crate::stages::queues::Place;

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
    /// The service that published it and its user, according to its subject.
    pub(crate) sender: Sender,
    /// Its place in the queues; later messages may depend on it.
    pub(crate) place: Option<Place>,
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
        let subject: Option<RequestSubject> = message.subject.parse().ok();
        let sender = subject.map_or((None, None), |subject| (Some(subject.service), Some(subject.user_id)));
        Some(Self { stream, sequence, stored_at, deliveries, message, sender, place: None, _in_flight: hold })
    }
}

impl Delivery {
    /// Identifies the message among all messages of the broker.
    pub(crate) fn key(&self) -> MessageKey {
        (self.stream, self.sequence)
    }
}

/// Pulls from one consumer.
pub(crate) struct Puller {
    worker: &'static str,
    /// The stream of the consumer.
    stream_name: &'static str,
    jetstream: jetstream::Context,
    requests: PullRequests,
    in_flight: InFlight,
}

/// A batch is complete once it holds this many bytes, whatever its number of messages. Without this limit, a batch of
/// the largest bodies would take too much memory and exceed the size of a statement.
pub(crate) const BATCH_BYTES: usize = 8 * 1024 * 1024;
/// Pause before pulling again after an error.
const PAUSE_AFTER_ERROR: Duration = Duration::from_millis(250);

impl Puller {
    pub(crate) fn new(
        worker: &'static str,
        stream_name: &'static str,
        consumer: PullConsumer,
        jetstream: jetstream::Context,
        in_flight: InFlight,
        batch_size: usize,
    ) -> Self {
        let requests = PullRequests::new(jetstream.client(), consumer, batch_size, BATCH_BYTES);
        Self { worker, stream_name, jetstream, requests, in_flight }
    }

    /// Returns the next message, or `None` after an error. Cancel-safe: dropping the future loses no message.
    pub(crate) async fn next(&mut self) -> Option<Delivery> {
        match self.requests.next().await {
            Ok(message) => self.delivery(message),
            Err(problem) => {
                tracing::warn!(worker = self.worker, problem, "pull failed, retrying");
                tokio::time::sleep(PAUSE_AFTER_ERROR).await;
                None
            }
        }
    }

    fn delivery(&self, message: async_nats::Message) -> Option<Delivery> {
        let message = jetstream::Message { message, context: self.jetstream.clone() };
        Delivery::new(message, self.stream_name, &self.in_flight)
    }

    /// Naks the messages that are in no batch: these, and those that are on their way. It waits until the server has
    /// ended the open pull request, so that no message comes afterwards: it would be redelivered only after `ack_wait`.
    /// Returns how many.
    pub(crate) async fn hand_back(mut self, mut received: Vec<Delivery>) -> usize {
        while let Some(message) = self.requests.rest().await {
            received.extend(self.delivery(message));
        }
        // Not earlier, because the open request could bring them back.
        let mut handed_back = 0;
        for delivery in received {
            if delivery.message.ack_with(AckKind::Nak(None)).await.is_ok() {
                handed_back += 1;
            }
        }
        handed_back
    }
}
