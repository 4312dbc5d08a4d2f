//! Stage four: writes a batch in one transaction. If that fails, the batch is split, with a transaction for each part.

use std::borrow::Cow;
use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use chrono::Utc;
use contract::{Event, UserId};
use diesel_async::AsyncConnection;
use keys::{DataKeys, KeyError, Keys};
use store::registry::{self, RefusedToken};
use store::security::{self, Violation};
use store::{Fault, FaultKind, Pool};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::delivery::retry;
use crate::delivery::watermarks::Watermarks;
use crate::process::crash::{self, Point};
use crate::process::stats::Stats;
use crate::stages::authorize::{Authorized, Denied};
use crate::stages::disposition::Disposition;
use crate::stages::pull::Delivery;
use crate::stages::tick_grants::TickGrants;
use crate::stages::transact::{Attempt, Findings, RolledBack, Transacted};
use crate::worker::{Ended, ExternalWorker, Message, Source};

/// A message and its disposition. Only this module creates one, and it creates one as `Committed` only after the
/// transaction has committed.
#[derive(Debug)]
pub struct Settlement<I> {
    message: Authorized<I>,
    disposition: Disposition,
}

impl<I> Settlement<I> {
    pub(crate) fn into_parts(self) -> (Authorized<I>, Disposition) {
        (self.message, self.disposition)
    }
}

/// The settlements of a batch.
#[derive(Debug)]
pub struct Settlements<I> {
    pub(crate) settlements: Vec<Settlement<I>>,
    /// Events of earlier transactions, which are published before those of the batch.
    pub(crate) earlier: Vec<Event>,
}

/// Input of `settle`: written batches, and messages that were dead-lettered or deferred before the write.
pub(crate) enum ToSettle<I> {
    Batch(Settlements<I>),
    Single(Box<Delivery>, Disposition),
}

/// Input of this stage: messages to write, and denied messages to record.
pub(crate) struct ToWrite<I> {
    pub(crate) authorized: Vec<Authorized<I>>,
    pub(crate) denied: Vec<Denied>,
}

impl<I> Default for ToWrite<I> {
    fn default() -> Self {
        Self { authorized: Vec::new(), denied: Vec::new() }
    }
}

/// How often a batch with transient faults is tried as a whole before it is split.
const WHOLE_BATCH_ATTEMPTS: u32 = 3;
/// After losing its connection this often during a transaction, a batch is split to find a message that causes it.
const MAX_LOST_CONNECTIONS: u32 = 4;
const FIRST_PAUSE: Duration = Duration::from_millis(10);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

/// Writes the batches of one worker.
pub(crate) struct Writer<W> {
    pub(crate) worker: Arc<W>,
    pub(crate) pool: Pool,
    /// Set for a worker that encrypts.
    pub(crate) keys: Option<Arc<Keys>>,
    pub(crate) watermarks: Arc<Watermarks>,
    pub(crate) stats: Arc<Stats>,
    pub(crate) stop: CancellationToken,
}

/// What a worker has prepared for a batch, and its findings from writing it.
struct Progress<W: ExternalWorker> {
    /// The job grants, if the batch is a tick.
    grants: Option<TickGrants>,
    prepared: W::Prepared,
    findings: Findings<W::Finding>,
}

