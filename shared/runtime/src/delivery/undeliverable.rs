//! Handles messages that were delivered `max_deliver` times without being settled.
//!
//! The server publishes one advisory for each, which the stream `ADVISORY` keeps. This module dead-letters the message,
//! unless it was committed after all.

use std::marker::PhantomData;
use std::sync::Arc;
use std::time::Duration;

use async_nats::Client;
use async_nats::jetstream::consumer::PullConsumer;
use async_nats::jetstream::{self, AckKind};
use broker::{StoredMessage, StoredMessageError};
use config::WorkerSettings;
use contract::{DeadLetterClass, Redacted, RequestFacts, RequestSubject, SessionId, UserId};
use diesel_async::AsyncConnection;
use serde::Deserialize;
use store::blackboard::{self, StoredEvent};
use store::inbox::{self, Entry};
use store::unpublished::EventKey;
use store::{Fault, FaultKind, Pool, security};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::delivery::dead_letter::{DeadLetter, DeadLetterReason, FailedMessage};
use crate::delivery::event_order;
use crate::delivery::event_publisher::{EventPublisher, NotPublished};
use crate::delivery::in_flight::InFlight;
use crate::process::stats::Stats;
use crate::reason::Reason;
use crate::stages::authorize::Authorizer;
use crate::stages::decode::{self, Bodies};
use crate::stages::pull::{Delivery, Puller};
use crate::stages::tick_grants::TickGrants;
use crate::worker::{ExternalWorker, WorkItem};

/// The stream that keeps the advisories.
pub(crate) const STREAM: &str = "ADVISORY";

/// The fields used from the server's advisory (`io.nats.jetstream.advisory.v1.max_deliver`).
#[derive(Deserialize)]
struct MaxDeliver {
    stream: String,
    stream_seq: u64,
    deliveries: u64,
}

/// Turns the advisories of one worker into dead letters.
pub(crate) struct UndeliverableHandler<W> {
    pub(crate) worker: PhantomData<fn() -> W>,
    pub(crate) bodies: Arc<Bodies>,
    pub(crate) authorizer: Arc<Authorizer>,
    pub(crate) client: Client,
    pub(crate) event_publisher: EventPublisher,
    pub(crate) jetstream: jetstream::Context,
    pub(crate) dead_letter_ids: Uuid,
    pub(crate) pool: Pool,
    pub(crate) stats: Arc<Stats>,
}

/// Delay before an advisory is handled again after an error.
const RETRY_DELAY: Duration = Duration::from_secs(5);

impl<W: ExternalWorker> UndeliverableHandler<W> {
    pub(crate) async fn run(
        self,
        consumer: PullConsumer,
        in_flight: InFlight,
        settings: WorkerSettings,
        stop: CancellationToken,
    ) {
        let jetstream = self.jetstream.clone();
        let mut puller =
            Puller::new(W::INFO.name, STREAM, consumer, jetstream, in_flight, settings.batch_size);
        loop {
            let advisory = tokio::select! {
                biased;
                () = stop.cancelled() => break,
                advisory = puller.next() => advisory,
            };
            if let Some(advisory) = advisory {
                self.handle(&advisory).await;
            }
        }
        puller.hand_back(Vec::new()).await;
    }

    async fn handle(&self, advisory: &Delivery) {
        let settled = match serde_json::from_slice::<MaxDeliver>(&advisory.message.payload) {
            Ok(max_deliver) => self.dead_letter(&max_deliver).await,
            Err(error) => {
                tracing::error!(worker = W::INFO.name, %error, "cannot decode an advisory");
                Ok(())
            }
        };
        let kind = match settled {
            Ok(()) => AckKind::Ack,
            Err(problem) => {
                tracing::warn!(worker = W::INFO.name, problem, "an advisory is retried later");
                AckKind::Nak(Some(RETRY_DELAY))
            }
        };
        if let Err(error) = advisory.message.ack_with(kind).await {
            tracing::debug!(worker = W::INFO.name, %error, "cannot acknowledge an advisory");
        }
    }

    async fn dead_letter(&self, advisory: &MaxDeliver) -> Result<(), String> {
        let read = broker::stored_message(&self.jetstream, &advisory.stream, advisory.stream_seq).await;
        let message = match read {
            Ok(message) => message,
            Err(error @ StoredMessageError::NotFound { .. }) => {
                tracing::error!(worker = W::INFO.name, %error, "an undeliverable message is lost");
                return Ok(());
            }
            Err(error @ StoredMessageError::Failed { .. }) => return Err(error.to_string()),
        };
        let why = match self.look_up(&advisory.stream, &message).await? {
            Found::Committed(events) => return self.publish(&events).await,
            Found::Restricted => "the processing of the user's data is restricted",
            Found::Nothing => "it may have crashed a worker",
        };
        let failed = FailedMessage {
            worker: W::INFO.name,
            id_namespace: self.dead_letter_ids,
            stream: &advisory.stream,
            sequence: advisory.stream_seq,
            subject: &message.subject,
            headers: Some(&message.headers),
            body: &message.body,
        };
        let cause = DeadLetterReason {
            class: DeadLetterClass::Undeliverable,
            reason: Reason::new(format!("delivered {} times and never settled; {why}", advisory.deliveries)),
            tries: u32::try_from(advisory.deliveries).unwrap_or(u32::MAX),
        };
        let letter = DeadLetter::new(&failed, &cause, self.client.server_info().max_payload);
        let sent = self.jetstream.publish_with_headers(letter.subject, letter.headers, letter.body).await;
        let acknowledged = sent.map_err(|error| error.to_string())?;
        acknowledged.await.map_err(|error| error.to_string())?;
        self.stats.dead_lettered(DeadLetterClass::Undeliverable);
        Ok(())
    }

