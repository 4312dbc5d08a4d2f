//! The interface of a worker: its input, what it writes, and its verdict on each message.
//!
//! A worker handles a typed batch and a transaction. The runtime handles acknowledgements, retries and dead letters.

use std::borrow::Cow;
use std::future::Future;

use bytes::Bytes;
use chrono::{DateTime, Utc};
use contract::{
    Event, EventType, Malformed, Performative, Redacted, RequestFacts, RequestSubject, SecretField,
    StreamRequest, Tick, UserId, WorkerInfo,
};
use keys::DataKeys;
use store::job_runs::Counts;
use store::{Connection, Fault};
use uuid::Uuid;

use crate::process::readiness::ProbeResults;
use crate::reason::Reason;

/// The input of a worker: a request of its stream, or a tick of one of its jobs.
///
/// Every [`StreamRequest`] is a work item. That of a worker with a stream and jobs is [`crate::RequestOrTick`].
pub trait WorkItem: Send + Sync + Sized + 'static {
    /// Decodes a request and extracts its secrets.
    ///
    /// # Errors
    /// [`Malformed`], naming the field; the message becomes a dead letter.
    fn from_request(subject: &RequestSubject, body: &[u8]) -> Result<Redacted<Self>, Malformed>;

    /// Converts a tick into a work item.
    ///
    /// # Errors
    /// [`Malformed`] if the worker does not run this job; the tick becomes a dead letter.
    fn from_tick(tick: &Tick) -> Result<Self, Malformed> {
        Err(Malformed::new("subject", format!("this worker has no job {}", tick.job)))
    }

    /// The facts about a request. `None` for a tick.
    fn facts(&self) -> Option<&dyn RequestFacts>;

    /// The event that a request causes by default, and its payload as JSON if that is not the body. `None` for a tick.
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
            // Serialization cannot fail. The fallback carries nothing rather than the body, which holds the secrets.
            has_secrets.then(|| serde_json::to_string(self).unwrap_or_else(|_| "{}".to_owned()))
        });
        Some((self.kind().event, payload))
    }
}

/// A type of worker. Its replicas, of any number, share a durable consumer.
pub trait Worker: Send + Sync + 'static {
    /// Its entry in the catalogue: its name, stream and jobs.
    const INFO: &'static WorkerInfo;
    /// Whether it stores encrypted fields. If so, the key store is required at startup.
    const ENCRYPTS: bool = false;
    /// Maximum number of messages in a batch, even if `worker.batch_size` is larger.
    const MAX_BATCH: usize = usize::MAX;
    /// The type of its input.
    type Item: WorkItem;

    /// Writes a batch inside a transaction that the runtime opens and commits. Returns a verdict for each message, in
    /// order. No message of the batch has been committed before, and no two have the same id. `keys` holds the data key
    /// of each user whose messages have secrets.
    ///
    /// A tick is a batch of its own. Row-level security shows only the rows of the users whose work is due; if there are
    /// none, this is not called.
    ///
    /// # Errors
    /// A [`Fault`] rolls back the whole batch, which is then retried in parts.
    fn write<'a>(
        &'a self,
        connection: &'a mut Connection,
        batch: &'a [&'a Message<Self::Item>],
        keys: &'a DataKeys,
    ) -> impl Future<Output = Result<Vec<Verdict>, Fault>> + Send + 'a;
}

