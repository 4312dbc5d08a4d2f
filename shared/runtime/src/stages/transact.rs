//! One transaction for a batch, and what it did for each message.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use contract::{DeadClass, Event, Json, UserId};
use keys::DataKeys;
use store::blackboard::{self, Appended, Cause, NewEvent};
use store::clock::{self, Session};
use store::inbox::{self, Entry};
use store::{Connection, Fault, FaultKind, security};
use uuid::Uuid;

use crate::delivery::watermarks::{Marks, Watermarks};
use crate::process::crash::{self, Point};
use crate::stages::authorize::Authorized;
use crate::stages::write::{Commit, Decision};
use crate::worker::{Effect, Message, Payload, Verdict, Worker};

/// What a transaction did for a message, before it is known to have committed.
#[derive(Clone)]
pub(crate) enum Written {
    Effect(Event),
    None(&'static str),
    /// An earlier transaction took the message; its event, if it had an effect.
    Before(Option<Event>),
    MissingPrerequisite(String),
    Refused(String),
}

impl Written {
    /// The event that is to be published.
    pub(crate) fn event(&self) -> Option<&Event> {
        match self {
            Self::Effect(event) | Self::Before(Some(event)) => Some(event),
            Self::Before(None) | Self::None(_) | Self::MissingPrerequisite(_) | Self::Refused(_) => None,
        }
    }

    /// What is true of a further copy of the same message in the same batch. It must not be taken for one that was
    /// written before: the acknowledgement of either copy is one of both.
    fn of_a_copy(&self) -> Self {
        match self {
            Self::Effect(event) => Self::Before(Some(event.clone())),
            Self::None(_) => Self::Before(None),
            Self::Before(_) | Self::MissingPrerequisite(_) | Self::Refused(_) => self.clone(),
        }
    }

