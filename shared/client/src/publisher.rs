//! Publishes requests in bulk and counts the acknowledgements of JetStream.

use std::time::Duration;

use async_nats::Client;
use async_nats::jetstream::Context;
use async_nats::jetstream::context::{ContextBuilder, PublishAckFuture, PublishError, PublishErrorKind};
use async_nats::jetstream::message::PublishMessage;
use async_nats::jetstream::publish::PublishAck;
use bytes::Bytes;
use contract::header;
use futures::future::BoxFuture;
use futures::stream::FuturesUnordered;
use futures::{FutureExt, StreamExt};
use serde::Serialize;
use tokio::time::sleep;
use uuid::Uuid;

use crate::message_ids::MessageIds;
use crate::payload_keys::{Payload, PayloadKeys};

/// Options of a [`Publisher`].
#[derive(Clone, Debug)]
pub struct PublisherOptions {
    /// The maximum number of unacknowledged requests. When it is reached, [`Publisher::send`] waits.
    pub window: usize,
    /// The number of attempts, including the first, before a request counts as refused.
    pub attempts: u32,
    /// The delay before the second attempt. It doubles with every further attempt.
    pub first_delay: Duration,
    /// The timeout for an acknowledgement.
    pub acknowledged_within: Duration,
}

impl Default for PublisherOptions {
    fn default() -> Self {
        Self {
            window: 512,
            attempts: 5,
            first_delay: Duration::from_millis(100),
            acknowledged_within: Duration::from_secs(10),
        }
    }
}

/// Counts of the requests so far.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Published {
    /// The stream stored them.
    pub stored: u64,
    /// The stream had stored a request of this publisher with the same id before, within its duplicate window.
    pub duplicate: u64,
    /// The broker accepted none of the attempts.
    pub refused: u64,
    /// The reasons of the first refused requests.
    pub reasons: Vec<String>,
}

/// The maximum number of reasons that are kept.
const REASONS: usize = 5;
const LONGEST_DELAY: Duration = Duration::from_secs(5);

/// Publishes requests with a limited number of requests in flight.
///
/// Requests reach the stream in the order of [`Publisher::send`], except that a request that is published again comes
/// later. It keeps its id, so that it is stored once even if only its acknowledgement was lost.
pub struct Publisher {
    jetstream: Context,
    payload_keys: PayloadKeys,
    message_ids: MessageIds,
    options: PublisherOptions,
    in_flight: FuturesUnordered<BoxFuture<'static, Result<PublishAck, String>>>,
    published: Published,
}

impl Publisher {
    /// Creates a publisher over a connection.
    pub fn new(client: Client, options: PublisherOptions) -> Self {
        Self {
            jetstream: jetstream(client, &options),
            payload_keys: PayloadKeys::default(),
            message_ids: MessageIds::random(),
            options,
            in_flight: FuturesUnordered::new(),
            published: Published::default(),
        }
    }

    /// Encrypts the bodies of services that have a key.
    #[must_use]
    pub fn with_payload_keys(self, payload_keys: PayloadKeys) -> Self {
        Self { payload_keys, ..self }
    }

    /// Uses these ids instead of random ones, so that requests of other processes are recognized too.
    #[must_use]
    pub fn with_message_ids(self, message_ids: MessageIds) -> Self {
        Self { message_ids, ..self }
    }

    /// Publishes a request with its service token, first waiting for acknowledgements if the window is full. Its result
    /// is counted in [`Publisher::so_far`].
    pub async fn send(&mut self, subject: String, id: Uuid, body: Bytes, token: Option<String>) {
        // Published here rather than when its future is first polled, which keeps the order.
        let (jetstream, options) = (self.jetstream.clone(), self.options.clone());
        let payload = match self.payload_keys.encrypt(&subject, body) {
            Ok(payload) => payload,
            Err(error) => return self.count(Err(format!("{subject} (id {id}): {error}"))),
        };
        let message_id = self.message_ids.of(id);
        let request =
            Outgoing { jetstream, options, subject, id, message_id, payload, token, reply_to: None };
        let first = request.publish().await;
        self.in_flight.push(request.acknowledged(first).boxed());
        while let Some(Some(outcome)) = self.in_flight.next().now_or_never() {
            self.count(outcome);
        }
        while self.in_flight.len() >= self.options.window.max(1) {
            let Some(outcome) = self.in_flight.next().await else { break };
            self.count(outcome);
        }
    }

