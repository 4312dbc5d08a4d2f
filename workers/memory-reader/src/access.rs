//! Notes what was read, before the answer leaves.
//!
//! Queries of one service that are answered at the same time share a transaction, so that a busy replica pays for few commits.

use std::borrow::Cow;
use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use contract::{Service, UserId};
use diesel_async::AsyncConnection;
use store::{Connection, Fault, FaultKind, Pool, security};
use tokio::sync::{mpsc, oneshot};
use uuid::Uuid;

/// What was read of one table or collection for a query.
#[derive(Clone, Debug)]
pub(crate) struct Access {
    /// Leave to act for the user.
    pub(crate) grant: Arc<str>,
    pub(crate) user: UserId,
    /// Who asks.
    pub(crate) service: Service,
    pub(crate) query_id: Uuid,
    /// `read`, `reveal` if secrets were decrypted, or [`VECTOR_SEARCH`].
    pub(crate) kind: &'static str,
    /// The table, or the collection.
    pub(crate) object: Cow<'static, str>,
    pub(crate) rows: usize,
}

/// What a search of the vector store is called in the log.
pub(crate) const VECTOR_SEARCH: &str = "vector-search";

type Noted = oneshot::Sender<Result<(), String>>;

/// The notes of how many queries wait at most. Whoever brings more waits too.
const WAITING: usize = 1_000;
/// Those of how many one transaction takes.
const TOGETHER: usize = 500;

/// All that was read for one query, and who waits until that is noted.
type ToNote = (Vec<Access>, Noted);

/// Where accesses are noted.
#[derive(Debug)]
pub(crate) struct AccessLog {
    to_note: mpsc::Sender<ToNote>,
}

impl AccessLog {
    /// Starts noting, until this is dropped.
    pub(crate) fn start(pool: Pool) -> Self {
        let (to_note, waiting) = mpsc::channel(WAITING);
        tokio::spawn(follow(pool, waiting));
        Self { to_note }
    }

    /// Notes all accesses of a query, or none, and returns when they are committed.
    ///
    /// # Errors
    /// Why they are not noted. Then nobody may be told what was read.
    pub(crate) async fn note(&self, accesses: Vec<Access>) -> Result<(), String> {
        let (noted, answer) = oneshot::channel();
        let gone = || "the access log has ended".to_owned();
        self.to_note.send((accesses, noted)).await.map_err(|_| gone())?;
        answer.await.unwrap_or_else(|_| Err(gone()))
    }
}

async fn follow(pool: Pool, mut waiting: mpsc::Receiver<ToNote>) {
    let mut together = Vec::with_capacity(TOGETHER);
    while waiting.recv_many(&mut together, TOGETHER).await > 0 {
        // The database takes the service from the context, so that each service has a transaction of its own.
        let mut of_services: HashMap<Option<Service>, Vec<ToNote>> = HashMap::new();
        for (accesses, noted) in together.drain(..) {
            let service = accesses.first().map(|access| access.service.clone());
            of_services.entry(service).or_default().push((accesses, noted));
        }
        for of_service in of_services.into_values() {
            note_together(&pool, of_service).await;
        }
    }
}

/// Notes what was read for queries of one service.
async fn note_together(pool: &Pool, queries: Vec<ToNote>) {
    let accesses: Vec<&Access> = queries.iter().flat_map(|(accesses, _)| accesses).collect();
    match write(pool, &accesses).await {
        Ok(()) => queries.into_iter().for_each(|(_, noted)| drop(noted.send(Ok(())))),
        // One of them may be at fault, such as a grant that was revoked meanwhile. Where the database was lost instead, nobody knows
        // whether they are noted, and they would be twice.
        Err(fault)
            if queries.len() > 1
                && !matches!(fault.kind, FaultKind::Unavailable | FaultKind::ConnectionLost) =>
        {
            for (accesses, noted) in queries {
                let accesses: Vec<&Access> = accesses.iter().collect();
                drop(noted.send(write(pool, &accesses).await.map_err(|fault| fault.to_string())));
            }
        }
        Err(fault) => {
            queries.into_iter().for_each(|(_, noted)| drop(noted.send(Err(fault.to_string()))));
        }
    }
}

async fn write(pool: &Pool, accesses: &[&Access]) -> Result<(), Fault> {
    if accesses.is_empty() {
        return Ok(());
    }
    let grants: BTreeSet<&str> = accesses.iter().map(|access| &*access.grant).collect();
    let mut alike: HashMap<(&str, &str), Vec<&Access>> = HashMap::new();
    for access in accesses {
        alike.entry((access.kind, &access.object)).or_default().push(access);
    }
    let mut connection = store::acquire(pool).await?;
    let written: Result<(), Fault> = connection
        .transaction(async |connection| {
            security::open_context(connection, &Vec::from_iter(grants)).await?;
            for ((kind, object), accesses) in alike {
                log(connection, kind, object, &accesses).await?;
            }
            Ok(())
        })
        .await;
    if written.is_err() {
        store::discard(connection);
    }
    written
}

async fn log(
    connection: &mut Connection,
    kind: &str,
    object: &str,
    accesses: &[&Access],
) -> Result<(), Fault> {
    let accesses: Vec<security::Access> = accesses
        .iter()
        .map(|access| security::Access {
            user_id: access.user.get(),
            request_id: access.query_id,
            amount: i64::try_from(access.rows).unwrap_or(i64::MAX),
        })
        .collect();
    if kind == VECTOR_SEARCH {
        return store::vector::log_operations(connection, "search", object, &accesses).await;
    }
    security::log_data_access(connection, kind, object, &accesses).await
}