impl<W: ExternalWorker> Writer<W> {
    /// Writes a batch and decides the disposition of every message, in order. Settlements that must be published before
    /// the rest can be written are sent to `to_settle`; the remaining ones are returned.
    pub(crate) async fn write(
        &self,
        mut batch: Vec<Authorized<W::Item>>,
        to_settle: &mpsc::Sender<ToSettle<W::Item>>,
    ) -> Settlements<W::Item> {
        let (mut decided, mut earlier) = (Vec::with_capacity(batch.len()), Vec::new());
        let mut progress = match self.begin(&batch).await {
            Ok(progress) => progress,
            Err(disposition) => {
                decided.extend(batch.iter().map(|_| disposition.clone()));
                return settlements(batch.drain(..), &mut decided, &mut earlier);
            }
        };
        // The lengths of the parts still to be written, the next one last; this keeps the order of the batch. The next
        // part starts at the index `decided.len()`.
        let mut parts: Vec<usize> = vec![batch.len()];
        while let Some(length) = parts.pop() {
            let messages = &batch[decided.len()..decided.len() + length];
            match self.persist(messages, &mut progress).await {
                Ok(transacted) => {
                    decided.extend(transacted.dispositions);
                    earlier.extend(transacted.earlier);
                }
                Err(RolledBack::Backlog(unpublished)) => {
                    parts.push(length);
                    self.clean_up(&batch[..decided.len()], &mut decided, &progress).await;
                    let first = settlements(batch.drain(..decided.len()), &mut decided, &mut earlier);
                    let second = Settlements { settlements: Vec::new(), earlier: unpublished };
                    for settlements in [first, second] {
                        // If the settle stage is gone, pulling stops as well and all messages are redelivered.
                        drop(to_settle.send(ToSettle::Batch(settlements)).await);
                    }
                }
                Err(RolledBack::Fault(_)) if length > 1 && !self.stop.is_cancelled() => {
                    parts.extend([length - length / 2, length / 2]);
                }
                // A tick is a single message, but it can be tried with fewer users.
                Err(RolledBack::Fault(fault)) if progress.grants.as_mut().is_some_and(TickGrants::narrow) => {
                    tracing::warn!(worker = W::INFO.name, %fault, "a tick failed, retrying with fewer users");
                    if self.stop.is_cancelled() {
                        decided.extend(messages.iter().map(|_| Disposition::HAND_BACK));
                    } else {
                        parts.push(length);
                    }
                }
                // Stopping: no time to find the failing message, so another replica takes them all.
                Err(RolledBack::Fault(_)) if length > 1 => {
                    decided.extend(messages.iter().map(|_| Disposition::HAND_BACK));
                }
                Err(RolledBack::Fault(fault)) => {
                    for message in messages {
                        decided.push(self.failed(message.message(), &fault).await);
                    }
                }
            }
        }
        self.clean_up(&batch, &mut decided, &progress).await;
        settlements(batch.drain(..), &mut decided, &mut earlier)
    }

    /// Mints the job grants if the batch is a tick, and prepares the batch. If that fails, returns the disposition of
    /// all its messages.
    async fn begin(&self, batch: &[Authorized<W::Item>]) -> Result<Progress<W>, Disposition> {
        let mut grants = None;
        for message in batch.iter().map(Authorized::message) {
            if let Source::Tick(tick) = &message.source {
                grants = Some(self.mint(message, tick.job.as_str()).await?);
            }
        }
        let due = grants.as_ref().map(TickGrants::due);
        let prepared = self.prepare(batch, due).await.ok_or(Disposition::HAND_BACK)?;
        Ok(Progress { grants, prepared, findings: Findings::new() })
    }

    /// Mints the job grants of a tick. Retries while the database is unavailable.
    async fn mint(&self, tick: &Message<W::Item>, job: &str) -> Result<TickGrants, Disposition> {
        let mut tries = 0;
        loop {
            let fault = match TickGrants::mint(&self.pool, job, tick.request_id).await {
                Ok(grants) => return Ok(grants),
                Err(fault) => fault,
            };
            if !fault.kind.is_outage() {
                return Err(self.failed(tick, &fault).await);
            }
            tracing::warn!(worker = W::INFO.name, %fault, job, "dependency unavailable, tick on hold");
            if !self.pause(&mut tries).await {
                return Err(Disposition::HAND_BACK);
            }
        }
    }

