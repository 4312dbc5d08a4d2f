//! Stage four: one transaction for a batch, and if that fails, for its parts.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use chrono::Utc;
use contract::{Event, UserId};
use diesel_async::AsyncConnection;
use keys::{DataKeys, KeyError, Keys};
use store::job_grants::{self, JobGrant};
use store::registry::{self, RefusedToken};
use store::security::{self, Violation};
use store::{Connection, Fault, FaultKind, Pool};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::delivery::retry;
use crate::delivery::watermarks::Watermarks;
use crate::process::crash::{self, Point};
use crate::process::stats::Stats;
use crate::stages::authorize::{Authorized, Denied};
use crate::stages::disposition::Disposition;
use crate::stages::pull::Delivery;
use crate::stages::transact::{Attempt, Findings, RolledBack, Transacted};
use crate::worker::{Ended, ExternalWorker, Message, Source};

/// A message and what becomes of it. Only this module makes one, and makes one that says that its transaction has committed only
/// after it has.
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

/// What became of a batch.
#[derive(Debug)]
pub struct Settlements<I> {
    pub(crate) settlements: Vec<Settlement<I>>,
    /// Events of others that go out before those of the batch.
    pub(crate) earlier: Vec<Event>,
}

/// What goes to `settle`: written batches, and messages that never got that far.
pub(crate) enum ToSettle<I> {
    Batch(Settlements<I>),
    Single(Box<Delivery>, Disposition),
}

/// What the stages before pass on: messages to be written, and others to be refused.
pub(crate) struct ToWrite<I> {
    pub(crate) authorized: Vec<Authorized<I>>,
    pub(crate) denied: Vec<Denied>,
}

impl<I> Default for ToWrite<I> {
    fn default() -> Self {
        Self { authorized: Vec::new(), denied: Vec::new() }
    }
}

/// How often a batch that met a transient fault is tried as a whole before it is split.
const ATTEMPTS_AS_A_WHOLE: u32 = 3;
/// How often a batch may lose its connection during a transaction before a message of it is suspected.
const LOST_CONNECTIONS: u32 = 4;
const FIRST_PAUSE: Duration = Duration::from_millis(10);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

/// Writes batches of one worker.
pub(crate) struct Writer<W> {
    pub(crate) worker: Arc<W>,
    pub(crate) pool: Pool,
    /// There for a worker that encrypts.
    pub(crate) keys: Option<Arc<Keys>>,
    pub(crate) watermarks: Arc<Watermarks>,
    pub(crate) stats: Arc<Stats>,
    pub(crate) stop: CancellationToken,
}

/// What a worker has prepared for a batch, and what it found out while it wrote it.
struct Progress<W: ExternalWorker> {
    prepared: W::Prepared,
    findings: Findings<W::Finding>,
}

