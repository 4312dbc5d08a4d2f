//! Stage four: one transaction for a batch, and if that fails, for its parts.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use chrono::Utc;
use contract::{DeadClass, Event, Json, UserId};
use diesel_async::AsyncConnection;
use keys::{DataKeys, KeyError, Keys};
use store::blackboard::{self, Appended, Cause, NewEvent};
use store::inbox::{self, Entry};
use store::registry::{self, RefusedToken};
use store::security::{self, Violation};
use store::{Connection, Fault, FaultKind, Pool};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::authorise::{Authorised, Denied};
use crate::crash::{self, Point};
use crate::retry;
use crate::stats::{self, Stats};
use crate::worker::{Effect, Message, Payload, Verdict, Worker};

/// What is to be done with a message now. Only this module makes one.
#[derive(Debug)]
pub struct Settlement<R> {
    pub(crate) message: Authorised<R>,
    pub(crate) decision: Decision,
}

/// See [`Settlement`].
#[derive(Debug)]
pub(crate) enum Decision {
    /// Its transaction has committed.
    Committed(Commit),
    /// It may work later.
    Later { reason: String, class: DeadClass },
    /// It never will.
    Never { reason: String, class: DeadClass },
    /// The worker stops; another one takes it.
    HandBack,
}

/// What a committed transaction did for a message.
#[derive(Debug)]
pub(crate) struct Commit {
    /// The event of the effect, if there was one.
    pub(crate) event: Option<Event>,
    /// Why there was none.
    pub(crate) reason: Option<&'static str>,
}

/// What the stages before pass on: messages to be written, and others to be refused.
pub(crate) struct ToWrite<R> {
    pub(crate) authorised: Vec<Authorised<R>>,
    pub(crate) denied: Vec<Denied>,
}

/// How often a batch that met a passing fault is tried as it is before it is split.
const TRIES_AS_ONE: u32 = 3;
/// How often a batch may lose its connection in the middle before a message of it is suspected.
const SEVERED_AS_ONE: u32 = 4;
const FIRST_PAUSE: Duration = Duration::from_millis(10);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

/// Writes batches of one worker.
pub(crate) struct Writer<W> {
    pub(crate) worker: Arc<W>,
    pub(crate) pool: Pool,
    /// There for a worker that encrypts.
    pub(crate) keys: Option<Arc<Keys>>,
    pub(crate) stats: Arc<Stats>,
    pub(crate) stop: CancellationToken,
}

impl<W: Worker> Writer<W> {
    /// Writes a batch and says for every message of it, in order, what is to be done with it.
    pub(crate) async fn write(&self, batch: Vec<Authorised<W::Request>>) -> Vec<Settlement<W::Request>> {
        let mut decisions = Vec::with_capacity(batch.len());
        // Parts still to be written, the next one last, so that the order of the batch is kept.
        let mut parts: Vec<&[Authorised<W::Request>]> = vec![&batch];
        while let Some(messages) = parts.pop() {
            match self.persist(messages).await {
                Ok(written) => decisions.extend(written),
                Err(_) if messages.len() > 1 && !self.stop.is_cancelled() => {
                    let (first, second) = messages.split_at(messages.len() / 2);
                    parts.extend([second, first]);
                }
                // Whose fault it is, is not known of several; another worker finds out.
                Err(_) if messages.len() > 1 => decisions.extend(messages.iter().map(|_| Decision::HandBack)),
                Err(fault) => {
                    for message in messages {
                        decisions.push(self.judge(message.message(), &fault).await);
                    }
                }
            }
        }
        batch.into_iter().zip(decisions).map(|(message, decision)| Settlement { message, decision }).collect()
    }

    /// Records refusals. False if they cannot be recorded before the worker stops: they must not be without a trace.
    pub(crate) async fn record_denied(&self, denied: &[Denied]) -> bool {
        let reasons: Vec<String> = denied.iter().map(|one| one.refusal.to_string()).collect();
        let refused: Vec<RefusedToken<'_>> = denied
            .iter()
            .zip(&reasons)
            .map(|(one, reason)| RefusedToken {
                kind: one.refusal.as_str(),
                reason,
                user_id: one.subject.user_id,
                service: &one.subject.service,
                request_id: one.request_id,
            })
            .collect();
        let mut tries = 0;
        loop {
            let recorded =
                async { registry::record_refused(&mut *store::lend(&self.pool).await?, &refused).await };
            let Err(fault) = recorded.await else { return true };
            tries += 1;
            tracing::warn!(worker = W::NAME, %fault, refusals = refused.len(), "refusals cannot be recorded; waiting");
            tokio::select! {
                () = self.stop.cancelled() => return false,
                () = tokio::time::sleep(retry::delay(tries, FIRST_PAUSE, LONGEST_PAUSE)) => {}
            }
        }
    }