    /// Prepares the batch at external dependencies. `None` if the worker is stopped before this is done.
    async fn prepare(&self, batch: &[Authorized<W::Item>], due: Option<Vec<&str>>) -> Option<W::Prepared> {
        let mut prepared = W::Prepared::default();
        // The ranges of the parts still to be prepared, the next one last.
        let mut parts = vec![(0, batch.len())];
        // How often the part in work has lost a connection.
        let (mut tries, mut connections_lost) = (0, 0);
        while let Some((start, end)) = parts.pop() {
            let messages: Vec<&Message<W::Item>> =
                batch[start..end].iter().map(Authorized::message).collect();
            let grants = due.clone().unwrap_or_else(|| grants_of(&batch[start..end]));
            let part = tokio::select! {
                // Safe to cancel: a redelivered message is prepared again.
                () = self.stop.cancelled() => return None,
                part = self.worker.prepare(&messages, &grants) => part,
            };
            let fault = match part {
                Ok(part) => {
                    prepared = self.worker.join(prepared, part);
                    (tries, connections_lost) = (0, 0);
                    continue;
                }
                Err(fault) => fault,
            };
            connections_lost += u32::from(fault.kind == FaultKind::ConnectionLost);
            match fault.kind {
                FaultKind::Unavailable | FaultKind::ConnectionLost
                    if connections_lost < MAX_LOST_CONNECTIONS =>
                {
                    tracing::warn!(
                        worker = W::INFO.name,
                        %fault,
                        messages = end - start,
                        "dependency unavailable, batch on hold"
                    );
                    if !self.pause(&mut tries).await {
                        return None;
                    }
                    parts.push((start, end));
                }
                // As in `persist`, a message may be what breaks the connection.
                FaultKind::Unavailable
                | FaultKind::ConnectionLost
                | FaultKind::Transient
                | FaultKind::MissingPrerequisite
                | FaultKind::Permanent
                | FaultKind::Denied => {
                    (tries, connections_lost) = (0, 0);
                    let middle = start + (end - start) / 2;
                    if end - start > 1 {
                        parts.extend([(middle, end), (start, middle)]);
                    } else {
                        // The transaction will fail for the same reason and report it in more detail.
                        tracing::debug!(worker = W::INFO.name, %fault, "cannot prepare a message");
                    }
                }
            }
        }
        Some(prepared)
    }

    /// Calls the worker's `clean_up` for the messages that are settled for good. Retries while a dependency is
    /// unavailable; if the worker is stopped meanwhile, the messages are redelivered.
    async fn clean_up(
        &self,
        batch: &[Authorized<W::Item>],
        decided: &mut [Disposition],
        progress: &Progress<W>,
    ) {
        let findings = |message: &Message<W::Item>| progress.findings.get(&message.event_id);
        let ended: Vec<Ended<'_, W::Item, W::Finding>> = batch
            .iter()
            .map(Authorized::message)
            .zip(decided.iter())
            .filter(|(_, disposition)| disposition.ends())
            .map(|(message, disposition)| Ended {
                message,
                committed: disposition.commit().is_some(),
                findings: findings(message).map_or(&[], Vec::as_slice),
            })
            .collect();
        let mut tries = 0;
        while let Err(fault) = self.worker.clean_up(&ended, &progress.prepared).await {
            tracing::warn!(worker = W::INFO.name, %fault, messages = ended.len(), "cannot clean up");
            if !fault.kind.is_outage() {
                return;
            }
            if !self.pause(&mut tries).await {
                decided.fill_with(|| Disposition::HAND_BACK);
                return;
            }
        }
    }

    /// Waits before another try, longer after each. False if the worker is stopped meanwhile.
    async fn pause(&self, tries: &mut u32) -> bool {
        *tries += 1;
        tokio::select! {
            () = self.stop.cancelled() => false,
            () = tokio::time::sleep(retry::delay(*tries, FIRST_PAUSE, LONGEST_PAUSE)) => true,
        }
    }