/// A worker that also uses servers other than PostgreSQL, before and after the transaction.
///
/// Every [`Worker`] implements this without such servers. Only a worker with some implements it itself.
pub trait ExternalWorker: Send + Sync + 'static {
    /// See [`Worker::INFO`].
    const INFO: &'static WorkerInfo;
    /// See [`Worker::ENCRYPTS`].
    const ENCRYPTS: bool = false;
    /// See [`Worker::MAX_BATCH`].
    const MAX_BATCH: usize = usize::MAX;
    /// Maximum size of the bodies that are prepared together, in bytes: preparing may take a time that grows with them.
    const MAX_PREPARED_BYTES: usize = usize::MAX;
    /// A larger message is heavy, in bytes: it is written apart, while the messages of other users go on.
    const HEAVY_BYTES: usize = 64 * 1024;
    /// The kinds of requests that are heavy whatever their size, as noun and verb: each is written by itself. For those that take long
    /// for what is stored already.
    const HEAVY_KINDS: &'static [(&'static str, &'static str)] = &[];
    /// See [`Worker::Item`].
    type Item: WorkItem;
    /// The result of [`prepare`](Self::prepare).
    type Prepared: Default + Send + Sync + 'static;
    /// A fact about a message that [`write`](Self::write) passes to [`clean_up`](Self::clean_up).
    type Finding: Send + Sync + 'static;

    /// Probes its servers other than the broker, the database and the key store. Called every few seconds.
    fn probe(&self) -> impl Future<Output = ProbeResults> + Send;

    /// Prepares a batch at other servers, while no transaction is open and nothing is locked. It is called for each
    /// delivery of a message, even if an earlier one was committed. `grants` authorize access to the batch's users; for a
    /// tick, to the users whose work is due, of whom there may be none.
    ///
    /// # Errors
    /// A [`Fault`]. While a server is unreachable (`Unavailable`), the batch waits. After any other fault, its parts
    /// are tried separately; a message that fails on its own reaches [`write`](Self::write) unprepared.
    fn prepare<'a>(
        &'a self,
        batch: &'a [&'a Message<Self::Item>],
        grants: &'a [&'a str],
    ) -> impl Future<Output = Result<Self::Prepared, Fault>> + Send + 'a;

    /// Merges what was prepared for two parts of a batch.
    fn join(&self, one: Self::Prepared, other: Self::Prepared) -> Self::Prepared;

    /// Writes a batch, as [`Worker::write`] does.
    ///
    /// # Errors
    /// A [`Fault`] rolls back the whole batch, which is then retried in parts.
    fn write<'a>(
        &'a self,
        connection: &'a mut Connection,
        batch: &'a [&'a Message<Self::Item>],
        keys: &'a DataKeys,
        prepared: &'a Self::Prepared,
    ) -> impl Future<Output = Result<Written<Self::Finding>, Fault>> + Send + 'a;

    /// Removes from other servers what a message has made obsolete, or what was prepared for a message that failed. It
    /// runs after the commit and before the acknowledgement, for every delivery, so that a crash in between does not
    /// prevent it.
    ///
    /// # Errors
    /// A [`Fault`]. One of the kind `Unavailable` is retried until it succeeds; any other is logged.
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
        Ok(verdicts.into())
    }

    async fn clean_up<'a>(&'a self, _: &'a [Ended<'a, Self::Item, ()>], (): &'a ()) -> Result<(), Fault> {
        Ok(())
    }
}

/// The result of [`ExternalWorker::write`].
#[derive(Debug)]
pub struct Written<F> {
    /// A verdict for each message, in order.
    pub verdicts: Vec<Verdict>,
    /// Its findings, by the message's [`event_id`](Message::event_id). They are kept even if the transaction is rolled
    /// back.
    pub findings: Vec<(Uuid, F)>,
    /// What a tick did, for its row in `job_runs`. `None`: as many users had work due as it acted for, and it changed as much as
    /// there are events.
    pub counts: Option<Counts>,
}

impl<F> From<Vec<Verdict>> for Written<F> {
    fn from(verdicts: Vec<Verdict>) -> Self {
        Self { verdicts, findings: Vec::new(), counts: None }
    }
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
    /// Its id: set by the publisher of a request, or derived for a tick.
    pub request_id: Uuid,
    /// The event that caused it. It exists and belongs to the same user.
    pub parent_event_id: Option<Uuid>,
    /// When JetStream stored it.
    pub stored_at: DateTime<Utc>,
    /// Its sequence number in the stream.
    pub sequence: u64,
    /// The id of its first event, if it causes one; the ids of further events are derived from it. Each delivery has a
    /// new id. If an earlier delivery was committed, the inbox holds the id of that one, and this one is not used.
    pub event_id: Uuid,
    /// The body, decrypted if it arrived encrypted. Valid JSON; empty for a tick.
    pub body: Bytes,
    /// The decoded request, with markers in place of its secrets.
    pub request: I,
    /// Its secrets.
    pub secrets: Vec<SecretField>,
    /// Whether its token, and the service itself, have the [scope](RequestFacts::widening_scope) that lets it do more.
    pub is_widened: bool,
}