    /// Tries one part until it is written or fails for a reason that lies in it. While the database is away, it
    /// waits.
    async fn persist(&self, messages: &[Authorised<W::Request>]) -> Result<Vec<Decision>, Fault> {
        let (mut tries, mut outages, mut severed) = (0, 0, 0);
        loop {
            let fault = match self.attempt(messages).await {
                Ok(decisions) => return Ok(decisions),
                Err(fault) => fault,
            };
            let pause = match fault.kind {
                FaultKind::Permanent | FaultKind::Denied | FaultKind::Unmet => return Err(fault),
                FaultKind::Transient => {
                    tries += 1;
                    if tries >= TRIES_AS_ONE {
                        return Err(fault);
                    }
                    retry::delay(tries, FIRST_PAUSE, LONGEST_PAUSE)
                }
                FaultKind::Severed if severed + 1 >= SEVERED_AS_ONE => {
                    return Err(Fault { kind: FaultKind::Transient, ..fault });
                }
                FaultKind::Severed | FaultKind::Unavailable => {
                    outages += 1;
                    severed += u32::from(fault.kind == FaultKind::Severed);
                    tracing::warn!(worker = W::NAME, %fault, messages = messages.len(), "the database or the key store is away; waiting");
                    retry::delay(outages, FIRST_PAUSE, LONGEST_PAUSE)
                }
            };
            tokio::select! {
                () = self.stop.cancelled(), if fault.kind != FaultKind::Transient => return Err(fault),
                () = tokio::time::sleep(pause) => {}
            }
        }
    }

    /// What becomes of a message that failed by itself. A refusal is recorded first, on a connection of its own: the
    /// transaction that was refused is rolled back.
    async fn judge(&self, message: &Message<W::Request>, fault: &Fault) -> Decision {
        if fault.kind == FaultKind::Denied
            && let Err(problem) = self.record_violation(message, fault).await
        {
            // It will be refused again, and must not be without a trace.
            tracing::warn!(worker = W::NAME, %problem, "a violation cannot be recorded; its message is put off");
            return Decision::HandBack;
        }
        verdict_of(fault)
    }

    async fn record_violation(&self, message: &Message<W::Request>, fault: &Fault) -> Result<(), Fault> {
        let mut connection = store::lend(&self.pool).await?;
        let subject = &message.subject;
        let violation = Violation {
            message: &fault.reason,
            user_id: subject.user_id.get(),
            service: subject.service.as_str(),
            request_id: message.request_id,
        };
        security::record_violation(&mut connection, &violation).await
    }

    /// The data keys that a batch needs, asked for before its transaction opens: who keeps them may be far away, and nobody
    /// shall wait for rows that are locked meanwhile.
    async fn keys_for(&self, messages: &[Authorised<W::Request>]) -> Result<DataKeys, Fault> {
        let Some(keys) = &self.keys else { return Ok(DataKeys::new()) };
        let users: BTreeSet<UserId> = messages
            .iter()
            .map(Authorised::message)
            .filter(|message| self.worker.needs_key(&message.request))
            .map(|message| message.subject.user_id)
            .collect();
        // Whatever it is, it is no message's fault.
        let away = |error: KeyError| Fault { kind: FaultKind::Unavailable, reason: error.to_string() };
        if users.is_empty() { Ok(DataKeys::new()) } else { keys.current(&users).await.map_err(away) }
    }

    /// One transaction.
    async fn attempt(&self, messages: &[Authorised<W::Request>]) -> Result<Vec<Decision>, Fault> {
        let keys = self.keys_for(messages).await?;
        let mut connection = store::lend(&self.pool).await?;
        let worker = &*self.worker;
        let written: Result<Vec<Written>, Fault> = connection
            .transaction(async |connection| transact(worker, connection, messages, &keys).await)
            .await;
        let written = match written {
            Ok(written) => written,
            Err(fault) => {
                // The next one may reach another server, or know a schema that has changed since.
                if matches!(fault.kind, FaultKind::Unavailable | FaultKind::Severed) {
                    store::discard(connection);
                }
                return Err(fault);
            }
        };
        crash::reach(Point::Committed);
        self.count(messages, &written);
        Ok(written.into_iter().map(Written::after_commit).collect())
    }

    fn count(&self, messages: &[Authorised<W::Request>], written: &[Written]) {
        let committed = written.iter().zip(messages).filter_map(|(written, message)| {
            let what = match written {
                Written::Effect(_) => stats::Committed::Applied,
                Written::None(_) => stats::Committed::Unchanged,
                Written::Before(_) => stats::Committed::Repeated,
                Written::Unmet(_) | Written::Refused(_) => return None,
            };
            Some((what, message.message().stored_at))
        });
        self.stats.committed(Utc::now(), committed);
    }
}

