//! Publishes events and dead letters. A publish succeeds only once the broker has stored the message.

use std::time::Duration;

use async_nats::jetstream::context::PublishError;
use async_nats::{HeaderMap, jetstream};
use bytes::Bytes;
use contract::{EventSubject, header};
use futures::future::join_all;
use store::blackboard::StoredEvent;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::delivery::retry;

/// The broker did not store something that must be stored before the acknowledgement. The message that caused it stays
/// unsettled and is redelivered.
pub(crate) struct NotPublished;

const FIRST_PAUSE: Duration = Duration::from_millis(50);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);
/// How often a publish is tried while the worker is stopping. Otherwise it is retried until it succeeds.
const MAX_TRIES_WHEN_STOPPING: u32 = 3;
/// How often a dead letter is tried before its message is redelivered.
const MAX_TRIES_OF_DEAD_LETTER: u32 = 3;
/// How many events a lane sends before it waits for their acknowledgements. The client library admits 5,000 messages without one, of all
/// lanes of a worker together, and makes whoever sends another one wait: a lane that holds so many itself would wait for ever.
const AT_ONCE: usize = 250;

/// Publishes for one worker.
#[derive(Clone)]
pub(crate) struct EventPublisher {
    pub(crate) worker: &'static str,
    pub(crate) jetstream: jetstream::Context,
    pub(crate) stop: CancellationToken,
}

impl EventPublisher {
    /// Publishes events in their order, many at a time, and waits for every acknowledgement. Failed ones are published again; the
    /// broker deduplicates them by event id.
    pub(crate) async fn publish_all(&self, events: &[&StoredEvent]) -> Result<(), NotPublished> {
        for part in events.chunks(AT_ONCE) {
            self.publish_part(part).await?;
        }
        Ok(())
    }

    async fn publish_part(&self, events: &[&StoredEvent]) -> Result<(), NotPublished> {
        let mut failed = Vec::new();
        let mut pending = Vec::new();
        for StoredEvent { event, .. } in events {
            let subject = EventSubject { event_type: event.event_type, user_id: event.user_id }.to_string();
            // Serialization cannot fail: an event holds only JSON, strings and numbers.
            let body = Bytes::from(serde_json::to_vec(event).unwrap_or_default());
            let headers = id_header(event.event_id);
            match self.jetstream.publish_with_headers(subject.clone(), headers.clone(), body.clone()).await {
                Ok(acknowledged) => pending.push(((subject, headers, body), acknowledged)),
                Err(_) => failed.push((subject, headers, body)),
            }
        }
        let acknowledged = join_all(
            pending
                .into_iter()
                .map(async |(message, acknowledged)| acknowledged.await.err().map(|_| message)),
        );
        failed.extend(acknowledged.await.into_iter().flatten());
        for (subject, headers, body) in failed {
            self.publish_until_stored(&subject, &headers, &body).await?;
        }
        Ok(())
    }

    /// Publishes a dead letter, with a few tries: its stream may be full, which others need not wait for.
    ///
    /// # Errors
    /// Why the broker did not store it.
    pub(crate) async fn publish_dead_letter(
        &self,
        subject: &str,
        headers: &HeaderMap,
        body: &Bytes,
    ) -> Result<(), String> {
        let mut tries = 0;
        loop {
            let Err(error) = self.publish(subject, headers, body).await else { return Ok(()) };
            tries += 1;
            if tries >= MAX_TRIES_OF_DEAD_LETTER {
                return Err(with_source(&error));
            }
            tokio::time::sleep(retry::delay(tries, FIRST_PAUSE, LONGEST_PAUSE)).await;
        }
    }

    async fn publish(&self, subject: &str, headers: &HeaderMap, body: &Bytes) -> Result<(), PublishError> {
        let sent = self.jetstream.publish_with_headers(subject.to_owned(), headers.clone(), body.clone());
        sent.await?.await.map(drop)
    }

    /// Publishes a message until the broker has stored it. While the worker is stopping, it gives up after
    /// [`MAX_TRIES_WHEN_STOPPING`] tries.
    pub(crate) async fn publish_until_stored(
        &self,
        subject: &str,
        headers: &HeaderMap,
        body: &Bytes,
    ) -> Result<(), NotPublished> {
        let mut tries = 0;
        loop {
            let Err(error) = self.publish(subject, headers, body).await else { return Ok(()) };
            tries += 1;
            tracing::warn!(worker = self.worker, subject, %error, tries, "publish failed, retrying");
            if self.stop.is_cancelled() && tries >= MAX_TRIES_WHEN_STOPPING {
                return Err(NotPublished);
            }
            tokio::time::sleep(retry::delay(tries, FIRST_PAUSE, LONGEST_PAUSE)).await;
        }
    }
}

/// An error with its cause, which the client library leaves out.
fn with_source(error: &PublishError) -> String {
    match std::error::Error::source(error) {
        Some(source) => format!("{error}: {source}"),
        None => error.to_string(),
    }
}

fn id_header(id: Uuid) -> HeaderMap {
    let mut headers = HeaderMap::new();
    headers.insert(header::MESSAGE_ID, id.to_string());
    headers
}
