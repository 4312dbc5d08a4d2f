//! The transaction of a batch, and its result for each message.

use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicI32, Ordering};
use std::time::Duration;

use contract::{DeadLetterClass, Event, Json, UserId, WorkerInfo};
use keys::DataKeys;
use store::blackboard::{self, Appended, Cause, NewEvent, StoredEvent};
use store::clock::{self, Earlier, Session};
use store::inbox::{self, Entry};
use store::{Connection, Fault, FaultKind, lock, security, unpublished};
use uuid::Uuid;

use crate::delivery::watermarks::{Marks, Watermarks};
use crate::process::crash::{self, Point};
use crate::reason::Reason;
use crate::stages::authorize::Authorized;
use crate::stages::disposition::{Commit, Disposition, Effect};
use crate::stages::job_run::{self, Run};
use crate::worker::{EventDraft, ExternalWorker, Message, Retry, Verdict, Written};

/// Maximum number of events that one message may cause.
const MAX_EVENTS: usize = 1_000;
/// Maximum number of events that a batch may cause. A batch with more is split.
const MAX_EVENTS_PER_BATCH: usize = 10_000;

/// What a transaction did. Valid only once it has committed.
pub(crate) struct Transacted {
    /// The disposition of each message, in order.
    pub(crate) dispositions: Vec<Disposition>,
    /// Events that earlier transactions appended to the same sessions and that may not be published yet.
    pub(crate) earlier: Vec<Earlier>,
}

/// Why a transaction is rolled back.
#[derive(Debug)]
pub(crate) enum RolledBack {
    Fault(Fault),
    /// Its sessions have too many unpublished events. These ones are published before the batch is tried again.
    Backlog(Vec<Earlier>),
}

impl From<Fault> for RolledBack {
    fn from(fault: Fault) -> Self {
        Self::Fault(fault)
    }
}

impl From<diesel::result::Error> for RolledBack {
    fn from(error: diesel::result::Error) -> Self {
        Self::Fault(error.into())
    }
}

/// The worker's findings from all attempts to write a message, by the message's event id.
pub(crate) type Findings<F> = HashMap<Uuid, Vec<F>>;

/// One attempt to write a batch.
pub(crate) struct Attempt<'a, W: ExternalWorker> {
    pub(crate) worker: &'a W,
    pub(crate) batch: &'a [Authorized<W::Item>],
    pub(crate) keys: &'a DataKeys,
    pub(crate) prepared: &'a W::Prepared,
    /// The grants in the tokens of the batch, or the job grants of its tick.
    pub(crate) grants: &'a [&'a str],
    /// Set for a tick: the grants of the users with work due, under which alone the worker writes; and its run.
    pub(crate) due: Option<(&'a [&'a str], &'a Run)>,
    /// The key of the batch in the inbox: the name of the consumer that delivered it.
    pub(crate) inbox: &'a str,
    pub(crate) watermarks: &'a Watermarks,
    /// The `lock_timeout`, if it is not that of the connection.
    pub(crate) lock_timeout: Option<Duration>,
    /// Receives the process id of the transaction's backend.
    pub(crate) backend: &'a AtomicI32,
}

