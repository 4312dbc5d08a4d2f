//! Records denied queries, before their senders are answered.
//!
//! Concurrent refusals share a statement and a connection, so that a flood of them leaves the others to whoever is allowed.

use contract::{Service, UserId};
use store::registry::{self, RefusedToken};
use store::{Fault, Pool};
use tokio::sync::{mpsc, oneshot};
use trust::Refusal;
use uuid::Uuid;

/// A denied query.
#[derive(Clone, Debug)]
pub(crate) struct DeniedQuery {
    pub(crate) refusal: Refusal,
    /// The user of the token, if it is authentic.
    pub(crate) user: Option<UserId>,
    /// The service that sent the query.
    pub(crate) service: Service,
    pub(crate) query_id: Uuid,
}

/// The maximum number of refusals that wait in the queue. Further queries wait to enqueue theirs.
const QUEUE_CAPACITY: usize = 1_000;
/// The maximum number of refusals that share a statement.
const MAX_BATCH: usize = 100;

type Pending = (DeniedQuery, oneshot::Sender<Result<(), String>>);

/// The queue of refusals.
#[derive(Debug)]
pub(crate) struct RefusalLog {
    queue: mpsc::Sender<Pending>,
}

impl RefusalLog {
    /// Starts the task that writes, which ends when this is dropped.
    pub(crate) fn start(pool: Pool) -> Self {
        let (queue, pending) = mpsc::channel(QUEUE_CAPACITY);
        tokio::spawn(write_batches(pool, pending));
        Self { queue }
    }

    /// Records a refusal, and returns when it is committed.
    ///
    /// # Errors
    /// Why it is not recorded.
    pub(crate) async fn record(&self, denied: DeniedQuery) -> Result<(), String> {
        let (sender, result) = oneshot::channel();
        let ended = || "the log of refusals has ended".to_owned();
        self.queue.send((denied, sender)).await.map_err(|_| ended())?;
        result.await.unwrap_or_else(|_| Err(ended()))
    }
}

async fn write_batches(pool: Pool, mut queue: mpsc::Receiver<Pending>) {
    let mut batch = Vec::with_capacity(MAX_BATCH);
    while queue.recv_many(&mut batch, MAX_BATCH).await > 0 {
        let (denied, senders): (Vec<DeniedQuery>, Vec<_>) = batch.drain(..).unzip();
        let written = write(&pool, &denied).await.map_err(|fault| fault.to_string());
        for sender in senders {
            // A query that ran out of time waits no more.
            drop(sender.send(written.clone()));
        }
    }
}

async fn write(pool: &Pool, denied: &[DeniedQuery]) -> Result<(), Fault> {
    let reasons: Vec<String> = denied.iter().map(|one| one.refusal.to_string()).collect();
    let refused: Vec<RefusedToken<'_>> = denied
        .iter()
        .zip(&reasons)
        .map(|(one, reason)| RefusedToken {
            kind: one.refusal.as_str(),
            reason,
            user_id: one.user,
            service: &one.service,
            request_id: one.query_id,
        })
        .collect();
    let mut connection = store::acquire(pool).await?;
    let recorded = registry::record_refused(&mut connection, &refused).await;
    store::discard_if_unusable(connection, &recorded);
    recorded
}
