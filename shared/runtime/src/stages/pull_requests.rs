//! Pull requests to a consumer: one at a time, answered by messages and ended by the server.

use std::time::Duration;

use async_nats::connection::State;
use async_nats::jetstream::consumer::PullConsumer;
use async_nats::jetstream::consumer::pull::BatchConfig;
use async_nats::{Client, Message, StatusCode, Subject, Subscriber};
use futures::StreamExt;
use tokio::time::{Instant, sleep_until};

/// How long a request stays open at the server, which then ends it. A worker that stops waits for that end: only then
/// has it received everything that the server has sent to it.
const EXPIRES: Duration = Duration::from_millis(500);
/// A request that the server has not ended this long after it expired is lost.
const GRACE: Duration = Duration::from_secs(2);
/// Interval between looks whether the client is connected again.
const CONNECTION_CHECK: Duration = Duration::from_millis(50);

/// The requests to one consumer, and the inbox that receives their answers.
pub(crate) struct PullRequests {
    client: Client,
    consumer: PullConsumer,
    max_messages: usize,
    max_bytes: usize,
    /// The prefix of the inboxes of all requests, and the subscription to them. `None` before the first request.
    inbox: Option<(String, Subscriber)>,
    /// The number of requests so far.
    requests: u64,
    /// The open request.
    open: Option<OpenRequest>,
}

struct OpenRequest {
    /// Its inbox, by which the server's answers to earlier requests are told apart: after the last message of a request
    /// it may send a status too.
    inbox: Subject,
    /// How many messages it may still bring.
    messages: usize,
    /// When it counts as lost.
    lost_at: Instant,
}

impl PullRequests {
    pub(crate) fn new(client: Client, consumer: PullConsumer, max_messages: usize, max_bytes: usize) -> Self {
        Self { client, consumer, max_messages, max_bytes, inbox: None, requests: 0, open: None }
    }

    /// Returns the next message. It opens a request if none is open. Cancel-safe: dropping the future loses no message.
    ///
    /// # Errors
    /// Why the request brings nothing. The next call opens another one.
    pub(crate) async fn next(&mut self) -> Result<Message, String> {
        loop {
            if self.open.is_none() {
                self.request().await?;
            }
            if let Some(message) = self.answer().await? {
                return Ok(message);
            }
        }
    }

    /// Returns the next message of the open request, without opening another one. `None` when the server has ended it:
    /// then no message is on its way.
    pub(crate) async fn rest(&mut self) -> Option<Message> {
        while self.open.is_some() {
            match self.answer().await {
                Ok(Some(message)) => return Some(message),
                Ok(None) => {}
                Err(problem) => tracing::debug!(problem, "the last pull request failed"),
            }
        }
        None
    }

    async fn request(&mut self) -> Result<(), String> {
        // The client would keep requests and send all of them once it is connected again.
        while self.client.connection_state() != State::Connected {
            tokio::time::sleep(CONNECTION_CHECK).await;
        }
        let prefix = match &self.inbox {
            Some((prefix, _)) => prefix,
            None => {
                let prefix = self.client.new_inbox();
                let subscriber = self.client.subscribe(format!("{prefix}.*")).await;
                let subscriber = subscriber.map_err(|error| error.to_string())?;
                &self.inbox.insert((prefix, subscriber)).0
            }
        };
        self.requests += 1;
        let inbox = Subject::from(format!("{prefix}.{}", self.requests));
        let request = BatchConfig {
            batch: self.max_messages,
            max_bytes: self.max_bytes,
            expires: Some(EXPIRES),
            ..BatchConfig::default()
        };
        self.consumer.request_batch(request, inbox.clone()).await.map_err(|error| error.to_string())?;
        let lost_at = Instant::now() + EXPIRES + GRACE;
        self.open = Some(OpenRequest { inbox, messages: self.max_messages, lost_at });
        Ok(())
    }

    /// Waits for the next answer to the open request. `None` if it ends the request or means nothing.
    async fn answer(&mut self) -> Result<Option<Message>, String> {
        let (Some(open), Some((_, subscriber))) = (&mut self.open, &mut self.inbox) else { return Ok(None) };
        let answer = tokio::select! {
            biased;
            answer = subscriber.next() => answer,
            () = sleep_until(open.lost_at) => {
                // Should the server answer after all, it finds nobody there, and the next request is not mixed up with it.
                (self.inbox, self.open) = (None, None);
                return Err("the server does not answer".to_owned());
            }
        };
        let Some(message) = answer else {
            (self.inbox, self.open) = (None, None);
            return Err("the pull subscription ended".to_owned());
        };
        let Some(status) = message.status else {
            open.messages = open.messages.saturating_sub(1);
            if open.messages == 0 {
                self.open = None;
            }
            return Ok(Some(message));
        };
        if status == StatusCode::IDLE_HEARTBEAT || message.subject != open.inbox {
            return Ok(None);
        }
        self.open = None;
        let description = message.description.as_deref().unwrap_or_default();
        let is_expected = status == StatusCode::TIMEOUT
            || status == StatusCode::NOT_FOUND
            || ENDS.iter().any(|end| description.starts_with(end));
        if is_expected { Ok(None) } else { Err(format!("{status} {description}").trim_end().to_owned()) }
    }
}

/// Descriptions of the status 409 that end a request as intended: its bytes are used up, or its messages.
const ENDS: [&str; 2] = ["Message Size Exceeds MaxBytes", "Batch Completed"];