impl<W: ExternalWorker> Attempt<'_, W> {
    /// Writes the batch. The worker's findings are added to `findings` even if the transaction is rolled back.
    ///
    /// # Errors
    /// [`RolledBack`]: the caller must roll the transaction back.
    pub(crate) async fn transact(
        &self,
        connection: &mut Connection,
        findings: &mut Findings<W::Finding>,
    ) -> Result<Transacted, RolledBack> {
        let backend = security::open_context_of_batch(connection, self.grants, self.batch.len()).await?;
        self.backend.store(backend, Ordering::Relaxed);
        if let Some(timeout) = self.lock_timeout {
            lock::set_timeout(connection, timeout).await?;
        }
        let entries: Vec<Entry> = self.messages().map(entry).collect();
        let taken = inbox::take(connection, self.inbox, &entries).await?;
        crash::reach(Point::Taken);
        let causes = self.causes(connection).await?;
        let has_cause = |message: &Message<W::Item>| {
            message.parent_event_id.is_none_or(|parent| causes.contains_key(&(message.user_id(), parent)))
        };
        let fresh: Vec<usize> = (0..self.batch.len())
            .filter(|&index| taken.contains(&entries[index].event_id) && has_cause(self.message(index)))
            .collect();
        let mut verdicts = self.verdicts(connection, fresh, findings).await?;
        let repeats: Vec<Entry> =
            entries.iter().filter(|entry| !taken.contains(&entry.event_id)).copied().collect();
        let known = inbox::find(connection, self.inbox, &repeats).await?;
        let before = events_of(connection, &known).await?;

        let mut new_events = self.new_events(&verdicts, &causes)?;
        let mut clocks =
            clock::take(connection, W::INFO, &sessions(&new_events, &before, self.watermarks)).await?;
        if clocks.has_more {
            return Err(RolledBack::Backlog(clocks.earlier));
        }
        for event in &mut new_events {
            event.logical_timestamp = clocks.next(event.user_id, event.session_id);
        }
        let appended = blackboard::append(connection, &new_events).await?;
        let transaction_id = match appended.len() {
            0 => 0,
            events => unpublished::note_unpublished(connection, events).await?,
        };
        let stored = |event: &NewEvent<'_>| {
            let event = published(event, appended.get(&event.id)?)?;
            Some((event.event_id, StoredEvent { event, transaction_id }))
        };
        let events: HashMap<Uuid, StoredEvent> = new_events.iter().filter_map(stored).collect();
        drop(new_events);

        let mut dispositions: Vec<Option<Disposition>> = Vec::with_capacity(entries.len());
        for (index, entry) in entries.iter().enumerate() {
            dispositions.push(match taken.contains(&entry.event_id) {
                true => {
                    let awaits = self.message(index).awaits(W::INFO);
                    Some(disposition(entry, verdicts.remove(&index), &events, awaits)?)
                }
                false => None,
            });
        }
        let dispositions = with_duplicates(&entries, dispositions, &known, &before);
        self.update_inbox(connection, &entries, &dispositions).await?;
        crash::reach(Point::Written);
        Ok(Transacted { dispositions, earlier: clocks.earlier })
    }

    fn message(&self, index: usize) -> &Message<W::Item> {
        self.batch[index].message()
    }

    fn messages(&self) -> impl Iterator<Item = &Message<W::Item>> {
        self.batch.iter().map(Authorized::message)
    }

    async fn causes(&self, connection: &mut Connection) -> Result<HashMap<(UserId, Uuid), Cause>, Fault> {
        let parents: Vec<_> = self
            .messages()
            .filter_map(|message| message.parent_event_id.map(|parent| (message.user_id(), parent)))
            .collect();
        blackboard::causes(connection, &parents).await
    }

    /// The worker's verdicts on the messages at these indexes. A message is retried within the retry budget if its
    /// user's data key cannot be decrypted, so that an operator has time to repair the key.
    async fn verdicts(
        &self,
        connection: &mut Connection,
        indexes: Vec<usize>,
        findings: &mut Findings<W::Finding>,
    ) -> Result<HashMap<usize, Verdict>, Fault> {
        let mut verdicts = HashMap::with_capacity(indexes.len());
        let mut open = Vec::with_capacity(indexes.len());
        for index in indexes {
            let message = self.message(index);
            match self.keys.get(&message.user_id()) {
                Some(Err(reason)) if !message.secrets.is_empty() => {
                    let user = message.user_id();
                    let sentence = format!("the data key of user {user} cannot be opened");
                    let full = format!("{sentence}: {reason}");
                    let reason = Reason::new(sentence).for_operators(full);
                    verdicts.insert(index, Verdict::Retry(Retry::WithinBudget, reason));
                }
                Some(_) | None => open.push(index),
            }
        }
        if !open.is_empty() {
            let messages: Vec<&Message<W::Item>> = open.iter().map(|&index| self.message(index)).collect();
            let Written { verdicts: given, findings: found, .. } = self.write(connection, &messages).await?;
            if given.len() != messages.len() {
                let reason =
                    format!("the worker returned {} verdicts on {} messages", given.len(), messages.len());
                return Err(Fault { kind: FaultKind::Permanent, reason });
            }
            for (event_id, finding) in found {
                findings.entry(event_id).or_default().push(finding);
            }
            verdicts.extend(open.into_iter().zip(given));
        }
        Ok(verdicts)
    }

    /// Calls the worker's `write`. During a tick it acts only for the users with work due, not for the platform that
    /// the tick belongs to: a statement without a condition on users must not change the platform's rows.
    async fn write(
        &self,
        connection: &mut Connection,
        messages: &[&Message<W::Item>],
    ) -> Result<Written<W::Finding>, Fault> {
        let Some((due, run)) = self.due else {
            return self.worker.write(connection, messages, self.keys, self.prepared).await;
        };
        let written = if due.is_empty() {
            let nothing = || Verdict::Unchanged("no user has work due".into());
            Written::from(messages.iter().map(|_| nothing()).collect::<Vec<_>>())
        } else {
            security::open_context_of_batch(connection, due, messages.len()).await?;
            let written = self.worker.write(connection, messages, self.keys, self.prepared).await?;
            security::open_context_of_batch(connection, self.grants, messages.len()).await?;
            written
        };
        for message in messages {
            job_run::note(connection, message, run, due.len(), &written).await?;
        }
        Ok(written)
    }

    /// Creates the events that the verdicts cause, in the order of the batch.
    fn new_events<'a>(
        &'a self,
        verdicts: &'a HashMap<usize, Verdict>,
        causes: &'a HashMap<(UserId, Uuid), Cause>,
    ) -> Result<Vec<NewEvent<'a>>, Fault> {
        let wrong = |reason: String| Fault { kind: FaultKind::Permanent, reason };
        let too_many = |whose: &str, count: usize, most: usize| {
            wrong(format!("{whose} would cause {count} events, more than {most}"))
        };
        let mut events = Vec::with_capacity(verdicts.len());
        for (index, message) in self.messages().enumerate() {
            let drafts = match verdicts.get(&index) {
                Some(Verdict::Applied(drafts)) => drafts,
                Some(Verdict::Unchanged(_) | Verdict::Retry(..) | Verdict::Rejected(_)) | None => continue,
            };
            let most = if self.due.is_some() { MAX_EVENTS_PER_BATCH } else { MAX_EVENTS };
            if drafts.len() > most {
                return Err(too_many("the message", drafts.len(), most));
            }
            for draft in drafts {
                if !W::INFO.causes(draft.event_type) {
                    return Err(wrong(format!("{} causes no events {}", W::INFO.name, draft.event_type)));
                }
                if self.due.is_none() && draft.user_id != message.user_id() {
                    return Err(wrong("an event of a request must be of the request's user".to_owned()));
                }
                if draft.payload.is_none() && !message.secrets.is_empty() {
                    return Err(wrong(
                        "an event of a request with secrets needs a redacted payload".to_owned(),
                    ));
                }
            }
            let cause = message.parent_event_id.and_then(|parent| causes.get(&(message.user_id(), parent)));
            let ids = inbox::event_ids(message.event_id, drafts.len());
            events.extend(ids.zip(drafts).map(|(id, draft)| new_event(id, message, draft, cause)));
        }
        if events.len() > MAX_EVENTS_PER_BATCH {
            return Err(too_many("the batch", events.len(), MAX_EVENTS_PER_BATCH));
        }
        Ok(events)
    }

    /// Removes messages that are retried or dead-lettered from the inbox. For a message that did not cause exactly one
    /// event, the inbox stores the number of events.
    async fn update_inbox(
        &self,
        connection: &mut Connection,
        entries: &[Entry],
        dispositions: &[Disposition],
    ) -> Result<(), Fault> {
        let (mut released, mut counted) = (Vec::new(), Vec::new());
        for (entry, disposition) in entries.iter().zip(dispositions) {
            match disposition.commit() {
                None => released.push(*entry),
                Some(commit) if commit.effect == Effect::Applied && commit.events.len() != 1 => {
                    let event_count = i32::try_from(commit.events.len()).unwrap_or(i32::MAX);
                    counted.push(Entry { event_count, ..*entry });
                }
                Some(_) => {}
            }
        }
        inbox::release(connection, self.inbox, &released).await?;
        inbox::count_events(connection, self.inbox, &counted).await
    }
}