/// What a transaction did for a message, before it is known to have committed.
#[derive(Clone)]
enum Written {
    Effect(Event),
    None(&'static str),
    /// An earlier transaction took the message; its event, if it had an effect.
    Before(Option<Event>),
    Unmet(String),
    Refused(String),
}

impl Written {
    /// What is true of a further copy of the same message in the same batch. It must not be taken for one that was
    /// written before: the acknowledgement of either copy is one of both.
    fn of_a_copy(&self) -> Self {
        match self {
            Self::Effect(event) => Self::Before(Some(event.clone())),
            Self::None(_) => Self::Before(None),
            Self::Before(_) | Self::Unmet(_) | Self::Refused(_) => self.clone(),
        }
    }

    fn after_commit(self) -> Decision {
        match self {
            Self::Effect(event) => Decision::Committed(Commit { event: Some(event), reason: None }),
            Self::None(reason) => Decision::Committed(Commit { event: None, reason: Some(reason) }),
            Self::Before(event) => {
                let reason = event.is_none().then_some("a message with this id was taken before");
                Decision::Committed(Commit { event, reason })
            }
            Self::Unmet(reason) => Decision::Later { reason, class: DeadClass::Unmet },
            Self::Refused(reason) => Decision::Never { reason, class: DeadClass::Permanent },
        }
    }
}

fn verdict_of(fault: &Fault) -> Decision {
    let reason = fault.reason.clone();
    match fault.kind {
        FaultKind::Unavailable | FaultKind::Severed => Decision::HandBack,
        FaultKind::Transient => Decision::Later { reason, class: DeadClass::Exhausted },
        FaultKind::Unmet => Decision::Later { reason, class: DeadClass::Unmet },
        FaultKind::Permanent => Decision::Never { reason, class: DeadClass::Permanent },
        FaultKind::Denied => Decision::Never { reason, class: DeadClass::Denied },
    }
}

async fn transact<W: Worker>(
    worker: &W,
    connection: &mut Connection,
    batch: &[Authorised<W::Request>],
    keys: &DataKeys,
) -> Result<Vec<Written>, Fault> {
    let entries: Vec<Entry> = batch
        .iter()
        .map(|message| Entry {
            user_id: message.message().subject.user_id.get(),
            message_id: message.message().request_id,
            event_id: Uuid::now_v7(),
        })
        .collect();
    let grants: BTreeSet<&str> = batch.iter().map(Authorised::grant).collect();
    security::open_context(connection, &Vec::from_iter(grants)).await?;
    let taken = inbox::take(connection, W::NAME, &entries).await?;
    crash::reach(Point::Taken);
    let causes = causes(connection, batch).await?;
    let cause_of = |message: &Message<W::Request>| {
        message.parent_event_id.map(|parent| causes.get(&(message.subject.user_id, parent)))
    };
    let fresh: Vec<usize> = (0..batch.len())
        .filter(|&index| taken.contains(&entries[index].event_id))
        .filter(|&index| !matches!(cause_of(batch[index].message()), Some(None)))
        .collect();
    let messages: Vec<&Message<W::Request>> = fresh.iter().map(|&index| batch[index].message()).collect();
    let verdicts =
        if messages.is_empty() { Vec::new() } else { worker.write(connection, &messages, keys).await? };
    let mut verdicts: HashMap<usize, Verdict> = fresh.into_iter().zip(verdicts).collect();

    let new_events: Vec<NewEvent<'_>> = (0..batch.len())
        .filter_map(|index| match verdicts.get(&index) {
            Some(Verdict::Applied(effect)) => {
                let message = batch[index].message();
                Some(new_event(entries[index].event_id, message, effect, cause_of(message).flatten()))
            }
            Some(Verdict::Unchanged(_) | Verdict::Unmet(_) | Verdict::Refused(_)) | None => None,
        })
        .collect();
    let appended = blackboard::append(connection, &new_events).await?;
    let mut events: HashMap<Uuid, Event> = new_events
        .iter()
        .filter_map(|event| Some((event.id, published(event, appended.get(&event.id)?)?)))
        .collect();

    let known = inbox::event_ids(connection, W::NAME, &repeats(&entries, &taken)).await?;
    let before = before(connection, &known).await?;
    let mut written: Vec<Option<Written>> = Vec::with_capacity(batch.len());
    for (index, entry) in entries.iter().enumerate() {
        written.push(if taken.contains(&entry.event_id) {
            Some(match verdicts.remove(&index) {
                Some(Verdict::Applied(_)) => {
                    Written::Effect(events.remove(&entry.event_id).ok_or_else(|| Fault {
                        kind: FaultKind::Permanent,
                        reason: "its event cannot be made".to_owned(),
                    })?)
                }
                Some(Verdict::Unchanged(reason)) => Written::None(reason),
                Some(Verdict::Unmet(reason)) => Written::Unmet(reason),
                Some(Verdict::Refused(reason)) => Written::Refused(reason),
                None => Written::Unmet(format!(
                    "{}: there is no such event of this user",
                    contract::header::PARENT_EVENT
                )),
            })
        } else {
            None
        });
    }
    let written = with_copies(&entries, written, &known, &before);
    give_back(connection, W::NAME, &entries, &written).await?;
    crash::reach(Point::Written);
    Ok(written)
}

/// Says of the messages that were not taken what is true of the one that was: by an earlier transaction, or by this one
/// as another copy.
fn with_copies(
    entries: &[Entry],
    mut written: Vec<Option<Written>>,
    known: &[Entry],
    before: &HashMap<Uuid, Event>,
) -> Vec<Written> {
    let missing: Vec<usize> = (0..written.len()).filter(|&index| written[index].is_none()).collect();
    // Nearly every batch has no message that came before.
    if !missing.is_empty() {
        let places: HashMap<Uuid, usize> =
            entries.iter().enumerate().map(|(index, entry)| (entry.event_id, index)).collect();
        let known: HashMap<(i32, Uuid), Uuid> =
            known.iter().map(|entry| ((entry.user_id, entry.message_id), entry.event_id)).collect();
        for index in missing {
            let event_id = known.get(&(entries[index].user_id, entries[index].message_id));
            let original = event_id.and_then(|id| written[*places.get(id)?].as_ref());
            let event = event_id.and_then(|id| before.get(id).cloned());
            written[index] = Some(original.map_or(Written::Before(event), Written::of_a_copy));
        }
    }
    written.into_iter().flatten().collect()
}

async fn causes<R>(
    connection: &mut Connection,
    batch: &[Authorised<R>],
) -> Result<HashMap<(UserId, Uuid), Cause>, Fault> {
    let parents: Vec<_> = batch
        .iter()
        .filter_map(|message| {
            let message = message.message();
            message.parent_event_id.map(|parent| (message.subject.user_id, parent))
        })
        .collect();
    blackboard::causes(connection, &parents).await
}

fn new_event<'a, R>(
    id: Uuid,
    message: &'a Message<R>,
    effect: &'a Effect,
    cause: Option<&'a Cause>,
) -> NewEvent<'a> {
    NewEvent {
        id,
        request_id: message.request_id,
        event_type: effect.event_type,
        performative: effect.performative,
        source_agent_id: effect.source_agent_id.as_deref().unwrap_or(message.subject.service.as_str()),
        user_id: message.subject.user_id,
        session_id: &effect.session_id,
        payload: match &effect.payload {
            // A decoded body is JSON, and JSON is UTF-8; an empty object would be refused by nobody and tell nothing.
            Payload::Body => std::str::from_utf8(&message.body).unwrap_or("{}"),
            Payload::Redacted(json) => json,
        },
        cause,
    }
}

