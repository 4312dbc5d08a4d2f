//! What a worker publishes: events and dead letters. Nothing here returns before the broker has stored it.

use std::time::Duration;

use async_nats::{HeaderMap, jetstream};
use bytes::Bytes;
use contract::{Event, EventSubject, header};
use futures::future::join_all;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::delivery::retry;

/// The broker did not take something that must be there before the acknowledgement. The message stays unsettled
/// and is delivered again.
pub(crate) struct NotPublished;

const FIRST_PAUSE: Duration = Duration::from_millis(50);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);
/// How often a publish is tried while the worker is stopping; otherwise it is tried until the broker is back.
const TRIES_WHEN_STOPPING: u32 = 3;

/// What one worker publishes.
#[derive(Clone)]
pub(crate) struct EventPublisher {
    pub(crate) worker: &'static str,
    pub(crate) jetstream: jetstream::Context,
    pub(crate) stop: CancellationToken,
}

impl EventPublisher {
    /// Publishes all events at once and waits for every acknowledgement; what failed is published again, which its id makes
    /// harmless.
    pub(crate) async fn publish_all<'a>(
        &self,
        events: impl Iterator<Item = &'a Event>,
    ) -> Result<(), NotPublished> {
        let mut unsure = Vec::new();
        let mut waiting = Vec::new();
        for event in events {
            let subject = EventSubject { event_type: event.event_type, user_id: event.user_id }.to_string();
            // An event holds JSON, texts and numbers, all of which can be written as JSON.
            let body = Bytes::from(serde_json::to_vec(event).unwrap_or_default());
            let headers = id_header(event.event_id);
            match self.jetstream.publish_with_headers(subject.clone(), headers.clone(), body.clone()).await {
                Ok(acknowledged) => waiting.push(((subject, headers, body), acknowledged)),
                Err(_) => unsure.push((subject, headers, body)),
            }
        }
        let acknowledged = join_all(
            waiting
                .into_iter()
                .map(async |(message, acknowledged)| acknowledged.await.err().map(|_| message)),
        );
        unsure.extend(acknowledged.await.into_iter().flatten());
        for (subject, headers, body) in unsure {
            self.publish_until_stored(&subject, &headers, &body).await?;
        }
        Ok(())
    }

    /// Publishes a message again and again until the broker has stored it; only so often while the worker stops.
    pub(crate) async fn publish_until_stored(
        &self,
        subject: &str,
        headers: &HeaderMap,
        body: &Bytes,
    ) -> Result<(), NotPublished> {
        let mut tries = 0;
        loop {
            let sent =
                self.jetstream.publish_with_headers(subject.to_owned(), headers.clone(), body.clone()).await;
            let error = match sent {
                Ok(acknowledged) => match acknowledged.await {
                    Ok(_) => return Ok(()),
                    Err(error) => error,
                },
                Err(error) => error,
            };
            tries += 1;
            tracing::warn!(worker = self.worker, subject, %error, tries, "the broker did not store a message; trying again");
            if self.stop.is_cancelled() && tries >= TRIES_WHEN_STOPPING {
                return Err(NotPublished);
            }
            tokio::time::sleep(retry::delay(tries, FIRST_PAUSE, LONGEST_PAUSE)).await;
        }
    }
}

fn id_header(id: Uuid) -> HeaderMap {
    let mut headers = HeaderMap::new();
    headers.insert(header::MESSAGE_ID, id.to_string());
    headers
}