impl<I> Message<I> {
    /// The user whose memory it concerns. [`UserId::PLATFORM`] for a tick.
    pub fn user_id(&self) -> UserId {
        match &self.source {
            Source::Request(subject) => subject.user_id,
            Source::Tick(_) => UserId::PLATFORM,
        }
    }

    /// The worker that writes its prerequisite, unless that is `own`.
    pub(crate) fn awaits(&self, own: &WorkerInfo) -> Option<&'static WorkerInfo>
    where
        I: WorkItem,
    {
        let worker = self.request.facts()?.prerequisite().worker();
        (worker.name != own.name).then_some(worker)
    }

    /// Its publisher: the service, or the job for a tick.
    pub fn publisher(&self) -> &str {
        match &self.source {
            Source::Request(subject) => subject.service.as_str(),
            Source::Tick(tick) => tick.job.publisher(),
        }
    }
}

/// A message that is about to be acknowledged or dead-lettered.
#[derive(Debug)]
pub struct Ended<'a, I, F> {
    /// The message.
    pub message: &'a Message<I>,
    /// Whether it was committed, on this delivery or an earlier one. Otherwise it is dead-lettered.
    pub committed: bool,
    /// The findings of all attempts to write it.
    pub findings: &'a [F],
}

/// A worker's decision on one message of a batch.
#[derive(Clone, Debug)]
pub enum Verdict {
    /// It took effect and causes these events, in order: at most 1,000 for a request, 10,000 for a tick.
    Applied(Vec<EventDraft>),
    /// It was valid and changed nothing, for this reason.
    Unchanged(Cow<'static, str>),
    /// It is retried, for this reason.
    Retry(Retry, Reason),
    /// It can never take effect, for this reason, and is dead-lettered.
    Rejected(Reason),
}

/// When a message is retried.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Retry {
    /// With growing delays, within the retry budget. Then it is dead-lettered with class `missing-prerequisite`.
    WithinBudget,
    /// When its [prerequisite](contract::Prerequisite) may exist. While another worker writes the prerequisite and is
    /// behind, it spends no try of the retry budget; afterwards as `WithinBudget`.
    Prerequisite,
    /// Not before `time`, without spending a try of the budget. If it still has to be retried after `deadline`, it is
    /// dead-lettered with class `missing-prerequisite`.
    NotBefore {
        /// The earliest time of the next try.
        time: DateTime<Utc>,
        /// The time after which it is not retried.
        deadline: DateTime<Utc>,
    },
}

impl Verdict {
    /// The request took effect and causes the event of its kind.
    pub fn applied<I: WorkItem>(message: &Message<I>) -> Self {
        Self::Applied(EventDraft::of_request(message).into_iter().collect())
    }

    /// The request changed nothing, for the reason defined by its type.
    pub fn unchanged<I: WorkItem>(message: &Message<I>) -> Self {
        let reason = message.request.facts().map_or("nothing was due", RequestFacts::unchanged_reason);
        Self::Unchanged(Cow::Borrowed(reason))
    }

    /// The request's prerequisite does not exist yet. It is retried as [`Retry::Prerequisite`].
    pub fn missing_prerequisite<I: WorkItem>(message: &Message<I>) -> Self {
        let prerequisite =
            message.request.facts().map_or(contract::Prerequisite::User, RequestFacts::prerequisite);
        Self::Retry(Retry::Prerequisite, prerequisite.missing(message.user_id()).into())
    }
}

/// An event that a message causes.
#[derive(Clone, Debug)]
pub struct EventDraft {
    /// The user whose memory changed: the message's user, or one that a tick acts for.
    pub user_id: UserId,
    /// What happened.
    pub event_type: EventType,
    /// Its speech act between agents.
    pub performative: Performative,
    /// The agent that caused it, if it was not the publishing service itself.
    pub source_agent_id: Option<String>,
    /// The agent or tool it is meant for.
    pub target_agent_id: Option<String>,
    /// The session, or [`Event::ACCOUNT_SESSION`].
    pub session_id: Cow<'static, str>,
    /// The payload, as JSON without secrets. `None` for the body of the request, unchanged, which must have no secrets.
    pub payload: Option<String>,
}

impl EventDraft {
    /// The default event of a request's type. `None` for a tick.
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