fn published(event: &NewEvent<'_>, appended: &Appended) -> Option<Event> {
    Some(Event {
        event_id: event.id,
        event_sequence: appended.event_sequence,
        event_type: event.event_type,
        performative: event.performative,
        source_agent_id: event.source_agent_id.to_owned(),
        target_agent_id: None,
        user_id: event.user_id,
        session_id: event.session_id.to_owned(),
        parent_event_id: event.cause.map(|cause| cause.parent_event_id),
        logical_timestamp: event.cause.map_or(1, |cause| cause.logical_timestamp),
        created_at: appended.created_at,
        payload: Json::new(event.payload).ok()?,
    })
}

/// The messages that this transaction has not taken, copies of those it has among them.
fn repeats(entries: &[Entry], taken: &HashSet<Uuid>) -> Vec<Entry> {
    entries.iter().filter(|entry| !taken.contains(&entry.event_id)).copied().collect()
}

/// The events of what earlier transactions took, as far as it had an effect.
async fn before(connection: &mut Connection, known: &[Entry]) -> Result<HashMap<Uuid, Event>, Fault> {
    let ids: Vec<Uuid> = known.iter().map(|entry| entry.event_id).collect();
    let events = blackboard::read(connection, &ids).await?;
    Ok(events.into_iter().map(|event| (event.event_id, event)).collect())
}

/// Messages without an effect that are tried again or given up leave no trace in the inbox.
async fn give_back(
    connection: &mut Connection,
    worker: &str,
    entries: &[Entry],
    written: &[Written],
) -> Result<(), Fault> {
    let unmet: Vec<Entry> = entries
        .iter()
        .zip(written)
        .filter(|(_, written)| match written {
            Written::Unmet(_) | Written::Refused(_) => true,
            Written::Effect(_) | Written::None(_) | Written::Before(_) => false,
        })
        .map(|(entry, _)| *entry)
        .collect();
    if unmet.is_empty() {
        return Ok(());
    }
    inbox::give_back(connection, worker, &unmet).await
}