    /// The counts so far, without those in flight.
    pub fn so_far(&self) -> &Published {
        &self.published
    }

    /// Waits for the outstanding acknowledgements, each with its own timeout, and returns the counts.
    pub async fn flush(&mut self) -> &Published {
        while let Some(outcome) = self.in_flight.next().await {
            self.count(outcome);
        }
        &self.published
    }

    /// Like [`Publisher::flush`], but consumes the publisher.
    pub async fn finish(mut self) -> Published {
        self.flush().await;
        self.published
    }

    fn count(&mut self, outcome: Result<PublishAck, String>) {
        match outcome {
            Ok(ack) if ack.duplicate => self.published.duplicate += 1,
            Ok(_) => self.published.stored += 1,
            Err(reason) => {
                self.published.refused += 1;
                if self.published.reasons.len() < REASONS {
                    self.published.reasons.push(reason);
                }
            }
        }
    }
}

/// A JetStream context whose own limits do not restrict the options.
pub(crate) fn jetstream(client: Client, options: &PublisherOptions) -> Context {
    ContextBuilder::new()
        .timeout(options.acknowledged_within)
        // The publisher limits the requests in flight. The limit of the context only must not be lower.
        .max_ack_inflight(options.window.saturating_mul(2).max(1))
        .build(client)
}

/// A request that is being published.
pub(crate) struct Outgoing {
    pub(crate) jetstream: Context,
    pub(crate) options: PublisherOptions,
    pub(crate) subject: String,
    /// The request id.
    pub(crate) id: Uuid,
    /// The id by which the broker recognizes it when it is published again.
    pub(crate) message_id: Uuid,
    pub(crate) payload: Payload,
    pub(crate) token: Option<String>,
    /// The subject to which its outcome is published.
    pub(crate) reply_to: Option<String>,
}

impl Outgoing {
    pub(crate) async fn publish(&self) -> Result<PublishAckFuture, PublishError> {
        let Payload { key_id, body } = &self.payload;
        let mut message =
            PublishMessage::build().payload(body.clone()).message_id(self.message_id.to_string());
        message = message.header(header::REQUEST_ID, self.id.to_string().as_str());
        if let Some(key_id) = key_id {
            message = message.header(header::ENCRYPTION, key_id.as_str());
        }
        if let Some(token) = &self.token {
            message = message.header(header::AUTHORIZATION, header::bearer(token).as_str());
        }
        if let Some(reply_to) = &self.reply_to {
            message = message.header(header::REPLY_TO, reply_to.as_str());
        }
        self.jetstream.send_publish(self.subject.clone(), message).await
    }

    /// Waits for the acknowledgement. Publishes the request again as often as the options allow.
    pub(crate) async fn acknowledged(
        self,
        first: Result<PublishAckFuture, PublishError>,
    ) -> Result<PublishAck, String> {
        let (mut published, mut attempt, mut delay) = (first, 1, self.options.first_delay);
        loop {
            let error = match published {
                Ok(acknowledgement) => match acknowledgement.await {
                    Ok(ack) => return Ok(ack),
                    Err(error) => error,
                },
                Err(error) => error,
            };
            if attempt >= self.options.attempts || error.kind() == PublishErrorKind::MaxPayloadExceeded {
                return Err(self.reason(&error, attempt));
            }
            sleep(delay).await;
            delay = (delay * 2).min(LONGEST_DELAY);
            attempt += 1;
            published = self.publish().await;
        }
    }

    fn reason(&self, error: &PublishError, attempts: u32) -> String {
        let advice = match error.kind() {
            PublishErrorKind::StreamNotFound => "; `memfleet nats apply` creates the streams",
            PublishErrorKind::TimedOut => {
                "; either the broker is overloaded, or these credentials may not publish there"
            }
            PublishErrorKind::WrongLastMessageId
            | PublishErrorKind::WrongLastSequence
            | PublishErrorKind::BrokenPipe
            | PublishErrorKind::MaxAckPending
            | PublishErrorKind::MaxPayloadExceeded
            | PublishErrorKind::Other => "",
        };
        format!("{} (id {}, {attempts} attempts): {error}{advice}", self.subject, self.id)
    }
}
