//! Outcomes, which workers publish to the inbox of the service.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use async_nats::{Client, Subscriber};
use contract::{Outcome, Service};
use futures::StreamExt;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use uuid::Uuid;

use crate::error::ClientError;

/// A subscription to outcomes, in an inbox of the service.
pub struct Outcomes {
    subject: String,
    subscriber: Subscriber,
}

impl Outcomes {
    /// Subscribes. From then on it receives the outcomes of requests with [`Outcomes::subject`] in the header
    /// [`contract::header::REPLY_TO`].
    ///
    /// # Errors
    /// [`ClientError::Connection`].
    pub async fn subscribe(connection: &Client, service: &Service) -> Result<Self, ClientError> {
        let failed = |problem: String| ClientError::Connection {
            url: connection.server_info().host,
            problem: format!("cannot subscribe to the inbox of {service}: {problem}"),
        };
        let subject = format!("_INBOX.{service}.{}", Uuid::now_v7().simple());
        let subscriber = connection.subscribe(subject.clone()).await;
        let subscriber = subscriber.map_err(|error| failed(error.to_string()))?;
        // The server must have the subscription before the first outcome is published.
        connection.flush().await.map_err(|error| failed(error.to_string()))?;
        Ok(Self { subject, subscriber })
    }

    /// The reply subject for outcomes.
    pub fn subject(&self) -> &str {
        &self.subject
    }

    /// The next outcome; none when the connection is closed. A redelivered request publishes its outcome again.
    pub async fn next(&mut self) -> Option<Outcome> {
        while let Some(message) = self.subscriber.next().await {
            match serde_json::from_slice(&message.payload) {
                Ok(outcome) => return Some(outcome),
                Err(error) => tracing::warn!(%error, "an outcome cannot be decoded"),
            }
        }
        None
    }
}

/// Passes each outcome to the caller that waits for it.
pub(crate) struct OutcomeRouter {
    subject: String,
    waiting: Waiting,
    task: JoinHandle<()>,
}

type Waiting = Arc<Mutex<HashMap<Uuid, oneshot::Sender<Outcome>>>>;

impl OutcomeRouter {
    pub(crate) async fn start(connection: &Client, service: &Service) -> Result<Self, ClientError> {
        let mut outcomes = Outcomes::subscribe(connection, service).await?;
        let (subject, waiting) = (outcomes.subject().to_owned(), Waiting::default());
        let expected = Arc::clone(&waiting);
        let task = tokio::spawn(async move {
            while let Some(outcome) = outcomes.next().await {
                let waits = outcome.request_id.and_then(|id| lock(&expected).remove(&id));
                if let Some(waits) = waits {
                    // Nobody receives it if the wait has just timed out.
                    let _ = waits.send(outcome);
                }
            }
        });
        Ok(Self { subject, waiting, task })
    }

    /// The reply subject for outcomes.
    pub(crate) fn subject(&self) -> &str {
        &self.subject
    }

    /// Registers a wait for the outcome of a request, which must not be published yet.
    pub(crate) fn expect(&self, request_id: Uuid) -> Expected {
        let (sender, outcome) = oneshot::channel();
        lock(&self.waiting).insert(request_id, sender);
        Expected { request_id, outcome, waiting: Arc::clone(&self.waiting) }
    }
}

impl Drop for OutcomeRouter {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// A registered wait for an outcome.
pub(crate) struct Expected {
    request_id: Uuid,
    outcome: oneshot::Receiver<Outcome>,
    waiting: Waiting,
}

impl Expected {
    /// Waits for the outcome; none if the connection is closed first.
    pub(crate) async fn outcome(&mut self) -> Option<Outcome> {
        (&mut self.outcome).await.ok()
    }
}

impl Drop for Expected {
    fn drop(&mut self) {
        lock(&self.waiting).remove(&self.request_id);
    }
}

fn lock(
    waiting: &Mutex<HashMap<Uuid, oneshot::Sender<Outcome>>>,
) -> std::sync::MutexGuard<'_, HashMap<Uuid, oneshot::Sender<Outcome>>> {
    waiting.lock().unwrap_or_else(PoisonError::into_inner)
}
