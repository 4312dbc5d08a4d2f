//! What a worker publishes: events, follow-ups and dead letters. Nothing here returns before the broker has it.

use std::time::Duration;

use async_nats::{HeaderMap, jetstream};
use bytes::Bytes;
use contract::{Event, EventSubject, header};
use futures::future::join_all;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::delivery::retry;
use crate::worker::{FollowUp, Worker};

/// The broker did not take something that must be there before the acknowledgement. The message stays unsettled
/// and is delivered again.
pub(crate) struct NotPublished;

const FIRST_PAUSE: Duration = Duration::from_millis(50);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);
/// How often a publish is tried while the worker is stopping; otherwise it is tried until the broker is back.
const TRIES_WHEN_STOPPING: u32 = 3;

/// An event as it is published.
pub(crate) fn publication(event: &Event) -> FollowUp {
    let subject = EventSubject { event_type: event.event_type, user_id: event.user_id }.to_string();
    // An event holds JSON, texts and numbers, all of which can be written as JSON.
    let body = serde_json::to_vec(event).unwrap_or_default();
    FollowUp { subject, id: event.event_id, body: body.into() }
}

/// What is published because of an event: the event itself, and what the worker makes of it.
pub(crate) fn consequences<W: Worker>(worker: &W, event: &Event) -> Vec<FollowUp> {
    let mut all = vec![publication(event)];
    all.extend(worker.follow_ups(event));
    all
}

/// The way out of one worker.
#[derive(Clone)]
pub(crate) struct EventPublisher {
    pub(crate) worker: &'static str,
    pub(crate) jetstream: jetstream::Context,
    pub(crate) stop: CancellationToken,
}

impl EventPublisher {
    /// Publishes all at once and waits for every acknowledgement; what failed is published again, which its id
    /// makes harmless.
    pub(crate) async fn publish_all(&self, follow_ups: Vec<FollowUp>) -> Result<(), NotPublished> {
        let mut unsure = Vec::new();
        let mut waiting = Vec::with_capacity(follow_ups.len());
        for follow_up in follow_ups {
            let headers = id_header(follow_up.id);
            let publish = self.jetstream.publish_with_headers(
                follow_up.subject.clone(),
                headers,
                follow_up.body.clone(),
            );
            match publish.await {
                Ok(acknowledged) => waiting.push((follow_up, acknowledged)),
                Err(_) => unsure.push(follow_up),
            }
        }
        let acknowledged = join_all(
            waiting
                .into_iter()
                .map(async |(follow_up, acknowledged)| acknowledged.await.err().map(|_| follow_up)),
        );
        unsure.extend(acknowledged.await.into_iter().flatten());
        for follow_up in unsure {
            let headers = id_header(follow_up.id);
            self.publish_until_taken(&follow_up.subject, &headers, &follow_up.body).await?;
        }
        Ok(())
    }

    pub(crate) async fn publish_until_taken(
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
            tracing::warn!(worker = self.worker, subject, %error, tries, "the broker did not take a message; trying again");
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