impl<W: ExternalWorker> Writer<W> {
    /// Writes a batch and decides what becomes of every message of it, in order. What is decided last is returned; what must go
    /// out before is sent on by itself.
    pub(crate) async fn write(
        &self,
        mut batch: Vec<Authorized<W::Item>>,
        to_settle: &mpsc::Sender<ToSettle<W::Item>>,
    ) -> Settlements<W::Item> {
        let (mut decided, mut earlier) = (Vec::with_capacity(batch.len()), Vec::new());
        let Some(prepared) = self.prepare(&batch).await else {
            decided.extend(batch.iter().map(|_| Disposition::HAND_BACK));
            return settlements(batch.drain(..), &mut decided, &mut earlier);
        };
        let mut progress = Progress { prepared, findings: Findings::new() };
        // Parts still to be written, by their lengths, the next one last, so that the order of the batch is kept. Each begins
        // where the dispositions end.
        let mut parts: Vec<usize> = vec![batch.len()];
        while let Some(length) = parts.pop() {
            let messages = &batch[decided.len()..decided.len() + length];
            match self.persist(messages, &mut progress).await {
                Ok(transacted) => {
                    decided.extend(transacted.dispositions);
                    earlier.extend(transacted.earlier);
                }
                Err(RolledBack::Behind(unpublished)) => {
                    parts.push(length);
                    self.clean_up(&batch[..decided.len()], &mut decided, &progress).await;
                    let first = settlements(batch.drain(..decided.len()), &mut decided, &mut earlier);
                    let second = Settlements { settlements: Vec::new(), earlier: unpublished };
                    for settlements in [first, second] {
                        // Where nobody settles any more, nobody pulls either, and all of it is delivered again.
                        drop(to_settle.send(ToSettle::Batch(settlements)).await);
                    }
                }
                Err(RolledBack::Fault(_)) if length > 1 && !self.stop.is_cancelled() => {
                    parts.extend([length - length / 2, length / 2]);
                }
                // Whose fault it is, is not known of several; another replica finds out.
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

    /// Has the worker prepare the batch. None if it is stopped while another server is unreachable.
    async fn prepare(&self, batch: &[Authorized<W::Item>]) -> Option<W::Prepared> {
        let mut prepared = W::Prepared::default();
        // From where to where, the next part last.
        let mut parts = vec![(0, batch.len())];
        let mut tries = 0;
        while let Some((start, end)) = parts.pop() {
            let messages: Vec<&Message<W::Item>> =
                batch[start..end].iter().map(Authorized::message).collect();
            let grants: BTreeSet<&str> = batch[start..end].iter().filter_map(Authorized::grant).collect();
            let grants = Vec::from_iter(grants);
            let part = tokio::select! {
                // What is prepared in vain is prepared again.
                () = self.stop.cancelled() => return None,
                part = self.worker.prepare(&messages, &grants) => part,
            };
            let fault = match part {
                Ok(part) => {
                    prepared = self.worker.join(prepared, part);
                    continue;
                }
                Err(fault) => fault,
            };
            match fault.kind {
                FaultKind::Unavailable | FaultKind::ConnectionLost => {
                    tries += 1;
                    tracing::warn!(worker = W::INFO.name, %fault, messages = end - start, "dependency unavailable, batch on hold");
                    tokio::select! {
                        () = self.stop.cancelled() => return None,
                        () = tokio::time::sleep(retry::delay(tries, FIRST_PAUSE, LONGEST_PAUSE)) => {}
                    }
                    parts.push((start, end));
                }
                FaultKind::Transient
                | FaultKind::MissingPrerequisite
                | FaultKind::Permanent
                | FaultKind::Denied => {
                    let middle = start + (end - start) / 2;
                    if end - start > 1 {
                        parts.extend([(middle, end), (start, middle)]);
                    } else {
                        // The transaction fails on the same, and reports it better.
                        tracing::debug!(worker = W::INFO.name, %fault, "a message is not prepared");
                    }
                }
            }
        }
        Some(prepared)
    }

    /// Has the worker clean up after messages that end. While another server is unreachable, it waits; if it is stopped then, they
    /// are delivered again.
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
            if !matches!(fault.kind, FaultKind::Unavailable | FaultKind::ConnectionLost) {
                return;
            }
            tries += 1;
            tokio::select! {
                () = self.stop.cancelled() => {
                    decided.fill_with(|| Disposition::HAND_BACK);
                    return;
                }
                () = tokio::time::sleep(retry::delay(tries, FIRST_PAUSE, LONGEST_PAUSE)) => {}
            }
        }
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
                user_id: Some(one.subject.user_id),
                service: &one.subject.service,
                request_id: one.request_id,
            })
            .collect();
        let mut tries = 0;
        loop {
            let recorded =
                async { registry::record_refused(&mut *store::acquire(&self.pool).await?, &refused).await };
            let Err(fault) = recorded.await else { return true };
            tries += 1;
            tracing::warn!(worker = W::INFO.name, %fault, refusals = refused.len(), "refusals cannot be recorded; waiting");
            tokio::select! {
                () = self.stop.cancelled() => return false,
                () = tokio::time::sleep(retry::delay(tries, FIRST_PAUSE, LONGEST_PAUSE)) => {}
            }
        }
    }

    /// Tries one part until it is written or fails for a reason that lies in it. While the database is unreachable, it waits.
    async fn persist(
        &self,
        messages: &[Authorized<W::Item>],
        progress: &mut Progress<W>,
    ) -> Result<Transacted, RolledBack> {
        let (mut tries, mut outages, mut severed) = (0, 0, 0);
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
                    if tries >= ATTEMPTS_AS_A_WHOLE {
                        return Err(fault.into());
                    }
                    retry::delay(tries, FIRST_PAUSE, LONGEST_PAUSE)
                }
                FaultKind::ConnectionLost if severed + 1 >= LOST_CONNECTIONS => {
                    return Err(Fault { kind: FaultKind::Transient, ..fault }.into());
                }
                FaultKind::ConnectionLost | FaultKind::Unavailable => {
                    outages += 1;
                    severed += u32::from(fault.kind == FaultKind::ConnectionLost);
                    tracing::warn!(worker = W::INFO.name, %fault, messages = messages.len(), "dependency unavailable, batch on hold");
                    retry::delay(outages, FIRST_PAUSE, LONGEST_PAUSE)
                }
            };
            tokio::select! {
                () = self.stop.cancelled(), if fault.kind != FaultKind::Transient => return Err(fault.into()),
                () = tokio::time::sleep(pause) => {}
            }
        }
    }

    /// What becomes of a message that failed by itself. A refusal is recorded first, on a connection of its own: the transaction
    /// that was refused is rolled back.
    async fn failed(&self, message: &Message<W::Item>, fault: &Fault) -> Disposition {
        if fault.kind == FaultKind::Denied
            && let Err(problem) = self.record_violation(message, fault).await
        {
            // It will be refused again, and must not be without a trace.
            tracing::warn!(worker = W::INFO.name, %problem, "a violation cannot be recorded; its message is retried later");
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
        security::record_violation(&mut connection, &violation).await
    }

    /// The data keys that a batch needs, asked for before its transaction opens: the key store may be far away, and nobody shall
    /// wait for rows that are locked meanwhile.
    async fn keys_for(&self, messages: &[Authorized<W::Item>]) -> Result<DataKeys, Fault> {
        let Some(keys) = &self.keys else { return Ok(DataKeys::new()) };
        let users: BTreeSet<UserId> = messages
            .iter()
            .map(Authorized::message)
            .filter(|message| !message.secrets.is_empty())
            .map(Message::user_id)
            .collect();
        // Whatever it is, it is no message's fault.
        let unavailable = |error: KeyError| Fault { kind: FaultKind::Unavailable, reason: error.to_string() };
        if users.is_empty() { Ok(DataKeys::new()) } else { keys.current(&users).await.map_err(unavailable) }
    }

    /// One transaction.
    async fn attempt(
        &self,
        messages: &[Authorized<W::Item>],
        progress: &mut Progress<W>,
    ) -> Result<Transacted, RolledBack> {
        let keys = self.keys_for(messages).await?;
        let mut connection = store::acquire(&self.pool).await.map_err(Fault::from)?;
        let minted = job_grants_of(&mut connection, messages).await?;
        let mut grants: BTreeSet<&str> = messages.iter().filter_map(Authorized::grant).collect();
        grants.extend(minted.iter().map(|minted| minted.grant.as_str()));
        let grants = Vec::from_iter(grants);
        let Progress { prepared, findings } = progress;
        let attempt = Attempt {
            worker: &*self.worker,
            batch: messages,
            keys: &keys,
            prepared,
            grants: &grants,
            watermarks: &self.watermarks,
        };
        let transacted: Result<Transacted, RolledBack> =
            connection.transaction(async |connection| attempt.transact(connection, findings).await).await;
        let transacted = match transacted {
            Ok(transacted) => transacted,
            Err(RolledBack::Behind(unpublished)) => {
                // They are on their way before anything that is appended later.
                self.watermarks.enqueued(unpublished.iter());
                return Err(RolledBack::Behind(unpublished));
            }
            Err(RolledBack::Fault(fault)) => {
                // The next one may reach another server, or know a schema that has changed since.
                if matches!(fault.kind, FaultKind::Unavailable | FaultKind::ConnectionLost) {
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

/// The most users that one tick acts for. A sweep of more goes on with the next tick.
const USERS_OF_A_TICK: i32 = 1_000;

/// The job grants of the ticks of a batch, for the users whose work is due. They are minted and committed before the transaction
/// that uses them, so that nobody acts under grants whose audit rows are rolled back.
async fn job_grants_of<I>(
    connection: &mut Connection,
    messages: &[Authorized<I>],
) -> Result<Vec<JobGrant>, Fault> {
    let mut grants = Vec::new();
    for message in messages.iter().map(Authorized::message) {
        if let Source::Tick(tick) = &message.source {
            let job = tick.job.as_str();
            grants.extend(job_grants::mint(connection, job, message.request_id, USERS_OF_A_TICK).await?);
        }
    }
    Ok(grants)
}

/// What was decided of these messages, which are as many as the dispositions.
fn settlements<I>(
    messages: impl Iterator<Item = Authorized<I>>,
    decided: &mut Vec<Disposition>,
    earlier: &mut Vec<Event>,
) -> Settlements<I> {
    let decided = messages.zip(decided.drain(..));
    let settlements = decided.map(|(message, disposition)| Settlement { message, disposition }).collect();
    Settlements { settlements, earlier: std::mem::take(earlier) }
}
