//! Stage four: one transaction for a batch, and if that fails, for its parts.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use chrono::Utc;
use contract::{DeadClass, Event, UserId};
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
use crate::process::stats::{self, Stats};
use crate::stages::authorize::{Authorized, Denied};
use crate::stages::settle::ToSettle;
use crate::stages::transact::{Transacted, Undone, Written, transact};
use crate::worker::{Ended, Message, Worker};

/// What is to be done with a message now. Only this module makes one.
#[derive(Debug)]
pub struct Settlement<R> {
    pub(crate) message: Authorized<R>,
    pub(crate) decision: Decision,
}

/// What became of a batch.
#[derive(Debug)]
pub struct Settlements<R> {
    pub(crate) settlements: Vec<Settlement<R>>,
    /// Events of others that go out before those of the batch.
    pub(crate) earlier: Vec<Event>,
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
    pub(crate) authorized: Vec<Authorized<R>>,
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
    pub(crate) watermarks: Arc<Watermarks>,
    pub(crate) stats: Arc<Stats>,
    pub(crate) stop: CancellationToken,
}

impl<W: Worker> Writer<W> {
    /// Writes a batch and says for every message of it, in order, what is to be done with it: the last of it is given back, what
    /// must go out before is sent on by itself.
    pub(crate) async fn write(
        &self,
        mut batch: Vec<Authorized<W::Request>>,
        to_settle: &mpsc::Sender<ToSettle<W::Request>>,
    ) -> Settlements<W::Request> {
        let (mut decisions, mut earlier) = (Vec::with_capacity(batch.len()), Vec::new());
        let Some(prepared) = self.prepare(&batch).await else {
            decisions.extend(batch.iter().map(|_| Decision::HandBack));
            return settlements(batch.drain(..), &mut decisions, &mut earlier);
        };
        // Parts still to be written, by their lengths, the next one last, so that the order of the batch is kept. Each begins
        // where the decisions end.
        let mut parts: Vec<usize> = vec![batch.len()];
        while let Some(length) = parts.pop() {
            let messages = &batch[decisions.len()..decisions.len() + length];
            match self.persist(messages, &prepared).await {
                Ok(transacted) => {
                    decisions.extend(transacted.written.into_iter().map(Written::after_commit));
                    earlier.extend(transacted.earlier);
                }
                Err(Undone::Behind(unpublished)) => {
                    parts.push(length);
                    self.clean_up(&batch[..decisions.len()], &mut decisions, &prepared).await;
                    let decided = settlements(batch.drain(..decisions.len()), &mut decisions, &mut earlier);
                    let first = Settlements { settlements: Vec::new(), earlier: unpublished };
                    for settlements in [decided, first] {
                        // Where nobody settles any more, nobody pulls either, and all of it comes again.
                        drop(to_settle.send(ToSettle::Written(settlements)).await);
                    }
                }
                Err(Undone::Fault(_)) if length > 1 && !self.stop.is_cancelled() => {
                    parts.extend([length - length / 2, length / 2]);
                }
                // Whose fault it is, is not known of several; another worker finds out.
                Err(Undone::Fault(_)) if length > 1 => {
                    decisions.extend(messages.iter().map(|_| Decision::HandBack));
                }
                Err(Undone::Fault(fault)) => {
                    for message in messages {
                        decisions.push(self.authorize(message.message(), &fault).await);
                    }
                }
            }
        }
        self.clean_up(&batch, &mut decisions, &prepared).await;
        settlements(batch.drain(..), &mut decisions, &mut earlier)
    }