    /// Records refusals, retrying until it succeeds. False if the worker is stopped first: then the messages must be
    /// redelivered, because no refusal may go unrecorded.
    pub(crate) async fn record_denied(&self, denied: &[Denied]) -> bool {
        let reasons: Vec<String> = denied.iter().map(|one| one.refusal.to_string()).collect();
        let refused: Vec<RefusedToken<'_>> = denied
            .iter()
            .zip(&reasons)
            .map(|(one, reason)| RefusedToken {
                kind: one.refusal.as_str(),
                reason,
                user_id: Some(one.subject.user_id),
                service: &one.subject.service,
                request_id: one.request_id,
            })
            .collect();
        let mut tries = 0;
        loop {
            let recorded = match store::acquire(&self.pool).await {
                Ok(mut connection) => {
                    let recorded = registry::record_refused(&mut connection, &refused).await;
                    store::discard_if_unusable(connection, &recorded);
                    recorded
                }
                Err(error) => Err(error.into()),
            };
            let Err(fault) = recorded else { return true };
            tracing::warn!(worker = W::INFO.name, %fault, refusals = refused.len(), "cannot record refusals, retrying");
            if !self.pause(&mut tries).await {
                return false;
            }
        }
    }

    /// Tries one part until it is written or one of its messages causes a failure. Retries while a dependency is
    /// unavailable.
    async fn persist(
        &self,
        messages: &[Authorized<W::Item>],
        progress: &mut Progress<W>,
    ) -> Result<Transacted, RolledBack> {
        let (mut tries, mut outages, mut connections_lost) = (0, 0, 0);
        loop {
            let fault = match self.attempt(messages, progress).await {
                Err(RolledBack::Fault(fault)) => fault,
                done => return done,
            };
            let pause = match fault.kind {
                FaultKind::Permanent | FaultKind::Denied | FaultKind::MissingPrerequisite => {
                    return Err(fault.into());
                }
                FaultKind::Transient => {
                    tries += 1;
                    if tries >= WHOLE_BATCH_ATTEMPTS {
                        return Err(fault.into());
                    }
                    retry::delay(tries, FIRST_PAUSE, LONGEST_PAUSE)
                }
                FaultKind::ConnectionLost if connections_lost + 1 >= MAX_LOST_CONNECTIONS => {
                    return Err(Fault { kind: FaultKind::Transient, ..fault }.into());
                }
                FaultKind::ConnectionLost | FaultKind::Unavailable => {
                    outages += 1;
                    connections_lost += u32::from(fault.kind == FaultKind::ConnectionLost);
                    tracing::warn!(
                        worker = W::INFO.name,
                        %fault,
                        messages = messages.len(),
                        "dependency unavailable, batch on hold"
                    );
                    retry::delay(outages, FIRST_PAUSE, LONGEST_PAUSE)
                }
            };
            tokio::select! {
                () = self.stop.cancelled(), if fault.kind != FaultKind::Transient => return Err(fault.into()),
                () = tokio::time::sleep(pause) => {}
            }
        }
    }

    /// The disposition of a message that failed on its own. A denial by the database is recorded first, on another
    /// connection, because the denied transaction is rolled back.
    async fn failed(&self, message: &Message<W::Item>, fault: &Fault) -> Disposition {
        if fault.kind == FaultKind::Denied
            && let Err(problem) = self.record_violation(message, fault).await
        {
            // No violation may go unrecorded. The redelivered message will be denied again.
            tracing::warn!(worker = W::INFO.name, %problem, "cannot record a violation; its message is redelivered");
            return Disposition::HAND_BACK;
        }
        Disposition::of_fault(fault)
    }

    async fn record_violation(&self, message: &Message<W::Item>, fault: &Fault) -> Result<(), Fault> {
        let mut connection = store::acquire(&self.pool).await?;
        let violation = Violation {
            message: &fault.reason,
            user_id: message.user_id().get(),
            service: message.publisher(),
            request_id: message.request_id,
        };
        let recorded = security::record_violation(&mut connection, &violation).await;
        store::discard_if_unusable(connection, &recorded);
        recorded
    }

