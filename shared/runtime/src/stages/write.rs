//! Stage four: writes a batch in one transaction. If that fails, the batch is split, with a transaction for each part.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use contract::DeadLetterClass;
use keys::Keys;
use store::clock::Earlier;
use store::registry::{self, RefusedToken};
use store::security::{self, Violation};
use store::{Fault, FaultKind, LockWait, Pool};
use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::delivery::retry;
use crate::delivery::watermarks::Watermarks;
use crate::process::blocked::BlockedUsers;
use crate::process::stats::Stats;
use crate::stages::authorize::{Authorized, Denied};
use crate::stages::disposition::Disposition;
use crate::stages::parts::{self, Part, Search};
use crate::stages::pull::Delivery;
use crate::stages::refused;
use crate::stages::tick_grants::TickGrants;
use crate::stages::transact::{Findings, RolledBack, Transacted};
use crate::worker::{ExternalWorker, Message};

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
    pub(crate) earlier: Vec<Earlier>,
}

/// Input of `settle`: written batches, and messages that were dead-lettered or deferred before the write.
pub(crate) enum ToSettle<I> {
    Batch(Settlements<I>),
    Single(Box<Delivery>, Disposition),
}

/// Input of this stage: messages to write, and denied messages to record.
pub(crate) struct ToWrite<W: ExternalWorker> {
    pub(crate) authorized: Vec<Authorized<W::Item>>,
    pub(crate) denied: Vec<Denied>,
}

impl<W: ExternalWorker> ToWrite<W> {
    pub(crate) fn is_empty(&self) -> bool {
        self.authorized.is_empty() && self.denied.is_empty()
    }
}

impl<W: ExternalWorker> Default for ToWrite<W> {
    fn default() -> Self {
        Self { authorized: Vec::new(), denied: Vec::new() }
    }
}

/// How often a batch with transient faults is tried as a whole before it is split.
const WHOLE_BATCH_ATTEMPTS: u32 = 3;
/// After losing its connection this often during a transaction, a batch is split to find a message that causes it.
pub(crate) const MAX_LOST_CONNECTIONS: u32 = 4;
/// A transaction that loses its connection after so long has probably been ended for being idle, and so would be the next one: it is
/// split at once, if that is possible.
const LONG_ATTEMPT: Duration = Duration::from_secs(10);
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
    pub(crate) blocked: BlockedUsers,
    /// The `lock_timeout` of the pool.
    pub(crate) lock_timeout: Duration,
    pub(crate) stop: CancellationToken,
}

/// Who may keep a data key of a user from being added, as operators read it.
const IN_KEY_STORE: &str =
    "a transaction in the key store that adds a data key of the user, or the erasure of the user";

/// What a worker has prepared for a batch, and its findings from writing it.
pub(crate) struct Progress<W: ExternalWorker> {
    /// The job grants, if the batch is a tick.
    pub(crate) grants: Option<TickGrants>,
    pub(crate) prepared: W::Prepared,
    pub(crate) findings: Findings<W::Finding>,
    /// The lock that the last attempt was seen waiting for.
    pub(crate) lock_wait: Option<LockWait>,
    /// Whether the last attempt could not add a data key because of a lock in the key store.
    pub(crate) is_blocked_in_key_store: bool,
    pub(crate) search: Search,
}

impl<W> Clone for Writer<W> {
    fn clone(&self) -> Self {
        Self {
            worker: Arc::clone(&self.worker),
            pool: self.pool.clone(),
            keys: self.keys.clone(),
            watermarks: Arc::clone(&self.watermarks),
            stats: Arc::clone(&self.stats),
            blocked: self.blocked.clone(),
            lock_timeout: self.lock_timeout,
            stop: self.stop.clone(),
        }
    }
}

