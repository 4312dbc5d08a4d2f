//! The contract of a worker: what it takes in, what it writes, and what it says became of each message.
//!
//! A worker sees a typed batch and a transaction. It never sees an acknowledgement, a retry or a dead letter.

use std::borrow::Cow;
use std::future::Future;

use bytes::Bytes;
use chrono::{DateTime, Utc};
use contract::{
    Event, EventType, Malformed, Performative, Redacted, RequestFacts, RequestSubject, SecretField,
    StreamRequest, Tick, UserId, WorkerInfo,
};
use keys::DataKeys;
use store::{Connection, Fault};
use uuid::Uuid;

use crate::process::readiness::ProbeResults;

/// What a worker takes in: a request of its stream, or a tick of one of its jobs.
///
/// The requests of a stream are work items by themselves. A worker with jobs has an enumeration of both.
pub trait WorkItem: Send + Sync + Sized + 'static {
    /// Decodes a request and takes its secrets out of it.
    ///
    /// # Errors
    /// [`Malformed`], naming the field; the message becomes a dead letter.
    fn from_request(subject: &RequestSubject, body: &[u8]) -> Result<Redacted<Self>, Malformed>;

    /// Takes a tick.
    ///
    /// # Errors
    /// [`Malformed`] if the worker does not run this job; the tick becomes a dead letter.
    fn from_tick(tick: &Tick) -> Result<Self, Malformed> {
        Err(Malformed::new("subject", format!("this worker runs no job {}", tick.job)))
    }

    /// What a request says about itself; none for a tick.
    fn facts(&self) -> Option<&dyn RequestFacts>;

    /// The event that a request causes if nothing else is said, with its payload as JSON where that is not the body: none for
    /// a tick.
    fn event(&self, has_secrets: bool) -> Option<(EventType, Option<String>)>;
}

impl<R: StreamRequest> WorkItem for R {
    fn from_request(subject: &RequestSubject, body: &[u8]) -> Result<Redacted<Self>, Malformed> {
        Redacted::decode(subject, body)
    }

    fn facts(&self) -> Option<&dyn RequestFacts> {
        Some(StreamRequest::facts(self))
    }

    fn event(&self, has_secrets: bool) -> Option<(EventType, Option<String>)> {
        let payload = StreamRequest::facts(self).event_payload().or_else(|| {
            // A request always has a JSON text; if it had none, its event carries nothing rather than the body.
            has_secrets.then(|| serde_json::to_string(self).unwrap_or_else(|_| "{}".to_owned()))
        });
        Some((self.kind().event, payload))
    }
}

/// One kind of worker. Any number of replicas of it share a durable consumer.
pub trait Worker: Send + Sync + 'static {
    /// Its entry in the catalogue: its name, stream and jobs.
    const INFO: &'static WorkerInfo;
    /// Whether it ever stores anything encrypted. The key store is then waited for at start.
    const ENCRYPTS: bool = false;
    /// The most messages in a batch, however many `worker.batch_size` allows.
    const MAX_BATCH: usize = usize::MAX;
    /// What it takes in.
    type Item: WorkItem;

    /// Writes a batch inside a transaction that the runtime opens and commits, and gives a verdict for each message, in order.
    /// No message of the batch has had an effect before, and no two have the same id. `keys` has the data key of the user of
    /// each message that has secrets. A tick is a batch of its own.
    ///
    /// # Errors
    /// A [`Fault`] rolls back the whole batch, which is then tried again in parts.
    fn write<'a>(
        &'a self,
        connection: &'a mut Connection,
        batch: &'a [&'a Message<Self::Item>],
        keys: &'a DataKeys,
    ) -> impl Future<Output = Result<Vec<Verdict>, Fault>> + Send + 'a;
}