    pub(crate) fn after_commit(self) -> Decision {
        match self {
            Self::Effect(event) => Decision::Committed(Commit { event: Some(event), reason: None }),
            Self::None(reason) => Decision::Committed(Commit { event: None, reason: Some(reason) }),
            Self::Before(event) => {
                let reason = event.is_none().then_some("a message with this id was taken before");
                Decision::Committed(Commit { event, reason })
            }
            Self::MissingPrerequisite(reason) => {
                Decision::Later { reason, class: DeadClass::MissingPrerequisite }
            }
            Self::Refused(reason) => Decision::Never { reason, class: DeadClass::Permanent },
        }
    }
}

/// What a transaction did, before it is known to have committed.
pub(crate) struct Transacted {
    /// For each message, in order.
    pub(crate) written: Vec<Written>,
    /// Events of the same sessions that others have appended before, and that nobody may have published yet.
    pub(crate) earlier: Vec<Event>,
}

/// Why a transaction is undone.
#[derive(Debug)]
pub(crate) enum Undone {
    Fault(Fault),
    /// So much was left unpublished in its sessions that this part of it goes out first.
    Behind(Vec<Event>),
}

impl From<Fault> for Undone {
    fn from(fault: Fault) -> Self {
        Self::Fault(fault)
    }
}

impl From<diesel::result::Error> for Undone {
    fn from(error: diesel::result::Error) -> Self {
        Self::Fault(error.into())
    }
}

/// Writes a batch.
///
/// # Errors
/// [`Undone`]; then nothing of the batch may be committed.
pub(crate) async fn transact<W: Worker>(
    worker: &W,
    connection: &mut Connection,
    batch: &[Authorized<W::Request>],
    keys: &DataKeys,
    prepared: &W::Prepared,
    watermarks: &Watermarks,
) -> Result<Transacted, Undone> {
    let entries: Vec<Entry> = batch.iter().map(|message| entry(message.message())).collect();
    let grants: BTreeSet<&str> = batch.iter().map(Authorized::grant).collect();
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
    let mut verdicts = verdicts(worker, connection, batch, fresh, keys, prepared).await?;
    let mut new_events: Vec<NewEvent<'_>> = (0..batch.len())
        .filter_map(|index| match verdicts.get(&index) {
            Some(Verdict::Applied(effect)) => {
                let message = batch[index].message();
                Some(new_event(entries[index].event_id, message, effect, cause_of(message).flatten()))
            }
            Some(Verdict::Unchanged(_) | Verdict::MissingPrerequisite(_) | Verdict::Refused(_)) | None => {
                None
            }
        })
        .collect();
    let known = inbox::event_ids(connection, W::NAME, &repeats(&entries, &taken)).await?;
    let before = before(connection, &known).await?;
    let mut clocks = clock::take(connection, &sessions(&new_events, &before, watermarks)).await?;
    if clocks.has_more {
        return Err(Undone::Behind(clocks.earlier));
    }
    for event in &mut new_events {
        event.logical_timestamp = clocks.next(event.user_id, event.session_id);
    }
    let appended = blackboard::append(connection, &new_events).await?;
    let mut events: HashMap<Uuid, Event> = new_events
        .iter()
        .filter_map(|event| Some((event.id, published(event, appended.get(&event.id)?)?)))
        .collect();

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
                Some(Verdict::MissingPrerequisite(reason)) => Written::MissingPrerequisite(reason),
                Some(Verdict::Refused(reason)) => Written::Refused(reason),
                // An event is told of once it is committed: one that is not there is none of this user's, and never will be.
                None => Written::Refused(format!(
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
    Ok(Transacted { written, earlier: clocks.earlier })
}

fn entry<R>(message: &Message<R>) -> Entry {
    let user_id = message.subject.user_id.get();
    Entry { user_id, message_id: message.request_id, event_id: message.event_id }
}

/// What the worker says of the messages at these places. Those whose user's data key cannot be opened wait for somebody who
/// mends it, within the retry budget.
async fn verdicts<W: Worker>(
    worker: &W,
    connection: &mut Connection,
    batch: &[Authorized<W::Request>],
    places: Vec<usize>,
    keys: &DataKeys,
    prepared: &W::Prepared,
) -> Result<HashMap<usize, Verdict>, Fault> {
    let mut verdicts = HashMap::with_capacity(places.len());
    let mut open = Vec::with_capacity(places.len());
    for index in places {
        let message = batch[index].message();
        match keys.get(&message.subject.user_id) {
            Some(Err(reason)) if worker.needs_key(&message.request) => {
                let user = message.subject.user_id;
                let reason = format!("the data key of user {user} cannot be opened: {reason}");
                verdicts.insert(index, Verdict::MissingPrerequisite(reason));
            }
            Some(_) | None => open.push(index),
        }
    }
    if !open.is_empty() {
        let messages: Vec<&Message<W::Request>> = open.iter().map(|&index| batch[index].message()).collect();
        verdicts.extend(open.iter().copied().zip(worker.write(connection, &messages, keys, prepared).await?));
    }
    Ok(verdicts)
}

/// The sessions that the batch tells of, also of what an earlier transaction wrote.
fn sessions<'a>(
    new_events: &'a [NewEvent<'_>],
    before: &'a HashMap<Uuid, Event>,
    watermarks: &Watermarks,
) -> Vec<Session<'a>> {
    let new = new_events.iter().map(|event| {
        let causes = event.cause.map_or(0, |cause| cause.parent_time);
        ((event.user_id, event.session_id), (1, causes))
    });
    let repeated = before.values().map(|event| ((event.user_id, event.session_id.as_str()), (0, 0)));
    let mut sessions: BTreeMap<(UserId, &str), (i64, i64)> = BTreeMap::new();
    for (session, (events, causes)) in new.chain(repeated) {
        let (all_events, latest_cause) = sessions.entry(session).or_default();
        (*all_events, *latest_cause) = (*all_events + events, causes.max(*latest_cause));
    }
    let session = |((user_id, session_id), (events, causes))| {
        let Marks { published, enqueued } = watermarks.of(user_id, session_id);
        Session { user_id, session_id, events, causes, published, enqueued }
    };
    sessions.into_iter().map(session).collect()
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
    batch: &[Authorized<R>],
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
        target_agent_id: effect.target_agent_id.as_deref(),
        user_id: message.subject.user_id,
        session_id: &effect.session_id,
        payload: match &effect.payload {
            // A decoded body is JSON, and JSON is UTF-8; an empty object would be refused by nobody and tell nothing.
            Payload::Body => std::str::from_utf8(&message.body).unwrap_or("{}"),
            Payload::Redacted(json) => json,
        },
        cause,
        // The session's clock says it, which is taken last.
        logical_timestamp: 0,
    }
}

fn published(event: &NewEvent<'_>, appended: &Appended) -> Option<Event> {
    Some(Event {
        event_id: event.id,
        event_sequence: appended.event_sequence,
        event_type: event.event_type,
        performative: event.performative,
        source_agent_id: event.source_agent_id.to_owned(),
        target_agent_id: event.target_agent_id.map(str::to_owned),
        user_id: event.user_id,
        session_id: event.session_id.to_owned(),
        parent_event_id: event.cause.map(|cause| cause.parent_event_id),
        logical_timestamp: event.logical_timestamp,
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
    let missing_prerequisite: Vec<Entry> = entries
        .iter()
        .zip(written)
        .filter(|(_, written)| match written {
            Written::MissingPrerequisite(_) | Written::Refused(_) => true,
            Written::Effect(_) | Written::None(_) | Written::Before(_) => false,
        })
        .map(|(entry, _)| *entry)
        .collect();
    if missing_prerequisite.is_empty() {
        return Ok(());
    }
    inbox::release(connection, worker, &missing_prerequisite).await
}
