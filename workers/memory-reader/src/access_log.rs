//! Writes the access log: what was read for each query, before its answer is sent.
//!
//! Concurrent queries of one service share a transaction, so that a busy replica needs few commits.

use std::borrow::Cow;
use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use contract::{Service, UserId};
use diesel_async::AsyncConnection;
use store::{Connection, Fault, Pool, security};
use tokio::sync::{mpsc, oneshot};
use uuid::Uuid;

/// How data was accessed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum AccessKind {
    /// Rows of a table were read.
    Read,
    /// Rows of a table were read, and their encrypted values decrypted.
    Reveal,
    /// A collection of the vector store was searched.
    VectorSearch,
}

/// A row of the access log: one table or collection that was read for one query.
#[derive(Clone, Debug)]
pub(crate) struct LogEntry {
    /// The grant to act for the user.
    pub(crate) grant: Arc<str>,
    pub(crate) user: UserId,
    /// The service that sent the query.
    pub(crate) service: Service,
    pub(crate) query_id: Uuid,
    pub(crate) kind: AccessKind,
    /// The table or collection.
    pub(crate) object: Cow<'static, str>,
    pub(crate) rows: usize,
}

/// The maximum number of queries whose entries wait in the queue. Further queries wait to enqueue theirs.
const QUEUE_CAPACITY: usize = 1_000;
/// The maximum number of queries whose entries share a transaction.
const MAX_BATCH: usize = 500;

/// All entries of one query, and the sender of the result.
type Pending = (Vec<LogEntry>, oneshot::Sender<Result<(), String>>);

/// The queue of the access log.
#[derive(Debug)]
pub(crate) struct AccessLog {
    queue: mpsc::Sender<Pending>,
}

impl AccessLog {
    /// Starts the task that writes, which ends when this is dropped.
    pub(crate) fn start(pool: Pool) -> Self {
        let (queue, pending) = mpsc::channel(QUEUE_CAPACITY);
        tokio::spawn(write_batches(pool, pending));
        Self { queue }
    }

    /// Writes all entries of a query or none, and returns when they are committed.
    ///
    /// # Errors
    /// Why they are not written. Then the answer must not be sent.
    pub(crate) async fn log(&self, entries: Vec<LogEntry>) -> Result<(), String> {
        let (sender, result) = oneshot::channel();
        let ended = || "the access log has ended".to_owned();
        self.queue.send((entries, sender)).await.map_err(|_| ended())?;
        result.await.unwrap_or_else(|_| Err(ended()))
    }
}

async fn write_batches(pool: Pool, mut queue: mpsc::Receiver<Pending>) {
    let mut batch = Vec::with_capacity(MAX_BATCH);
    while queue.recv_many(&mut batch, MAX_BATCH).await > 0 {
        // The database takes the service from the security context, so each service needs a transaction of its own.
        let mut by_service: HashMap<Option<Service>, Vec<Pending>> = HashMap::new();
        for (entries, sender) in batch.drain(..) {
            let service = entries.first().map(|entry| entry.service.clone());
            by_service.entry(service).or_default().push((entries, sender));
        }
        for queries in by_service.into_values() {
            write_together(&pool, queries).await;
        }
    }
}

/// Writes the entries of queries of one service.
async fn write_together(pool: &Pool, queries: Vec<Pending>) {
    let entries: Vec<&LogEntry> = queries.iter().flat_map(|(entries, _)| entries).collect();
    match write(pool, &entries).await {
        Ok(()) => queries.into_iter().for_each(|(_, sender)| drop(sender.send(Ok(())))),
        // One query may be at fault, for example by a grant that has been revoked since. If the connection was lost
        // instead, the entries may have been committed, and writing again would duplicate them.
        Err(fault) if queries.len() > 1 && !fault.kind.is_outage() => {
            for (entries, sender) in queries {
                let entries: Vec<&LogEntry> = entries.iter().collect();
                drop(sender.send(write(pool, &entries).await.map_err(|fault| fault.to_string())));
            }
        }
        Err(fault) => {
            queries.into_iter().for_each(|(_, sender)| drop(sender.send(Err(fault.to_string()))));
        }
    }
}

async fn write(pool: &Pool, entries: &[&LogEntry]) -> Result<(), Fault> {
    if entries.is_empty() {
        return Ok(());
    }
    let grants: BTreeSet<&str> = entries.iter().map(|entry| &*entry.grant).collect();
    let mut by_object: HashMap<(AccessKind, &str), Vec<security::Access>> = HashMap::new();
    for entry in entries {
        by_object.entry((entry.kind, &entry.object)).or_default().push(security::Access {
            user_id: entry.user.get(),
            request_id: entry.query_id,
            amount: i64::try_from(entry.rows).unwrap_or(i64::MAX),
        });
    }
    let mut connection = store::acquire(pool).await?;
    let written: Result<(), Fault> = connection
        .transaction(async |connection| {
            security::open_context(connection, &Vec::from_iter(grants)).await?;
            for ((kind, object), accesses) in by_object {
                insert(connection, kind, object, &accesses).await?;
            }
            Ok(())
        })
        .await;
    if written.is_err() {
        store::discard(connection);
    }
    written
}

async fn insert(
    connection: &mut Connection,
    kind: AccessKind,
    object: &str,
    accesses: &[security::Access],
) -> Result<(), Fault> {
    match kind {
        AccessKind::Read => security::log_data_access(connection, "read", object, accesses).await,
        AccessKind::Reveal => security::log_data_access(connection, "reveal", object, accesses).await,
        AccessKind::VectorSearch => {
            store::vector::log_operations(connection, "search", object, accesses).await
        }
    }
}