/// A worker that also works at servers other than PostgreSQL, before the transaction and after it.
///
/// Every [`Worker`] is one without such servers; only a worker that has some implements this itself.
pub trait ExternalWorker: Send + Sync + 'static {
    /// See [`Worker::INFO`].
    const INFO: &'static WorkerInfo;
    /// See [`Worker::ENCRYPTS`].
    const ENCRYPTS: bool = false;
    /// See [`Worker::MAX_BATCH`].
    const MAX_BATCH: usize = usize::MAX;
    /// See [`Worker::Item`].
    type Item: WorkItem;
    /// What it prepares for a batch before the transaction opens.
    type Prepared: Default + Send + Sync + 'static;
    /// What [`write`](Self::write) finds out about a message that [`clean_up`](Self::clean_up) needs.
    type Finding: Send + Sync + 'static;

    /// Probes the servers that it needs beside the broker, the database and the key store, every few seconds.
    fn probe(&self) -> impl Future<Output = ProbeResults> + Send;

    /// Prepares a batch at other servers: no transaction is open, and nothing is locked. A message comes here again with each
    /// delivery, also if it had its effect before. `grants` allow to act for the batch's users.
    ///
    /// # Errors
    /// A [`Fault`]. While a server is unreachable (`Unavailable`), the batch waits. After another fault its parts are tried; a
    /// message that fails by itself comes to [`write`](Self::write) unprepared.
    fn prepare<'a>(
        &'a self,
        batch: &'a [&'a Message<Self::Item>],
        grants: &'a [&'a str],
    ) -> impl Future<Output = Result<Self::Prepared, Fault>> + Send + 'a;

    /// Joins what was prepared for two parts of a batch.
    fn join(&self, one: Self::Prepared, other: Self::Prepared) -> Self::Prepared;

    /// Writes a batch, as [`Worker::write`] does.
    ///
    /// # Errors
    /// A [`Fault`] rolls back the whole batch, which is then tried again in parts.
    fn write<'a>(
        &'a self,
        connection: &'a mut Connection,
        batch: &'a [&'a Message<Self::Item>],
        keys: &'a DataKeys,
        prepared: &'a Self::Prepared,
    ) -> impl Future<Output = Result<Written<Self::Finding>, Fault>> + Send + 'a;

    /// Removes from other servers what a message has made obsolete, or what was prepared in vain. It runs after the commit and
    /// before the acknowledgement, with every delivery, so that it happens whoever crashes in between.
    ///
    /// # Errors
    /// A [`Fault`] of the kind `Unavailable`: it is tried again until it succeeds. Any other one is logged.
    fn clean_up<'a>(
        &'a self,
        ended: &'a [Ended<'a, Self::Item, Self::Finding>],
        prepared: &'a Self::Prepared,
    ) -> impl Future<Output = Result<(), Fault>> + Send + 'a;
}

impl<W: Worker> ExternalWorker for W {
    const INFO: &'static WorkerInfo = <W as Worker>::INFO;
    const ENCRYPTS: bool = <W as Worker>::ENCRYPTS;
    const MAX_BATCH: usize = <W as Worker>::MAX_BATCH;
    type Item = <W as Worker>::Item;
    type Prepared = ();
    type Finding = ();

    async fn probe(&self) -> ProbeResults {
        ProbeResults::new()
    }

    async fn prepare<'a>(&'a self, _: &'a [&'a Message<Self::Item>], _: &'a [&'a str]) -> Result<(), Fault> {
        Ok(())
    }

    fn join(&self, (): (), (): ()) {}

    async fn write<'a>(
        &'a self,
        connection: &'a mut Connection,
        batch: &'a [&'a Message<Self::Item>],
        keys: &'a DataKeys,
        (): &'a (),
    ) -> Result<Written<()>, Fault> {
        let verdicts = Worker::write(self, connection, batch, keys).await?;
        Ok(Written { verdicts, findings: Vec::new() })
    }

    async fn clean_up<'a>(&'a self, _: &'a [Ended<'a, Self::Item, ()>], (): &'a ()) -> Result<(), Fault> {
        Ok(())
    }
}

/// What [`ExternalWorker::write`] did.
#[derive(Debug)]
pub struct Written<F> {
    /// A verdict for each message, in order.
    pub verdicts: Vec<Verdict>,
    /// What it found out, by the message's [`event_id`](Message::event_id). It is kept whatever becomes of the transaction.
    pub findings: Vec<(Uuid, F)>,
}

/// Where a message comes from.
#[derive(Clone, Debug)]
pub enum Source {
    /// A publisher's request, under its token.
    Request(RequestSubject),
    /// A tick of a schedule, which has no user and no token.
    Tick(Tick),
}

/// A message on its way to the database.
#[derive(Debug)]
pub struct Message<I> {
    /// Where it comes from.
    pub source: Source,
    /// Its id: the one that the publisher gave its request, or that of the tick.
    pub request_id: Uuid,
    /// The event that caused it, which exists and is of the same user.
    pub parent_event_id: Option<Uuid>,
    /// When JetStream stored it.
    pub stored_at: DateTime<Utc>,
    /// Its place in the stream.
    pub sequence: u64,
    /// The id of its first event, if it comes to have one; those of further ones follow from it. A redelivery has another id, of
    /// which nothing comes: the inbox has the first.
    pub event_id: Uuid,
    /// The body as it came, or decrypted if it came encrypted: valid JSON once decoded; empty for a tick.
    pub body: Bytes,
    /// What it says, with markers where its secrets were.
    pub request: I,
    /// Its secrets.
    pub secrets: Vec<SecretField>,
}