    /// Publishes the events of a message that was committed: they may not have been published.
    async fn publish(&self, events: &[StoredEvent]) -> Result<(), String> {
        let published = self.event_publisher.publish_all(&events.iter().collect::<Vec<_>>()).await;
        published.map_err(|NotPublished| "the worker is stopping".to_owned())?;
        let keys: Vec<EventKey> = events.iter().map(StoredEvent::key).collect();
        let noted = event_order::note_published(&self.pool, &keys).await;
        noted.map_err(|fault| fault.to_string())
    }

    /// Looks whether a message was committed that was not acknowledged in time.
    async fn look_up(&self, stream: &str, message: &StoredMessage) -> Result<Found, String> {
        let has_ticks = contract::has_ticks(stream);
        let taken = if has_ticks { self.tick(message).await? } else { self.request(message) };
        // Without a grant, either the message never took effect, or it is no longer permitted to check whether it did.
        let Some(InboxLookup { inbox, entry, grants }) = taken else { return Ok(Found::Nothing) };
        let grants: Vec<&str> = grants.iter().map(String::as_str).collect();
        let mut connection = store::acquire(&self.pool).await.map_err(|error| error.to_string())?;
        let found: Result<Option<Vec<StoredEvent>>, Fault> = connection
            .transaction(async |connection| {
                security::open_context(connection, &grants).await?;
                let found = inbox::find(connection, &inbox, &[entry]).await?;
                let Some(entry) = found.first() else { return Ok(None) };
                let ids: Vec<Uuid> = entry.event_ids().collect();
                Ok(Some(blackboard::read(connection, &ids).await?))
            })
            .await;
        match found {
            Ok(Some(events)) => Ok(Found::Committed(events)),
            Ok(None) | Err(Fault { kind: FaultKind::Denied, .. }) => Ok(Found::Nothing),
            // As if it had been committed without events: a dead letter would store the body again.
            Err(fault) if fault.kind == FaultKind::Erased && !has_ticks => Ok(Found::Committed(Vec::new())),
            Err(Fault { kind: FaultKind::Restricted { .. }, .. }) if !has_ticks => Ok(Found::Restricted),
            Err(fault) => Err(fault.to_string()),
        }
    }

    /// The inbox lookup for a request. `None` if it is invalid or not authorized.
    fn request(&self, message: &StoredMessage) -> Option<InboxLookup> {
        let headers = &message.headers;
        let subject = message.subject.parse::<RequestSubject>().ok()?;
        let message_id = decode::request_id(Some(headers)).ok()??;
        let opened = self.bodies.open(Some(headers), &message.subject, &subject, &message.body);
        let Redacted { request, .. } = W::Item::from_request(&subject, &opened.ok()?).ok()?;
        let session = request.facts().and_then(RequestFacts::session_id).map(SessionId::as_str);
        let grant = self.authorizer.grant_for(Some(headers), &subject, session, message.stored_at).ok()?;
        let entry = entry(subject.user_id.get(), message_id);
        Some(InboxLookup { inbox: W::INFO.name.to_owned(), entry, grants: vec![grant.to_string()] })
    }

    /// The inbox lookup for a tick. Its grants cover the users that its deliveries acted for.
    async fn tick(&self, message: &StoredMessage) -> Result<Option<InboxLookup>, String> {
        let read = decode::tick(&message.subject, Some(&message.headers), message.stored_at);
        let Ok((tick, id)) = read else { return Ok(None) };
        match TickGrants::mint(&self.pool, tick.job.as_str(), id).await {
            Ok(minted) => {
                let grants = minted.all().into_iter().map(str::to_owned).collect();
                let entry = entry(UserId::PLATFORM.get(), id);
                Ok(Some(InboxLookup { inbox: W::INFO.jobs_consumer(), entry, grants }))
            }
            Err(fault) if fault.kind.is_outage() => Err(fault.to_string()),
            Err(_) => Ok(None),
        }
    }
}

/// What the database knows of a message.
enum Found {
    /// It was committed and caused these events.
    Committed(Vec<StoredEvent>),
    /// Whether it was committed is not told while the user's data are restricted. If it was, its dead letter is not replayed.
    Restricted,
    /// It was not committed, or nobody may know any more.
    Nothing,
}

/// What is needed to look a message up in the inbox.
struct InboxLookup {
    inbox: String,
    entry: Entry,
    grants: Vec<String>,
}

fn entry(user_id: i32, message_id: Uuid) -> Entry {
    Entry { user_id, message_id, event_id: Uuid::nil(), event_count: 0 }
}
