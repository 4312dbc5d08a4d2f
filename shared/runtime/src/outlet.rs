//! What a worker publishes: events, follow-ups and dead letters. Nothing here returns before the broker has it.

use std::time::Duration;

use async_nats::client::Request;
use async_nats::{Client, HeaderMap, jetstream};
use bytes::Bytes;
use contract::header;
use futures::future::join_all;
use serde::Deserialize;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::retry;
use crate::worker::FollowUp;

/// The broker did not take something that must be there before the acknowledgement. The message stays unsettled
/// and is delivered again.
pub(crate) struct NotPublished;

const FIRST_PAUSE: Duration = Duration::from_millis(50);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);
/// How often a publish is tried while the worker is stopping; otherwise it is tried until the broker is back.
const TRIES_WHEN_STOPPING: u32 = 3;

/// Headers of an atomic batch (JetStream's ADR-50).
const BATCH_ID: &str = "Nats-Batch-Id";
const BATCH_SEQUENCE: &str = "Nats-Batch-Sequence";
const BATCH_COMMIT: &str = "Nats-Batch-Commit";
/// The most messages the server takes in one atomic batch.
const BATCH_LIMIT: usize = 1_000;

/// The way out of one worker.
pub(crate) struct Outlet {
    pub(crate) worker: &'static str,
    pub(crate) client: Client,
    pub(crate) jetstream: jetstream::Context,
    pub(crate) stop: CancellationToken,
}

/// What the server says of an atomic batch.
#[derive(Deserialize)]
struct BatchAck {
    #[serde(default)]
    count: usize,
}

impl Outlet {
    /// Publishes events as one atomic batch, which the broker acknowledges once. It refuses a batch that holds an
    /// event it has already, as after a crash; then each is published by itself.
    pub(crate) async fn publish_events(&self, events: Vec<FollowUp>) -> Result<(), NotPublished> {
        for batch in events.chunks(BATCH_LIMIT) {
            if batch.len() > 1 && self.publish_atomically(batch).await {
                continue;
            }
            self.publish_all(batch.to_vec()).await?;
        }
        Ok(())
    }

    async fn publish_atomically(&self, batch: &[FollowUp]) -> bool {
        let Some((last, others)) = batch.split_last() else { return true };
        let id = Uuid::now_v7().simple().to_string();
        for (index, event) in others.iter().enumerate() {
            let headers = batch_headers(event.id, &id, index + 1);
            let sent = self.client.publish_with_headers(event.subject.clone(), headers, event.body.clone());
            if sent.await.is_err() {
                return false;
            }
        }
        let mut headers = batch_headers(last.id, &id, batch.len());
        headers.insert(BATCH_COMMIT, "1");
        let request = Request::new().headers(headers).payload(last.body.clone());
        match self.client.send_request(last.subject.clone(), request).await {
            Ok(answer) => serde_json::from_slice::<BatchAck>(&answer.payload)
                .is_ok_and(|acknowledged| acknowledged.count == batch.len()),
            Err(error) => {
                tracing::debug!(worker = self.worker, %error, "an atomic batch was not acknowledged");
                false
            }
        }
    }

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

fn batch_headers(id: Uuid, batch: &str, sequence: usize) -> HeaderMap {
    let mut headers = id_header(id);
    headers.insert(BATCH_ID, batch);
    headers.insert(BATCH_SEQUENCE, sequence.to_string());
    headers
}

fn id_header(id: Uuid) -> HeaderMap {
    let mut headers = HeaderMap::new();
    headers.insert(header::MESSAGE_ID, id.to_string());
    headers
}