impl<W: ExternalWorker> Writer<W> {
    /// Records the denied messages, writes the others, and passes everything to the settle stage. False if that has
    /// ended.
    pub(crate) async fn write_and_settle(
        &self,
        batch: ToWrite<W>,
        to_settle: &mpsc::Sender<ToSettle<W::Item>>,
    ) -> bool {
        let ToWrite { mut authorized, denied } = batch;
        let recorded = denied.is_empty() || self.record_denied(&denied).await;
        for Denied { delivery, refusal, .. } in denied {
            let disposition = if recorded {
                Disposition::DeadLetter { class: DeadLetterClass::Denied, reason: refusal.to_string().into() }
            } else {
                Disposition::HAND_BACK
            };
            if to_settle.send(ToSettle::Single(Box::new(delivery), disposition)).await.is_err() {
                return false;
            }
        }
        let sizes = authorized.iter().map(|message| message.message().body.len());
        for length in portions(sizes, W::MAX_PREPARED_BYTES) {
            let portion: Vec<_> = authorized.drain(..length).collect();
            let (messages, since) = (portion.len(), Instant::now());
            let settlements = self.write(portion, to_settle).await;
            tracing::debug!(worker = W::INFO.name, messages, elapsed = ?since.elapsed(), "written");
            if to_settle.send(ToSettle::Batch(settlements)).await.is_err() {
                return false;
            }
        }
        true
    }

    /// Writes a batch and decides the disposition of every message, in order. Settlements that must be published before
    /// the rest can be written are sent to `to_settle`; the remaining ones are returned.
    pub(crate) async fn write(
        &self,
        mut batch: Vec<Authorized<W::Item>>,
        to_settle: &mpsc::Sender<ToSettle<W::Item>>,
    ) -> Settlements<W::Item> {
        let (mut decided, mut parts) = parts::set_aside(&mut batch, &self.blocked);
        let mut earlier = Vec::new();
        let mut progress = match self.begin(&batch[decided.len()..], &parts).await {
            Ok(progress) => progress,
            Err(disposition) => {
                decided.resize(batch.len(), disposition);
                self.note_failed_run(&batch, &decided, None).await;
                return settlements(batch.drain(..), &mut decided, &mut earlier);
            }
        };
        // The next part starts at the index `decided.len()`.
        while let Some(part) = parts.pop() {
            let range = decided.len()..decided.len() + part.length;
            if part.is_suspect && progress.search.is_over() {
                decided.resize(range.end, Disposition::Park(Duration::ZERO));
                continue;
            }
            let since = Instant::now();
            match self.persist(&batch[range.clone()], part, &mut progress).await {
                Ok(transacted) => {
                    if part.is_suspect {
                        self.note_written(&batch[range]);
                    }
                    decided.extend(transacted.dispositions);
                    earlier.extend(transacted.earlier);
                }
                Err(RolledBack::Backlog(unpublished)) => {
                    parts.push(part);
                    self.clean_up(&batch[..decided.len()], &mut decided, &progress).await;
                    let first = settlements(batch.drain(..decided.len()), &mut decided, &mut earlier);
                    let second = Settlements { settlements: Vec::new(), earlier: unpublished };
                    for settlements in [first, second] {
                        // If the settle stage is gone, pulling stops as well and all messages are redelivered.
                        drop(to_settle.send(ToSettle::Batch(settlements)).await);
                    }
                }
                Err(RolledBack::Fault(fault)) => {
                    let messages = &mut batch[range];
                    let is_tick = progress.grants.is_some();
                    let given = if fault.kind == FaultKind::Blocked && !is_tick {
                        self.split_blocked(messages, part, &mut progress, since.elapsed())
                    } else if fault.kind.refuses_user() && !is_tick {
                        self.split_refused(messages, &fault)
                    } else {
                        self.split_failed(messages, part, &mut progress, &fault).await
                    };
                    match given {
                        Given::Parts(smaller) => parts.extend(smaller),
                        Given::Dispositions(given) => decided.extend(given),
                    }
                }
            }
        }
        self.clean_up(&batch, &mut decided, &progress).await;
        self.note_failed_run(&batch, &decided, progress.grants.as_ref()).await;
        settlements(batch.drain(..), &mut decided, &mut earlier)
    }