fn entry<I>(message: &Message<I>) -> Entry {
    Entry {
        user_id: message.user_id().get(),
        message_id: message.request_id,
        event_id: message.event_id,
        event_count: 1,
    }
}

/// The disposition of a message that this transaction has added to the inbox. `awaits`: the worker that writes its
/// prerequisite.
fn disposition(
    entry: &Entry,
    verdict: Option<Verdict>,
    events: &HashMap<Uuid, StoredEvent>,
    awaits: Option<&'static WorkerInfo>,
) -> Result<Disposition, Fault> {
    Ok(match verdict {
        Some(Verdict::Applied(drafts)) => {
            let events: Option<Vec<StoredEvent>> =
                inbox::event_ids(entry.event_id, drafts.len()).map(|id| events.get(&id).cloned()).collect();
            let missing = || Fault {
                kind: FaultKind::Permanent,
                reason: "one of its events could not be appended".to_owned(),
            };
            let events = events.ok_or_else(missing)?;
            Disposition::Committed(Commit { effect: Effect::Applied, events, reason: None })
        }
        Some(Verdict::Unchanged(reason)) => Disposition::unchanged(reason),
        Some(Verdict::Retry(Retry::WithinBudget, reason)) => {
            Disposition::Retry { class: DeadLetterClass::MissingPrerequisite, reason, awaits: None }
        }
        Some(Verdict::Retry(Retry::Prerequisite, reason)) => {
            Disposition::Retry { class: DeadLetterClass::MissingPrerequisite, reason, awaits }
        }
        Some(Verdict::Retry(Retry::NotBefore { time, deadline }, reason)) => {
            Disposition::RetryNotBefore { time, deadline, reason }
        }
        Some(Verdict::Rejected(reason)) => {
            Disposition::DeadLetter { class: DeadLetterClass::Permanent, reason }
        }
        // Events are published only after they are committed, so an unknown id cannot become valid later.
        None => Disposition::DeadLetter {
            class: DeadLetterClass::Permanent,
            reason: format!("{}: no event with this id for this user", contract::header::PARENT_EVENT).into(),
        },
    })
}

