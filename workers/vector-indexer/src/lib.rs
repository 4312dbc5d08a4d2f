//! Embeds and indexes memories for semantic search.
//!
//! It processes the stream `VECTOR`. Before the transaction of a batch opens, its texts are embedded (`embedding.rs`)
//! and the points are stored in Qdrant (`prepare.rs`). The transaction writes `unified_memory_vectors` (`store.rs`).
//! After the commit and before the acknowledgement, superseded points are deleted (`clean_up.rs`). A row names the
//! valid points of its memory; searches ignore all other points.
//!
//! A job by ticks keeps a memory of each validated node of the knowledge graph (`knowledge.rs`).
//!
//! The two stores stay consistent whatever crashes. Point ids are derived from the request, so that a redelivery writes
//! the same points, and two requests for one memory never overwrite each other's points. Points are deleted by the time
//! of the request that wrote them, so that a late request deletes nothing newer. `reconcile.rs` finds points left
//! behind by dead-lettered requests.

mod classify;
mod clean_up;
pub mod collection;
mod embedding;
mod knowledge;
mod known;
mod prepare;
pub mod reconcile;
pub mod store;
mod suspicion;
mod text;
mod work;

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use ::store::vector::Collection;
use ::store::{Connection, Fault, Pool, PoolOptions};
use config::Settings;
use contract::{VECTOR_INDEXER, WorkerInfo};
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
use suspicion::Suspicion;
pub use text::Embedded;
use work::Work;
pub use work::{Job, NodeRequest, VectorItem};

/// The worker.
pub struct VectorIndexer {
    pool: Pool,
    vectors: VectorStore,
    embedders: Embedders,
    /// The error of the embedder when it was last used; `None` if it succeeded.
    embedder_problem: Mutex<Option<String>>,
    /// The error of the vector store when points were last stored; `None` if it succeeded.
    store_problem: Mutex<Option<String>>,
    suspicion: Suspicion,
}

impl std::fmt::Debug for VectorIndexer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("VectorIndexer").finish_non_exhaustive()
    }
}

/// The worker cannot start.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The pool cannot be created.
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
    /// A dependency did not become available in time.
    #[error(transparent)]
    Startup(#[from] NotReady),
}

/// Size of the pool for reads before the transaction.
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

    /// Like [`open`](Self::open), but does not wait for the database and the collections.
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
                lock_timeout: Duration::ZERO,
            },
        )?;
        let vectors = VectorStore::open(&settings.vectors)?.ok_or(OpenError::NoVectors)?;
        let embedders = Embedders::open(&[&settings.embedder, &settings.next_embedder]).await?;
        Ok(Self {
            pool,
            vectors,
            embedders,
            embedder_problem: Mutex::default(),
            store_problem: Mutex::default(),
            suspicion: Suspicion::default(),
        })
    }

    /// Checks that the vector store is reachable and has the collections recorded in the database.
    async fn check(&self) -> Result<(), String> {
        let collections = self.collections().await.map_err(|fault| fault.to_string())?;
        self.check_vectors(&collections).await
    }

    async fn collections(&self) -> Result<Vec<Collection>, Fault> {
        let mut connection = ::store::acquire(&self.pool).await?;
        ::store::vector::collections(&mut connection, self.vectors.alias(), &["active", "filling"]).await
    }

    async fn check_vectors(&self, collections: &[Collection]) -> Result<(), String> {
        self.vectors
            .check()
            .await
            .map_err(|error| format!("{error}; is it running, and is vectors.url correct?"))?;
        if collections.is_empty() {
            return Err("there is no collection; `memfleet vectors apply` creates it".to_owned());
        }
        for collection in collections {
            let info = self.vectors.collection_info(&collection.collection_name).await;
            info.map_err(|error| error.to_string())?;
        }
        self.check_owner(collections).await
    }

    /// Checks that no collection belongs to another deployment. One that belongs to nobody is of an earlier version.
    async fn check_owner(&self, collections: &[Collection]) -> Result<(), String> {
        for collection in collections {
            let owner = self.vectors.recent_owner(&collection.collection_name, collection.deployment).await;
            owner.map_err(|error| error.to_string())?;
        }
        Ok(())
    }
}

impl ExternalWorker for VectorIndexer {
    const INFO: &'static WorkerInfo = &VECTOR_INDEXER;
    /// A message may hold a hundred texts, each of which takes milliseconds to embed.
    const MAX_BATCH: usize = 64;
    /// Some seconds of work for a model in this process.
    const MAX_PREPARED_BYTES: usize = 16 * 1024;
    const HEAVY_BYTES: usize = Self::MAX_PREPARED_BYTES;
    type Item = VectorItem;
    type Prepared = Prepared;
    type Finding = Replaced;

    async fn probe(&self) -> ProbeResults {
        let last =
            |problem: &Mutex<Option<String>>| problem.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let mut results = vec![(Dependency::Embedder, last(&self.embedder_problem).map_or(Ok(()), Err))];
        // The expected collections are recorded in the database. If it is unreachable, its own probe reports that.
        if let Ok(collections) = self.collections().await {
            // A vector store that responds may still accept no points.
            let check = async {
                self.check_vectors(&collections).await?;
                last(&self.store_problem).map_or(Ok(()), Err)
            };
            results.push(probe(Dependency::Qdrant, check).await);
        }
        results
    }

    async fn prepare<'a>(
        &'a self,
        batch: &'a [&'a Message<VectorItem>],
        grants: &'a [&'a str],
    ) -> Result<Prepared, Fault> {
        match batch {
            [tick] if matches!(tick.request, VectorItem::Tick(Job::KnowledgeIndex)) => {
                self.prepare_tick(tick, grants).await
            }
            requests => {
                let works: Vec<Work<'_>> = requests.iter().filter_map(|one| Work::of(one)).collect();
                self.prepare_works(&works, grants).await
            }
        }
    }

    fn join(&self, one: Prepared, other: Prepared) -> Prepared {
        one.with(other)
    }

    async fn write<'a>(
        &'a self,
        connection: &'a mut Connection,
        batch: &'a [&'a Message<VectorItem>],
        _: &'a DataKeys,
        prepared: &'a Prepared,
    ) -> Result<Written<Replaced>, Fault> {
        if let [tick] = batch
            && matches!(tick.request, VectorItem::Tick(Job::KnowledgeIndex))
        {
            let verdicts = vec![knowledge::write(connection, tick, prepared).await?];
            return Ok(verdicts.into());
        }
        let works: Vec<Work<'_>> = batch.iter().filter_map(|one| Work::of(one)).collect();
        let (done, findings) = store::write(connection, &works, prepared).await?;
        let verdict = |(message, done): (&&Message<VectorItem>, Done)| match done {
            Done::Applied => Verdict::applied(message),
            Done::Superseded => Verdict::unchanged(message),
            Done::MissingPrerequisite(reason) => Verdict::Retry(Retry::Prerequisite, reason.into()),
            Done::Rejected(reason) => Verdict::Rejected(reason),
        };
        Ok(Written { verdicts: batch.iter().zip(done).map(verdict).collect(), findings, counts: None })
    }

    async fn clean_up<'a>(
        &'a self,
        ended: &'a [Ended<'a, VectorItem, Replaced>],
        prepared: &'a Prepared,
    ) -> Result<(), Fault> {
        self.clean_up_after(ended, prepared).await
    }
}