    /// Splits a part after a fault that lies in it, or decides its dispositions if it cannot be split.
    async fn split_failed(
        &self,
        messages: &[Authorized<W::Item>],
        part: Part,
        progress: &mut Progress<W>,
        fault: &Fault,
    ) -> Given {
        let length = messages.len();
        if length > 1 && !self.stop.is_cancelled() {
            return Given::Parts(vec![
                Part { length: length - length / 2, ..part },
                Part { length: length / 2, ..part },
            ]);
        }
        // A tick is a single message, but it can be tried with fewer users.
        if progress.grants.as_mut().is_some_and(|grants| grants.narrow(fault)) {
            tracing::warn!(worker = W::INFO.name, %fault, "a tick failed, retrying with fewer users");
            if !self.stop.is_cancelled() {
                return Given::Parts(vec![part]);
            }
            return Given::Dispositions(vec![Disposition::HAND_BACK; length]);
        }
        // Stopping: no time to find the failing message, so another replica takes them all.
        if length > 1 {
            return Given::Dispositions(vec![Disposition::HAND_BACK; length]);
        }
        let mut given = Vec::with_capacity(length);
        for message in messages {
            given.push(self.failed(message.message(), fault).await);
        }
        Given::Dispositions(given)
    }

    /// Splits a part whose transaction waited too long for a lock by users, or parks it if it is of one user.
    fn split_blocked(
        &self,
        messages: &mut [Authorized<W::Item>],
        part: Part,
        progress: &mut Progress<W>,
        took: Duration,
    ) -> Given {
        if self.stop.is_cancelled() {
            return Given::Dispositions(vec![Disposition::HAND_BACK; messages.len()]);
        }
        let parts = parts::split_by_user(messages);
        let is_of_one_user = parts.len() == 1;
        if part.is_suspect {
            progress.search.failed(took, is_of_one_user);
        }
        let Some(first) = messages.first().filter(|_| is_of_one_user) else { return Given::Parts(parts) };
        let held_by = match progress.is_blocked_in_key_store {
            true => Some(IN_KEY_STORE.to_owned()),
            false => progress.lock_wait.take().map(|wait| wait.to_string()),
        };
        let user = first.message().user_id();
        let pause = self.blocked.blocked(W::INFO.name, user, took, held_by, Instant::now());
        Given::Dispositions(vec![Disposition::Park(pause); messages.len()])
    }

    /// Records that rows of these messages' users are not locked.
    fn note_written(&self, messages: &[Authorized<W::Item>]) {
        for user in messages.iter().map(|message| message.message().user_id()).collect::<BTreeSet<_>>() {
            self.blocked.written(W::INFO.name, user);
        }
    }