/// The sessions of the batch's events, including events written by earlier transactions.
fn sessions<'a>(
    new_events: &'a [NewEvent<'_>],
    before: &'a HashMap<Uuid, StoredEvent>,
    watermarks: &Watermarks,
) -> Vec<Session<'a>> {
    let new = new_events.iter().map(|event| {
        let causes = event.cause.map_or(0, |cause| cause.parent_time);
        ((event.user_id, event.session_id), (1, causes))
    });
    let repeated =
        before.values().map(|StoredEvent { event, .. }| ((event.user_id, event.session_id.as_str()), (0, 0)));
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

/// Gives each duplicate the disposition of the original, which was added to the inbox by an earlier transaction or is
/// another copy in this batch.
fn with_duplicates(
    entries: &[Entry],
    mut dispositions: Vec<Option<Disposition>>,
    known: &[Entry],
    before: &HashMap<Uuid, StoredEvent>,
) -> Vec<Disposition> {
    let missing: Vec<usize> =
        (0..dispositions.len()).filter(|&index| dispositions[index].is_none()).collect();
    // Most batches contain no duplicate.
    if !missing.is_empty() {
        let indexes: HashMap<Uuid, usize> =
            entries.iter().enumerate().map(|(index, entry)| (entry.event_id, index)).collect();
        let known: HashMap<(i32, Uuid), &Entry> =
            known.iter().map(|entry| ((entry.user_id, entry.message_id), entry)).collect();
        for index in missing {
            let first = known.get(&(entries[index].user_id, entries[index].message_id)).copied();
            let original = first.and_then(|first| dispositions[*indexes.get(&first.event_id)?].as_ref());
            let events = || {
                let ids = first.into_iter().flat_map(Entry::event_ids);
                ids.filter_map(|id| before.get(&id).cloned()).collect()
            };
            let duplicate =
                original.map_or_else(|| Disposition::repeated(events()), Disposition::of_duplicate);
            dispositions[index] = Some(duplicate);
        }
    }
    dispositions.into_iter().flatten().collect()
}

fn new_event<'a, I>(
    id: Uuid,
    message: &'a Message<I>,
    draft: &'a EventDraft,
    cause: Option<&'a Cause>,
) -> NewEvent<'a> {
    NewEvent {
        id,
        request_id: message.request_id,
        event_type: draft.event_type,
        performative: draft.performative,
        source_agent_id: draft.source_agent_id.as_deref().unwrap_or(message.publisher()),
        target_agent_id: draft.target_agent_id.as_deref(),
        user_id: draft.user_id,
        session_id: &draft.session_id,
        // A decoded body is JSON and therefore UTF-8, so the fallback is never used.
        payload: match &draft.payload {
            Some(json) => json,
            None if message.body.is_empty() => "{}",
            None => std::str::from_utf8(&message.body).unwrap_or("{}"),
        },
        cause: cause.filter(|_| draft.user_id == message.user_id()),
        // Set later, from the session's clock.
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
        payload: Json::recorded(event.payload).ok()?,
    })
}

/// The events of messages that earlier transactions processed, by event id.
async fn events_of(
    connection: &mut Connection,
    known: &[Entry],
) -> Result<HashMap<Uuid, StoredEvent>, Fault> {
    let ids: Vec<Uuid> = known.iter().flat_map(Entry::event_ids).collect();
    let events = blackboard::read(connection, &ids).await?;
    Ok(events.into_iter().map(|stored| (stored.event.event_id, stored)).collect())
}