    /// Fetches the data keys of a batch before its transaction opens: the key store may be slow, and no rows should
    /// stay locked while waiting for it.
    async fn keys_for(&self, messages: &[Authorized<W::Item>]) -> Result<DataKeys, Fault> {
        let Some(keys) = &self.keys else { return Ok(DataKeys::new()) };
        let users: BTreeSet<UserId> = messages
            .iter()
            .map(Authorized::message)
            .filter(|message| !message.secrets.is_empty())
            .map(Message::user_id)
            .collect();
        // Messages cannot cause an error of the key store, so all of them count as unavailability.
        let unavailable = |error: KeyError| Fault { kind: FaultKind::Unavailable, reason: error.to_string() };
        if users.is_empty() { Ok(DataKeys::new()) } else { keys.current(&users).await.map_err(unavailable) }
    }

    /// Runs one transaction.
    async fn attempt(
        &self,
        messages: &[Authorized<W::Item>],
        progress: &mut Progress<W>,
    ) -> Result<Transacted, RolledBack> {
        let keys = self.keys_for(messages).await?;
        let Progress { grants: tick_grants, prepared, findings } = progress;
        for message in messages.iter().map(Authorized::message) {
            if let (Source::Tick(tick), Some(grants)) = (&message.source, &mut *tick_grants) {
                grants.renew(&self.pool, tick.job.as_str(), message.request_id).await?;
            }
        }
        let (grants, due) = match tick_grants {
            Some(grants) => (grants.all(), Some(grants.due())),
            None => (grants_of(messages), None),
        };
        let inbox = match due {
            Some(_) => Cow::Owned(W::INFO.jobs_consumer()),
            None => Cow::Borrowed(W::INFO.name),
        };
        let mut connection = store::acquire(&self.pool).await.map_err(Fault::from)?;
        let attempt = Attempt {
            worker: &*self.worker,
            batch: messages,
            keys: &keys,
            prepared,
            grants: &grants,
            due: due.as_deref(),
            inbox: &inbox,
            watermarks: &self.watermarks,
        };
        let transacted: Result<Transacted, RolledBack> =
            connection.transaction(async |connection| attempt.transact(connection, findings).await).await;
        let transacted = match transacted {
            Ok(transacted) => transacted,
            Err(RolledBack::Backlog(unpublished)) => {
                // They are published before any event that is appended later.
                self.watermarks.enqueued(unpublished.iter());
                return Err(RolledBack::Backlog(unpublished));
            }
            Err(RolledBack::Fault(fault)) => {
                // A new connection may reach another server or see a schema that has changed.
                if fault.kind.is_outage() {
                    store::discard(connection);
                }
                return Err(fault.into());
            }
        };
        crash::reach(Point::Committed);
        let commits = || transacted.dispositions.iter().map(Disposition::commit);
        let committed = commits().zip(messages);
        let committed =
            committed.filter_map(|(commit, message)| Some((commit?.effect, message.message().stored_at)));
        self.stats.committed(Utc::now(), committed);
        let own = commits().flatten().flat_map(|commit| &commit.events);
        self.watermarks.enqueued(transacted.earlier.iter().chain(own));
        Ok(transacted)
    }
}

/// The distinct grants in the tokens of these messages.
fn grants_of<I>(messages: &[Authorized<I>]) -> Vec<&str> {
    let grants: BTreeSet<&str> = messages.iter().filter_map(Authorized::grant).collect();
    Vec::from_iter(grants)
}

/// Pairs messages with their dispositions, of which there are as many.
fn settlements<I>(
    messages: impl Iterator<Item = Authorized<I>>,
    decided: &mut Vec<Disposition>,
    earlier: &mut Vec<Event>,
) -> Settlements<I> {
    let decided = messages.zip(decided.drain(..));
    let settlements = decided.map(|(message, disposition)| Settlement { message, disposition }).collect();
    Settlements { settlements, earlier: std::mem::take(earlier) }
}
