//! Text to searchable memory.
//!
//! Takes the stream `VECTOR`. Before a batch's transaction opens, its texts become vectors (`embedding.rs`) and are stored in Qdrant
//! (`prepare.rs`); the transaction writes `unified_memory_vectors` (`store.rs`); after the commit, and before the
//! acknowledgement, the points that a request has made obsolete are deleted (`clean_up.rs`). The row says which points count: a
//! point that no row names is found by nobody.
//!
//! So the two stores agree whoever dies when. The ids of points follow from the request, so that a repeat writes the same ones, and
//! two requests for one memory never write each other's. Points are deleted by the time of the requests that wrote them, so that a
//! request that comes late deletes nothing newer. What a request that is given up has left behind, `reconcile.rs` finds.

mod clean_up;
pub mod collection;
mod embedding;
mod known;
mod prepare;
pub mod reconcile;
pub mod store;
mod text;

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use ::store::vector::Collection;
use ::store::{Connection, Fault, Pool, PoolOptions};
use config::Settings;
use contract::{VECTOR_INDEXER, VectorRequest, WorkerInfo};
use keys::DataKeys;
use runtime::readiness::probe;
use runtime::{
    Dependency, Ended, ExternalWorker, Message, NotReady, ProbeResults, Readiness, Retry, StartupDeadline,
    Verdict, Written,
};
use trust::worker_role;
use vectors::{Embedders, VectorError, VectorStore};

pub use prepare::{Item, Prepared, Ready};
use store::Done;
pub use store::Replaced;
pub use text::Embedded;

/// The worker.
pub struct VectorIndexer {
    pool: Pool,
    vectors: VectorStore,
    embedders: Embedders,
    /// Why no vectors could be made when they were last needed, if so.
    embedder_away: Mutex<Option<String>>,
}

impl std::fmt::Debug for VectorIndexer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("VectorIndexer").finish_non_exhaustive()
    }
}

/// It cannot start.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The pool cannot be made.
    #[error(transparent)]
    Pool(#[from] ::store::PoolError),
    /// The vector store cannot be used as configured.
    #[error("vector-indexer cannot start: {0}")]
    Vectors(#[from] VectorError),
    /// An embedder cannot be used as configured.
    #[error("vector-indexer cannot start: {0}")]
    Embedder(#[from] embed::EmbedError),
    /// No vector store is configured.
    #[error("vector-indexer cannot start: vectors.url is not set")]
    NoVectors,
    /// Something it needs did not appear in time.
    #[error(transparent)]
    Startup(#[from] NotReady),
}

/// Connections for what is looked up before a transaction.
const CONNECTIONS: usize = 2;

impl VectorIndexer {
    /// Opens the vector store and the embedders, and waits for the collections.
    ///
    /// # Errors
    /// [`OpenError`].
    pub async fn open(settings: &Settings, readiness: &Readiness) -> Result<Self, OpenError> {
        let worker = Self::open_now(settings).await?;
        let wait = StartupDeadline::new(readiness, settings);
        wait.wait_for(Dependency::Postgres, || runtime::check_database(&worker.pool, VECTOR_INDEXER.name))
            .await?;
        wait.wait_for(Dependency::Qdrant, || worker.check()).await?;
        Ok(worker)
    }

    /// The same, without waiting.
    ///
    /// # Errors
    /// [`OpenError`].
    pub async fn open_now(settings: &Settings) -> Result<Self, OpenError> {
        let pool = ::store::open_pool(
            &settings.postgres.url_of(&worker_role(VECTOR_INDEXER.name)),
            &PoolOptions {
                name: "vector-indexer look-up",
                size: CONNECTIONS,
                acquire_timeout: Duration::from_millis(settings.postgres.connect_timeout_ms),
                statement_timeout: Duration::from_millis(settings.postgres.statement_timeout_ms),
            },
        )?;
        let vectors = VectorStore::open(&settings.vectors)?.ok_or(OpenError::NoVectors)?;
        let embedders = Embedders::open(&[&settings.embedder, &settings.next_embedder]).await?;
        Ok(Self { pool, vectors, embedders, embedder_away: Mutex::default() })
    }

    /// Whether the vector store answers, and has the collections that the database says it has.
    async fn check(&self) -> Result<(), String> {
        let collections = self.collections().await.map_err(|fault| fault.to_string())?;
        self.check_vectors(&collections).await
    }

    async fn collections(&self) -> Result<Vec<Collection>, Fault> {
        let mut connection = ::store::acquire(&self.pool).await?;
        ::store::vector::collections(&mut connection, vectors::ALIAS, &["active", "filling"]).await
    }

    async fn check_vectors(&self, collections: &[Collection]) -> Result<(), String> {
        self.vectors
            .check()
            .await
            .map_err(|error| format!("{error}; is it running, and is vectors.url right?"))?;
        if collections.is_empty() {
            return Err("there is no collection; `memfleet vectors apply` makes it".to_owned());
        }
        for collection in collections {
            let info = self.vectors.collection_info(&collection.collection_name).await;
            info.map_err(|error| error.to_string())?;
        }
        Ok(())
    }
}

impl ExternalWorker for VectorIndexer {
    const INFO: &'static WorkerInfo = &VECTOR_INDEXER;
    /// A message may hold a hundred texts, each of which takes milliseconds to become a vector.
    const MAX_BATCH: usize = 64;
    type Item = VectorRequest;
    type Prepared = Prepared;
    type Finding = Replaced;

    async fn probe(&self) -> ProbeResults {
        let embedder = self.embedder_away.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let mut results = vec![(Dependency::Embedder, embedder.map_or(Ok(()), Err))];
        // Without the database nobody knows what the vector store should have; that it is unreachable is reported by itself.
        if let Ok(collections) = self.collections().await {
            results.push(probe(Dependency::Qdrant, self.check_vectors(&collections)).await);
        }
        results
    }

    async fn prepare<'a>(
        &'a self,
        batch: &'a [&'a Message<VectorRequest>],
        grants: &'a [&'a str],
    ) -> Result<Prepared, Fault> {
        self.prepare_batch(batch, grants).await
    }

    fn join(&self, one: Prepared, other: Prepared) -> Prepared {
        one.with(other)
    }

    async fn write<'a>(
        &'a self,
        connection: &'a mut Connection,
        batch: &'a [&'a Message<VectorRequest>],
        _: &'a DataKeys,
        prepared: &'a Prepared,
    ) -> Result<Written<Replaced>, Fault> {
        let (done, findings) = store::write(connection, batch, prepared).await?;
        let verdict = |(message, done): (&&Message<VectorRequest>, Done)| match done {
            Done::Applied => Verdict::applied(message),
            Done::Late => Verdict::unchanged(message),
            Done::MissingPrerequisite(reason) => Verdict::Retry(Retry::WithinBudget, reason),
            Done::Rejected(reason) => Verdict::Rejected(reason),
        };
        Ok(Written { verdicts: batch.iter().zip(done).map(verdict).collect(), findings })
    }

    async fn clean_up<'a>(
        &'a self,
        ended: &'a [Ended<'a, VectorRequest, Replaced>],
        prepared: &'a Prepared,
    ) -> Result<(), Fault> {
        self.clean_up_after(ended, prepared).await
    }
}