    /// Waits before another try, longer after each. False if the worker is stopped meanwhile.
    pub(crate) async fn pause(&self, tries: &mut u32) -> bool {
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
        part: Part,
        progress: &mut Progress<W>,
    ) -> Result<Transacted, RolledBack> {
        let (mut tries, mut outages, mut connections_lost) = (0, 0, 0);
        loop {
            let since = Instant::now();
            let fault = match self.attempt(messages, part, progress).await {
                Err(RolledBack::Fault(fault)) => fault,
                done => return done,
            };
            let pause = match fault.kind {
                FaultKind::Permanent
                | FaultKind::Denied
                | FaultKind::Erased
                | FaultKind::Fenced
                | FaultKind::Restricted { .. }
                | FaultKind::MissingPrerequisite => {
                    return Err(fault.into());
                }
                // Whether a row or a whole table is locked has to be seen once.
                FaultKind::Blocked
                    if tries == 0
                        && !part.is_suspect
                        && progress.lock_wait.is_none()
                        && !progress.is_blocked_in_key_store
                        && since.elapsed() < self.lock_timeout * 2 =>
                {
                    tries += 1;
                    Duration::ZERO
                }
                FaultKind::Blocked => return Err(fault.into()),
                FaultKind::Transient => {
                    tries += 1;
                    if tries >= WHOLE_BATCH_ATTEMPTS {
                        return Err(fault.into());
                    }
                    retry::delay(tries, FIRST_PAUSE, LONGEST_PAUSE)
                }
                FaultKind::ConnectionLost
                    if is_over(
                        connections_lost + 1,
                        since.elapsed(),
                        messages.len() > 1 || progress.grants.as_ref().is_some_and(TickGrants::can_be_split),
                    ) =>
                {
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
    pub(crate) async fn failed(&self, message: &Message<W::Item>, fault: &Fault) -> Disposition {
        if fault.kind == FaultKind::Denied
            && let Err(problem) = self.record_violation(message, fault).await
        {
            // No violation may go unrecorded. The redelivered message will be denied again.
            tracing::warn!(worker = W::INFO.name, %problem, "cannot record a violation; its message is redelivered");
            return Disposition::HAND_BACK;
        }
        refused::of_fault(message, fault)
            .unwrap_or_else(|| Disposition::of_fault(fault, message.awaits(W::INFO)))
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
}

/// Whether a part that has lost so many connections, the last one after `took`, is not tried again as a whole.
fn is_over(lost: u32, took: Duration, can_be_split: bool) -> bool {
    lost >= MAX_LOST_CONNECTIONS || (can_be_split && took >= LONG_ATTEMPT)
}

/// What becomes of a part whose transaction failed.
pub(super) enum Given {
    /// It is written in smaller parts, the next one last.
    Parts(Vec<Part>),
    /// The dispositions of its messages.
    Dispositions(Vec<Disposition>),
}

/// Pairs messages with their dispositions, of which there are as many.
fn settlements<I>(
    messages: impl Iterator<Item = Authorized<I>>,
    decided: &mut Vec<Disposition>,
    earlier: &mut Vec<Earlier>,
) -> Settlements<I> {
    let decided = messages.zip(decided.drain(..));
    let settlements = decided.map(|(message, disposition)| Settlement { message, disposition }).collect();
    Settlements { settlements, earlier: std::mem::take(earlier) }
}

/// The lengths of the parts of a batch whose bodies are prepared together: at most `max_bytes`, or one message.
pub(crate) fn portions(sizes: impl Iterator<Item = usize>, max_bytes: usize) -> Vec<usize> {
    let (mut lengths, mut bytes) = (Vec::new(), 0_usize);
    for size in sizes {
        match lengths.last_mut() {
            Some(length) if bytes.saturating_add(size) <= max_bytes => {
                *length += 1;
                bytes = bytes.saturating_add(size);
            }
            Some(_) | None => {
                lengths.push(1);
                bytes = size;
            }
        }
    }
    lengths
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_part_that_loses_its_connection_after_long_is_split_at_once() {
        let short = Duration::from_secs(1);
        assert!(!is_over(1, short, true) && !is_over(3, short, true) && is_over(4, short, false));
        assert!(is_over(1, LONG_ATTEMPT, true) && !is_over(1, LONG_ATTEMPT, false));
    }

    #[test]
    fn a_batch_is_prepared_in_portions_of_limited_size() {
        let portions = |sizes: &[usize], max| portions(sizes.iter().copied(), max);
        assert!(portions(&[], 10).is_empty());
        assert_eq!(portions(&[4, 6, 1, 9, 10, 11, 2], 10), [2, 2, 1, 1, 1]);
        assert_eq!(portions(&[usize::MAX, 1], usize::MAX - 1), [1, 1]);
        assert_eq!(portions(&[7; 100], usize::MAX), [100]);
    }
}
