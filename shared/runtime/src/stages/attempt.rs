//! One transaction of a batch: what it needs before it opens, and what it waits for while it is open.

use std::borrow::Cow;
use std::collections::BTreeSet;
use std::pin::pin;
use std::sync::atomic::{AtomicI32, Ordering};
use std::time::Duration;

use chrono::Utc;
use contract::{DeadLetterClass, Event};
use diesel_async::AsyncConnection;
use keys::{DataKeys, Grants, KeyError};
use store::{Fault, FaultKind, LockWait};
use tokio::time::Instant;

use crate::delivery::event_order;
use crate::process::crash::{self, Point};
use crate::stages::authorize::Authorized;
use crate::stages::disposition::Disposition;
use crate::stages::parts::Part;
use crate::stages::tick_grants::TickGrants;
use crate::stages::transact::{Attempt, RolledBack, Transacted};
use crate::stages::write::{Progress, Writer};
use crate::worker::{ExternalWorker, Source};

/// The share of `lock_timeout` for which a suspect part waits for a lock: its users are known to be blocked, or a batch
/// with them has waited before.
const SUSPECT_SHARE: u32 = 10;
/// While a transaction takes long, this often within `lock_timeout` another connection looks which lock it waits for.
const LOOKS_PER_LOCK_TIMEOUT: u32 = 3;

impl<W: ExternalWorker> Writer<W> {
    /// Fetches the data keys of a batch before its transaction opens: the key store may be slow, and no rows should
    /// stay locked while waiting for it. The key store verifies the grants of the users by itself. Ticks have no secrets.
    async fn keys_for(&self, messages: &[Authorized<W::Item>]) -> Result<DataKeys, Fault> {
        let Some(keys) = &self.keys else { return Ok(DataKeys::new()) };
        let grants: Grants<'_> = messages
            .iter()
            .filter(|message| !message.message().secrets.is_empty())
            .filter_map(|message| Some((message.message().user_id(), message.grant()?)))
            .collect();
        if grants.is_empty() {
            return Ok(DataKeys::new());
        }
        match keys.current(&grants).await {
            Ok(keys) => Ok(keys),
            Err(KeyError::Denied(reason)) => Err(Fault { kind: FaultKind::Denied, reason }),
            // A user's key that cannot be added concerns the messages of this user. A message can cause no other error, so
            // all others count as unavailability. But only for grants that the database accepts: no batch may wait for the
            // key store to learn a key that nobody knows.
            Err(error) => {
                self.check_grants(&grants.into_values().collect::<Vec<_>>()).await?;
                let is_blocked = matches!(error, KeyError::Blocked(_));
                let kind = if is_blocked { FaultKind::Blocked } else { FaultKind::Unavailable };
                Err(Fault { kind, reason: error.to_string() })
            }
        }
    }

    /// Checks that the database accepts these grants.
    async fn check_grants(&self, grants: &[&str]) -> Result<(), Fault> {
        let mut connection = store::acquire(&self.pool).await?;
        let opened: Result<i32, Fault> = connection
            .transaction(async |connection| store::security::open_context(connection, grants).await)
            .await;
        store::discard_if_unusable(connection, &opened);
        opened.map(drop)
    }