impl<I> Message<I> {
    /// Whose memory it concerns: [`UserId::PLATFORM`] for a tick.
    pub fn user_id(&self) -> UserId {
        match &self.source {
            Source::Request(subject) => subject.user_id,
            Source::Tick(_) => UserId::PLATFORM,
        }
    }

    /// Who published it: the service, or the scheduler's job.
    pub fn publisher(&self) -> &str {
        match &self.source {
            Source::Request(subject) => subject.service.as_str(),
            Source::Tick(tick) => tick.job.as_str(),
        }
    }
}

/// A message that is about to be settled for good.
#[derive(Debug)]
pub struct Ended<'a, I, F> {
    /// The message.
    pub message: &'a Message<I>,
    /// Whether its transaction has committed, now or before. Otherwise it is dead-lettered.
    pub committed: bool,
    /// What was found out about it by every attempt to write it.
    pub findings: &'a [F],
}

/// What became of one message of a batch.
#[derive(Clone, Debug)]
pub enum Verdict {
    /// It took effect and causes these events, in order.
    Applied(Vec<EventDraft>),
    /// It was fine and changed nothing; says why.
    Unchanged(Cow<'static, str>),
    /// It is tried again; says why.
    Retry(Retry, String),
    /// It can never take effect; says why.
    Rejected(String),
}

/// When a message is tried again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Retry {
    /// With growing delay, within the retry budget. Then it is dead-lettered as one whose prerequisite is missing.
    WithinBudget,
    /// Not before a time, and without spending a try of the budget. When it is delivered after the deadline and still has to be
    /// tried again, it is dead-lettered as one whose prerequisite is missing.
    NotBefore {
        /// The earliest time of the next try.
        time: DateTime<Utc>,
        /// The latest time of a try.
        deadline: DateTime<Utc>,
    },
}

impl Verdict {
    /// The request took effect and causes the event of its kind.
    pub fn applied<I: WorkItem>(message: &Message<I>) -> Self {
        Self::Applied(EventDraft::of_request(message).into_iter().collect())
    }

    /// The request changed nothing, for the reason that its type gives.
    pub fn unchanged<I: WorkItem>(message: &Message<I>) -> Self {
        let reason = message.request.facts().map_or("nothing was due", RequestFacts::unchanged_reason);
        Self::Unchanged(Cow::Borrowed(reason))
    }

    /// What the request needs is not there yet. It is tried again within the retry budget.
    pub fn missing_prerequisite<I: WorkItem>(message: &Message<I>) -> Self {
        let prerequisite =
            message.request.facts().map_or(contract::Prerequisite::User, RequestFacts::prerequisite);
        Self::Retry(Retry::WithinBudget, prerequisite.missing(message.user_id()))
    }
}

/// An event that a message causes.
#[derive(Clone, Debug)]
pub struct EventDraft {
    /// Whose memory changed: the message's own user, or a user that a tick acts for.
    pub user_id: UserId,
    /// What happened.
    pub event_type: EventType,
    /// What it means between agents.
    pub performative: Performative,
    /// The agent that made it happen, if it was not the publishing service itself.
    pub source_agent_id: Option<String>,
    /// The agent or tool it is meant for.
    pub target_agent_id: Option<String>,
    /// The session, or [`Event::ACCOUNT_SESSION`].
    pub session_id: Cow<'static, str>,
    /// What the event carries, as JSON without secrets; none for the body of the request as it came.
    pub payload: Option<String>,
}

impl EventDraft {
    /// The event of a request's kind, as its type describes it; none for a tick.
    pub fn of_request<I: WorkItem>(message: &Message<I>) -> Option<Self> {
        let facts = message.request.facts()?;
        let (event_type, payload) = message.request.event(!message.secrets.is_empty())?;
        let session_id = match facts.event_session() {
            Event::ACCOUNT_SESSION => Cow::Borrowed(Event::ACCOUNT_SESSION),
            session => Cow::Owned(session.to_owned()),
        };
        Some(Self {
            user_id: message.user_id(),
            event_type,
            performative: facts.performative(),
            source_agent_id: facts.source_agent().map(str::to_owned),
            target_agent_id: facts.target_agent().map(str::to_owned),
            session_id,
            payload,
        })
    }
}
