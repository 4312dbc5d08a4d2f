//! What a worker is: a decoder and a set of statements. It never sees an acknowledgement.

use std::borrow::Cow;
use std::future::Future;

use bytes::Bytes;
use chrono::{DateTime, Utc};
use contract::{Event, EventType, Malformed, Performative, RequestSubject};
use keys::DataKeys;
use store::{Connection, Fault};
use uuid::Uuid;

use crate::process::readiness::ProbeResults;

/// One kind of worker. Any number of replicas of it share a durable consumer.
pub trait Worker: Send + Sync + 'static {
    /// The name of its crate, its durable consumer and its database role.
    const NAME: &'static str;
    /// The stream it consumes.
    const STREAM: &'static str;
    /// Whether it ever stores anything encrypted. The key store is then waited for at start.
    const ENCRYPTS: bool = false;
    /// The most messages that it takes together, however many `worker.batch_size` allows.
    const LARGEST_BATCH: usize = usize::MAX;
    /// What it takes in.
    type Request: Send + Sync + 'static;
    /// What it gets ready for a batch before the transaction opens; `()` if nothing.
    type Prepared: Default + Send + Sync + 'static;

    /// Looks for the servers that it needs beside the broker, the database and the key store, every few seconds.
    fn look(&self) -> impl Future<Output = ProbeResults> + Send {
        async { ProbeResults::new() }
    }

    /// Reads a body as its subject says.
    ///
    /// # Errors
    /// [`Malformed`], naming the field; the message becomes a dead letter.
    fn decode(&self, subject: &RequestSubject, body: &[u8]) -> Result<Self::Request, Malformed>;

    /// The session that a request belongs to; none for what belongs to the user as such. A token for one session allows
    /// only its own.
    fn session<'a>(&self, request: &'a Self::Request) -> Option<&'a str>;

    /// Whether a request holds something that is stored encrypted only.
    fn needs_key(&self, request: &Self::Request) -> bool {
        let _ = request;
        false
    }

    /// Gets ready for a batch what other servers have to say or to take: no transaction is open, and nothing is locked. A message
    /// comes here again with each delivery, also if it had its effect before. `grants` are the leave to act for the batch's
    /// users.
    ///
    /// # Errors
    /// A [`Fault`]. While a server is away (`Unavailable`), the batch waits. After another fault its parts are tried; a message
    /// that fails by itself comes to [`write`](Self::write) without being prepared.
    fn prepare<'a>(
        &'a self,
        batch: &'a [&'a Message<Self::Request>],
        grants: &'a [&'a str],
    ) -> impl Future<Output = Result<Self::Prepared, Fault>> + Send + 'a {
        let _ = (batch, grants);
        async { Ok(Self::Prepared::default()) }
    }

    /// Puts what was got ready for two parts of a batch together.
    fn join(&self, one: Self::Prepared, other: Self::Prepared) -> Self::Prepared {
        let _ = other;
        one
    }

    /// Takes back at other servers what a message has made obsolete, or what was got ready for nothing. It comes after the commit
    /// and before the acknowledgement, with every delivery, so that it happens whoever dies meanwhile.
    ///
    /// # Errors
    /// A [`Fault`] of the kind `Unavailable`: it is tried again until it succeeds. Any other one is logged.
    fn clean_up<'a>(
        &'a self,
        ended: &'a [Ended<'a, Self::Request>],
        prepared: &'a Self::Prepared,
    ) -> impl Future<Output = Result<(), Fault>> + Send + 'a {
        let _ = (ended, prepared);
        async { Ok(()) }
    }

    /// Writes a batch inside a transaction that the runtime opens and commits, and gives a verdict for each
    /// message, in order. No message of the batch has had an effect before, and no two have the same request id.
    /// `keys` has the key of the user of each message that needs one.
    ///
    /// # Errors
    /// A [`Fault`] undoes the whole batch, which is then tried again in parts.
    fn write<'a>(
        &'a self,
        connection: &'a mut Connection,
        batch: &'a [&'a Message<Self::Request>],
        keys: &'a DataKeys,
        prepared: &'a Self::Prepared,
    ) -> impl Future<Output = Result<Vec<Verdict>, Fault>> + Send + 'a;

    /// What else is to be published because of an event, beside the event itself. It depends on the event alone,
    /// so that it can be made again when a crash came between the commit and the acknowledgement.
    fn follow_ups(&self, event: &Event) -> Vec<FollowUp> {
        let _ = event;
        Vec::new()
    }
}

/// A request on its way to the database.
#[derive(Debug)]
pub struct Message<R> {
    /// Who published it, and whose memory it concerns.
    pub subject: RequestSubject,
    /// The id the publisher gave it.
    pub request_id: Uuid,
    /// The event that caused it, which exists and is of the same user.
    pub parent_event_id: Option<Uuid>,
    /// When JetStream stored it.
    pub stored_at: DateTime<Utc>,
    /// Its place in the stream.
    pub sequence: u64,
    /// The event of its effect, if it comes to have one. A redelivery has another id, of which nothing comes: the inbox has the
    /// first.
    pub event_id: Uuid,
    /// The body as it came, or decrypted if it came encrypted: valid JSON once decoded.
    pub body: Bytes,
    /// The body, read.
    pub request: R,
}

/// A message that is about to be settled for good.
#[derive(Debug)]
pub struct Ended<'a, R> {
    /// The message.
    pub message: &'a Message<R>,
    /// Whether its transaction has committed, now or before. Otherwise it is given up.
    pub committed: bool,
}

/// What became of one message of a batch.
#[derive(Clone, Debug)]
pub enum Verdict {
    /// It took effect.
    Applied(Effect),
    /// It was fine and changed nothing; says why.
    Unchanged(&'static str),
    /// What it needs is not there yet; says what. It is tried again within the retry budget.
    MissingPrerequisite(String),
    /// It can never take effect; says why.
    Refused(String),
}

/// What an effect adds to the event stream.
#[derive(Clone, Debug)]
pub struct Effect {
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
    /// What the event carries.
    pub payload: Payload,
}

/// The payload of an event.
#[derive(Clone, Debug)]
pub enum Payload {
    /// The body of the request as it came.
    Body,
    /// JSON text in its place, where the body holds secrets.
    Redacted(String),
}

/// A message published because of an event, before the request is acknowledged.
#[derive(Clone, Debug)]
pub struct FollowUp {
    /// Where.
    pub subject: String,
    /// Its message id, derived from the event's id, so that a repeat is recognised.
    pub id: Uuid,
    /// The body.
    pub body: Bytes,
}