    /// Runs one transaction.
    pub(crate) async fn attempt(
        &self,
        messages: &[Authorized<W::Item>],
        part: Part,
        progress: &mut Progress<W>,
    ) -> Result<Transacted, RolledBack> {
        let keys = self.keys_for(messages).await;
        progress.is_blocked_in_key_store = keys.as_ref().is_err_and(|fault| fault.kind == FaultKind::Blocked);
        let keys = keys?;
        let Progress { grants: tick_grants, prepared, findings, lock_wait, .. } = progress;
        for message in messages.iter().map(Authorized::message) {
            if let (Source::Tick(tick), Some(grants)) = (&message.source, &mut *tick_grants) {
                grants.renew(&self.pool, tick.job.as_str(), message.request_id).await?;
            }
        }
        let tick_grants = tick_grants.as_ref();
        let (grants, due) = match tick_grants {
            Some(grants) => (grants.all(), Some(grants.due())),
            None => (grants_of(messages), None),
        };
        let inbox = match due {
            Some(_) => Cow::Owned(W::INFO.jobs_consumer()),
            None => Cow::Borrowed(W::INFO.name),
        };
        let lock_timeout = part.is_suspect.then(|| self.lock_timeout / SUSPECT_SHARE);
        let mut connection = store::acquire(&self.pool).await.map_err(Fault::from)?;
        let backend = AtomicI32::new(0);
        let attempt = Attempt {
            worker: &*self.worker,
            batch: messages,
            keys: &keys,
            prepared,
            grants: &grants,
            due: due.as_deref().zip(tick_grants.map(TickGrants::run)),
            inbox: &inbox,
            watermarks: &self.watermarks,
            lock_timeout,
            backend: &backend,
        };
        let transaction =
            connection.transaction(async |connection| attempt.transact(connection, findings).await);
        let every = lock_timeout.unwrap_or(self.lock_timeout) / LOOKS_PER_LOCK_TIMEOUT;
        let (transacted, wait): (Result<Transacted, RolledBack>, _) =
            self.watch(transaction, &backend, every).await;
        let mut transacted = match transacted {
            Ok(transacted) => transacted,
            Err(RolledBack::Backlog(unpublished)) => {
                // They are published before any event that is appended later.
                self.watermarks.enqueued(unpublished.iter().map(|earlier| &earlier.stored.event));
                return Err(RolledBack::Backlog(unpublished));
            }
            Err(RolledBack::Fault(fault)) => {
                let fault = store::language::in_english(&mut connection, fault).await;
                let fault = self.locked_table(fault, wait.as_ref());
                *lock_wait = wait;
                // A new connection may reach another server or see a schema that has changed.
                if fault.kind.is_outage() {
                    store::discard(connection);
                }
                return Err(fault.into());
            }
        };
        crash::reach(Point::Committed);
        self.blocked.table(W::INFO.name, None);
        self.spare(messages, &mut transacted.dispositions);
        let commits = || transacted.dispositions.iter().map(Disposition::commit);
        let committed = commits().zip(messages);
        let committed =
            committed.filter_map(|(commit, message)| Some((commit?.effect, message.message().stored_at)));
        self.stats.committed(Utc::now(), committed);
        let blocked = event_order::blocked(&transacted.earlier);
        let own = commits().flatten().flat_map(|commit| &commit.events);
        let events =
            transacted.earlier.iter().map(|earlier| &earlier.stored).chain(own).map(|stored| &stored.event);
        // Whether events after one of another worker are published now is not certain.
        let is_certain = |event: &&Event| !blocked.contains_key(&(event.user_id, event.session_id.as_str()));
        self.watermarks.enqueued(events.filter(is_certain));
        Ok(transacted)
    }

    /// Waits for a transaction. While it takes long, looks which lock it waits for: afterwards, nobody waits any more.
    /// Returns the last wait that was seen.
    async fn watch<T>(
        &self,
        transaction: impl Future<Output = T>,
        backend: &AtomicI32,
        every: Duration,
    ) -> (T, Option<LockWait>) {
        let (mut transaction, mut seen) = (pin!(transaction), None);
        loop {
            let acquire = async {
                tokio::time::sleep(every).await;
                store::acquire(&self.pool).await
            };
            let mut other = tokio::select! {
                done = &mut transaction => return (done, seen),
                Ok(other) = acquire => other,
            };
            let (done, looked) = {
                let mut look = pin!(store::lock::wait_of(&mut other, backend.load(Ordering::Relaxed)));
                tokio::select! {
                    // The look is finished even then, because a connection in the middle of a statement is of no use.
                    done = &mut transaction => (Some(done), look.await),
                    looked = &mut look => (None, looked),
                }
            };
            store::discard_if_unusable(other, &looked);
            seen = looked.ok().flatten().or(seen);
            if let Some(done) = done {
                return (done, seen);
            }
        }
    }

    /// A locked table is a fault of the database and not of one user: the batch waits until the table is free.
    fn locked_table(&self, fault: Fault, wait: Option<&LockWait>) -> Fault {
        let locked = wait.filter(|_| fault.kind == FaultKind::Blocked);
        let Some((table, wait)) = locked.and_then(|wait| Some((wait.table.as_deref()?, wait))) else {
            return fault;
        };
        self.blocked.table(W::INFO.name, Some((table, wait.to_string())));
        let reason = format!("the table {table} is locked by {wait}");
        Fault { kind: FaultKind::Unavailable, reason }
    }

    /// Parks the messages whose prerequisite may be a message of the same user that waits for a lock.
    fn spare(&self, messages: &[Authorized<W::Item>], dispositions: &mut [Disposition]) {
        for (message, disposition) in messages.iter().zip(dispositions) {
            let is_unmet =
                matches!(disposition, Disposition::Retry { class: DeadLetterClass::MissingPrerequisite, .. });
            if is_unmet && self.blocked.spares(message.message().user_id(), Instant::now()) {
                *disposition = Disposition::Park(Duration::ZERO);
            }
        }
    }
}

/// The distinct grants in the tokens of these messages.
pub(crate) fn grants_of<I>(messages: &[Authorized<I>]) -> Vec<&str> {
    let grants: BTreeSet<&str> = messages.iter().filter_map(Authorized::grant).collect();
    Vec::from_iter(grants)
}