    /// Has the worker get ready what the batch needs. None if it is stopped while another server is away.
    async fn prepare(&self, batch: &[Authorized<W::Request>]) -> Option<W::Prepared> {
        let mut prepared = W::Prepared::default();
        // From where to where, the next part last.
        let mut parts = vec![(0, batch.len())];
        let mut tries = 0;
        while let Some((start, end)) = parts.pop() {
            let messages: Vec<&Message<W::Request>> =
                batch[start..end].iter().map(Authorized::message).collect();
            let grants: BTreeSet<&str> = batch[start..end].iter().map(Authorized::grant).collect();
            let grants = Vec::from_iter(grants);
            let made = tokio::select! {
                // What is got ready for nothing is got ready again.
                () = self.stop.cancelled() => return None,
                made = self.worker.prepare(&messages, &grants) => made,
            };
            let fault = match made {
                Ok(made) => {
                    prepared = self.worker.join(prepared, made);
                    continue;
                }
                Err(fault) => fault,
            };
            match fault.kind {
                FaultKind::Unavailable | FaultKind::ConnectionLost => {
                    tries += 1;
                    tracing::warn!(worker = W::NAME, %fault, messages = end - start, "what the batch needs is away; waiting");
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
                        // The transaction fails on the same, and says it better.
                        tracing::debug!(worker = W::NAME, %fault, "a message is not prepared");
                    }
                }
            }
        }
        Some(prepared)
    }

    /// Has the worker clean up after messages that end. While another server is away, it waits; if it is stopped then, they come
    /// again.
    async fn clean_up(
        &self,
        batch: &[Authorized<W::Request>],
        decisions: &mut [Decision],
        prepared: &W::Prepared,
    ) {
        let ended: Vec<Ended<'_, W::Request>> = batch
            .iter()
            .zip(decisions.iter())
            .filter_map(|(message, decision)| match decision {
                Decision::Committed(_) => Some(Ended { message: message.message(), committed: true }),
                Decision::Never { .. } => Some(Ended { message: message.message(), committed: false }),
                Decision::Later { .. } | Decision::HandBack => None,
            })
            .collect();
        let mut tries = 0;
        while let Err(fault) = self.worker.clean_up(&ended, prepared).await {
            tracing::warn!(worker = W::NAME, %fault, messages = ended.len(), "cannot clean up");
            if !matches!(fault.kind, FaultKind::Unavailable | FaultKind::ConnectionLost) {
                return;
            }
            tries += 1;
            tokio::select! {
                () = self.stop.cancelled() => {
                    decisions.fill_with(|| Decision::HandBack);
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
            tracing::warn!(worker = W::NAME, %fault, refusals = refused.len(), "refusals cannot be recorded; waiting");
            tokio::select! {
                () = self.stop.cancelled() => return false,
                () = tokio::time::sleep(retry::delay(tries, FIRST_PAUSE, LONGEST_PAUSE)) => {}
            }
        }
    }

    /// Tries one part until it is written or fails for a reason that lies in it. While the database is away, it
    /// waits.
    async fn persist(
        &self,
        messages: &[Authorized<W::Request>],
        prepared: &W::Prepared,
    ) -> Result<Transacted, Undone> {
        let (mut tries, mut outages, mut severed) = (0, 0, 0);
        loop {
            let fault = match self.attempt(messages, prepared).await {
                Err(Undone::Fault(fault)) => fault,
                done => return done,
            };
            let pause = match fault.kind {
                FaultKind::Permanent | FaultKind::Denied | FaultKind::MissingPrerequisite => {
                    return Err(fault.into());
                }
                FaultKind::Transient => {
                    tries += 1;
                    if tries >= TRIES_AS_ONE {
                        return Err(fault.into());
                    }
                    retry::delay(tries, FIRST_PAUSE, LONGEST_PAUSE)
                }
                FaultKind::ConnectionLost if severed + 1 >= SEVERED_AS_ONE => {
                    return Err(Fault { kind: FaultKind::Transient, ..fault }.into());
                }
                FaultKind::ConnectionLost | FaultKind::Unavailable => {
                    outages += 1;
                    severed += u32::from(fault.kind == FaultKind::ConnectionLost);
                    tracing::warn!(worker = W::NAME, %fault, messages = messages.len(), "the database or the key store is away; waiting");
                    retry::delay(outages, FIRST_PAUSE, LONGEST_PAUSE)
                }
            };
            tokio::select! {
                () = self.stop.cancelled(), if fault.kind != FaultKind::Transient => return Err(fault.into()),
                () = tokio::time::sleep(pause) => {}
            }
        }
    }

    /// What becomes of a message that failed by itself. A refusal is recorded first, on a connection of its own: the
    /// transaction that was refused is rolled back.
    async fn authorize(&self, message: &Message<W::Request>, fault: &Fault) -> Decision {
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
        let mut connection = store::acquire(&self.pool).await?;
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
    async fn keys_for(&self, messages: &[Authorized<W::Request>]) -> Result<DataKeys, Fault> {
        let Some(keys) = &self.keys else { return Ok(DataKeys::new()) };
        let users: BTreeSet<UserId> = messages
            .iter()
            .map(Authorized::message)
            .filter(|message| self.worker.needs_key(&message.request))
            .map(|message| message.subject.user_id)
            .collect();
        // Whatever it is, it is no message's fault.
        let away = |error: KeyError| Fault { kind: FaultKind::Unavailable, reason: error.to_string() };
        if users.is_empty() { Ok(DataKeys::new()) } else { keys.current(&users).await.map_err(away) }
    }

    /// One transaction.
    async fn attempt(
        &self,
        messages: &[Authorized<W::Request>],
        prepared: &W::Prepared,
    ) -> Result<Transacted, Undone> {
        let keys = self.keys_for(messages).await?;
        let mut connection = store::acquire(&self.pool).await.map_err(Fault::from)?;
        let (worker, watermarks) = (&*self.worker, &*self.watermarks);
        let transacted: Result<Transacted, Undone> = connection
            .transaction(async |connection| {
                transact(worker, connection, messages, &keys, prepared, watermarks).await
            })
            .await;
        let transacted = match transacted {
            Ok(transacted) => transacted,
            Err(Undone::Behind(unpublished)) => {
                // They are on their way before anything that is appended later.
                watermarks.enqueued(unpublished.iter());
                return Err(Undone::Behind(unpublished));
            }
            Err(Undone::Fault(fault)) => {
                // The next one may reach another server, or know a schema that has changed since.
                if matches!(fault.kind, FaultKind::Unavailable | FaultKind::ConnectionLost) {
                    store::discard(connection);
                }
                return Err(fault.into());
            }
        };
        crash::reach(Point::Committed);
        self.count(messages, &transacted.written);
        watermarks
            .enqueued(transacted.earlier.iter().chain(transacted.written.iter().filter_map(Written::event)));
        Ok(transacted)
    }

    fn count(&self, messages: &[Authorized<W::Request>], written: &[Written]) {
        let committed = written.iter().zip(messages).filter_map(|(written, message)| {
            let what = match written {
                Written::Effect(_) => stats::Committed::Applied,
                Written::None(_) => stats::Committed::Unchanged,
                Written::Before(_) => stats::Committed::Repeated,
                Written::MissingPrerequisite(_) | Written::Refused(_) => return None,
            };
            Some((what, message.message().stored_at))
        });
        self.stats.committed(Utc::now(), committed);
    }
}

/// What was decided of these messages, which are as many as the decisions.
fn settlements<R>(
    messages: impl Iterator<Item = Authorized<R>>,
    decisions: &mut Vec<Decision>,
    earlier: &mut Vec<Event>,
) -> Settlements<R> {
    let decided = messages.zip(decisions.drain(..));
    let settlements = decided.map(|(message, decision)| Settlement { message, decision }).collect();
    Settlements { settlements, earlier: std::mem::take(earlier) }
}

fn verdict_of(fault: &Fault) -> Decision {
    let reason = fault.reason.clone();
    match fault.kind {
        FaultKind::Unavailable | FaultKind::ConnectionLost => Decision::HandBack,
        FaultKind::Transient => Decision::Later { reason, class: DeadClass::Exhausted },
        FaultKind::MissingPrerequisite => Decision::Later { reason, class: DeadClass::MissingPrerequisite },
        FaultKind::Permanent => Decision::Never { reason, class: DeadClass::Permanent },
        FaultKind::Denied => Decision::Never { reason, class: DeadClass::Denied },
    }
}
