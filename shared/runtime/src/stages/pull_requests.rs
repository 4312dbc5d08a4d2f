//! Pull requests to a consumer: one at a time, answered by messages and ended by the server.

use std::time::Duration;

use async_nats::jetstream::consumer::PullConsumer;
use async_nats::jetstream::consumer::pull::BatchConfig;
use async_nats::{Client, Message, StatusCode, Subject, Subscriber};
use futures::{FutureExt, StreamExt};
use tokio::time::{Instant, sleep_until};

/// How long a request stays open at the server, which then ends it. A worker that stops waits for that end: only then
/// has it received everything that the server has sent to it.
const EXPIRES: Duration = Duration::from_millis(500);
/// A request that the server has not ended this long after it expired is lost.
const GRACE: Duration = Duration::from_secs(2);

/// The requests to one consumer, and the inbox that receives their answers.
pub(crate) struct PullRequests {
    client: Client,
    consumer: PullConsumer,
    max_messages: usize,
    max_bytes: usize,
    /// The inbox. `None` before the first request.
    inbox: Option<(Subject, Subscriber)>,
    /// The open request.
    open: Option<OpenRequest>,
}

struct OpenRequest {
    /// How many messages it may still bring.
    messages: usize,
    /// When it counts as lost.
    lost_at: Instant,
}

impl PullRequests {
    pub(crate) fn new(client: Client, consumer: PullConsumer, max_messages: usize, max_bytes: usize) -> Self {
        Self { client, consumer, max_messages, max_bytes, inbox: None, open: None }
    }

    /// Returns the next message. It opens a request if none is open. Cancel-safe: dropping the future loses no message.
    ///
    /// # Errors
    /// Why the request brings nothing. The next call opens another one.
    pub(crate) async fn next(&mut self) -> Result<Message, String> {
        loop {
            if self.open.is_none() {
                // What a lost request brings after all comes before the answers of the next one.
                if let Some(message) = self.received() {
                    return Ok(message);
                }
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
        self.received()
    }

    async fn request(&mut self) -> Result<(), String> {
        let inbox = match &self.inbox {
            Some((inbox, _)) => inbox.clone(),
            None => {
                let inbox = Subject::from(self.client.new_inbox());
                let subscriber = self.client.subscribe(inbox.clone()).await;
                let subscriber = subscriber.map_err(|error| error.to_string())?;
                self.inbox.insert((inbox, subscriber)).0.clone()
            }
        };
        let request = BatchConfig {
            batch: self.max_messages,
            max_bytes: self.max_bytes,
            expires: Some(EXPIRES),
            ..BatchConfig::default()
        };
        self.consumer.request_batch(request, inbox).await.map_err(|error| error.to_string())?;
        let lost_at = Instant::now() + EXPIRES + GRACE;
        self.open = Some(OpenRequest { messages: self.max_messages, lost_at });
        Ok(())
    }

    /// A message that is received already, whatever becomes of the requests.
    fn received(&mut self) -> Option<Message> {
        let (_, subscriber) = self.inbox.as_mut()?;
        // Without `unconstrained`, tokio's cooperative budget would end this after some dozens of messages.
        while let Some(Some(message)) = tokio::task::unconstrained(subscriber.next()).now_or_never() {
            if message.status.is_none() {
                return Some(message);
            }
        }
        None
    }

    /// Waits for the next answer to the open request. `None` if it ends the request or means nothing.
    async fn answer(&mut self) -> Result<Option<Message>, String> {
        let (Some(open), Some((_, subscriber))) = (&mut self.open, &mut self.inbox) else { return Ok(None) };
        let answer = tokio::select! {
            biased;
            answer = subscriber.next() => answer,
            () = sleep_until(open.lost_at) => {
                self.open = None;
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
        if status == StatusCode::IDLE_HEARTBEAT {
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
