use std::sync::Arc;

use clap::ValueEnum;
use config::Settings;
use context_writer::ContextWriter;
use router_logger::RouterLogger;
use runtime::{Observed, Phase, Readiness, Stats, Worker};
use tokio::net::TcpListener;
use tokio::task::{JoinError, JoinSet};
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;
use vector_indexer::VectorIndexer;

use crate::health;

/// A worker has failed.
#[derive(Debug, thiserror::Error)]
pub enum FleetError {
    /// A worker of a stream.
    #[error(transparent)]
    Worker(#[from] runtime::RunError),
    /// vector-indexer, before it has started.
    #[error(transparent)]
    Indexer(#[from] vector_indexer::OpenError),
    /// memory-reader.
    #[error(transparent)]
    Reader(#[from] memory_reader::RunError),
    /// token-issuer.
    #[error(transparent)]
    Issuer(#[from] token_issuer::RunError),
    /// The keys of token-issuer.
    #[error("token-issuer cannot start: {0}")]
    IssuerKeys(#[from] token_issuer::IssuerKeyError),
    /// It panicked.
    #[error("a worker panicked: {0}")]
    Panicked(#[from] JoinError),
}

/// The workers of this program. A new worker is a line here and one in [`Fleet::start`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum WorkerName {
    /// Sessions, contexts, conversations, accounts, and what agents remember.
    ContextWriter,
    /// Routing decisions, hourly routing statistics, and tool calls.
    RouterLogger,
    /// The semantic search index.
    VectorIndexer,
    /// Answers to queries.
    MemoryReader,
    /// Tokens for services that ask for them.
    TokenIssuer,
}

impl WorkerName {
    /// Every worker.
    pub const ALL: &'static [Self] = &[
        Self::ContextWriter,
        Self::RouterLogger,
        Self::VectorIndexer,
        Self::MemoryReader,
        Self::TokenIssuer,
    ];

    /// Every worker that has what it works on: there is no vector-indexer without a vector store.
    pub fn of(settings: &Settings) -> Vec<Self> {
        let works = |name: &Self| *name != Self::VectorIndexer || settings.vectors.url.is_some();
        Self::ALL.iter().copied().filter(works).collect()
    }

    /// The name of its crate, consumer and role.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::ContextWriter => contract::CONTEXT_WRITER.name,
            Self::RouterLogger => contract::ROUTER_LOGGER.name,
            Self::VectorIndexer => contract::VECTOR_INDEXER.name,
            Self::MemoryReader => memory_reader::NAME,
            Self::TokenIssuer => token_issuer::NAME,
        }
    }
}

/// Workers that run in this process.
#[derive(Debug)]
pub struct Fleet {
    running: JoinSet<Result<(), FleetError>>,
    stats: Vec<(WorkerName, Arc<Stats>)>,
    readiness: Vec<Readiness>,
    stop: CancellationToken,
}

impl Fleet {
    /// Starts workers. Each waits for what it needs by itself.
    pub fn start(names: &[WorkerName], settings: &Settings) -> Self {
        let mut fleet = Self {
            running: JoinSet::new(),
            stats: Vec::new(),
            readiness: Vec::new(),
            stop: CancellationToken::new(),
        };
        for &name in names {
            match name {
                WorkerName::ContextWriter => fleet.spawn(name, ContextWriter, settings),
                WorkerName::RouterLogger => fleet.spawn(name, RouterLogger, settings),
                WorkerName::VectorIndexer => fleet.spawn_indexer(settings),
                WorkerName::MemoryReader => fleet.spawn_reader(settings),
                WorkerName::TokenIssuer => fleet.spawn_issuer(settings),
            }
        }
        fleet
    }

    fn spawn<W: Worker>(&mut self, name: WorkerName, worker: W, settings: &Settings) {
        let observed = self.observe(name);
        let (settings, stop) = (settings.clone(), self.stop.child_token());
        self.running
            .spawn(async move { Ok(runtime::run(Arc::new(worker), &settings, observed, stop).await?) });
    }

    fn spawn_indexer(&mut self, settings: &Settings) {
        let observed = self.observe(WorkerName::VectorIndexer);
        let (settings, stop) = (settings.clone(), self.stop.child_token());
        self.running.spawn(async move {
            let opened = tokio::select! {
                () = stop.cancelled() => return Ok(()),
                opened = VectorIndexer::open(&settings, &observed.readiness) => opened?,
            };
            Ok(runtime::run(Arc::new(opened), &settings, observed, stop).await?)
        });
    }

    /// The counters and the readiness of a worker of a stream.
    fn observe(&mut self, name: WorkerName) -> Observed {
        let observed = Observed { stats: Arc::default(), readiness: self.track_readiness(name) };
        self.stats.push((name, Arc::clone(&observed.stats)));
        observed
    }

    fn spawn_reader(&mut self, settings: &Settings) {
        let readiness = self.track_readiness(WorkerName::MemoryReader);
        let (settings, stop) = (settings.clone(), self.stop.child_token());
        self.running.spawn(async move { Ok(memory_reader::run(&settings, readiness, stop).await?) });
    }

    fn spawn_issuer(&mut self, settings: &Settings) {
        let readiness = self.track_readiness(WorkerName::TokenIssuer);
        let (settings, stop) = (settings.clone(), self.stop.child_token());
        self.running.spawn(async move {
            let issuer =
                token_issuer::issuer(&settings.trust)?.ok_or(token_issuer::IssuerKeyError::NotSet)?;
            Ok(token_issuer::run(issuer, &settings, readiness, stop).await?)
        });
    }

    fn track_readiness(&mut self, name: WorkerName) -> Readiness {
        let readiness = Readiness::new(name.as_str());
        self.readiness.push(readiness.clone());
        readiness
    }

    /// Serves the HTTP health endpoints, if there is a listener, until the returned handle is dropped.
    pub fn serve_health(&self, listener: Option<TcpListener>) -> Option<AbortOnDropHandle<()>> {
        listener.map(|listener| health::serve(listener, self.readiness.clone()))
    }

    /// The counters of each worker of a stream.
    pub fn stats(&self) -> &[(WorkerName, Arc<Stats>)] {
        &self.stats
    }

    /// Waits until a worker ends, which none does by itself unless it fails.
    ///
    /// # Errors
    /// [`FleetError`] of the worker that ended.
    pub async fn ended(&mut self) -> Result<(), FleetError> {
        match self.running.join_next().await {
            Some(ended) => ended?,
            None => Ok(()),
        }
    }

    /// Stops every worker: they finish what is in flight and hand back the rest.
    ///
    /// # Errors
    /// [`FleetError`] of the first worker that failed.
    pub async fn stop(mut self) -> Result<(), FleetError> {
        self.stop.cancel();
        for readiness in &self.readiness {
            readiness.reached(Phase::Stopping);
        }
        let mut failed = None;
        while let Some(ended) = self.running.join_next().await {
            let outcome = ended.map_err(FleetError::from).and_then(|ended| ended);
            failed = failed.or(outcome.err());
        }
        failed.map_or(Ok(()), Err)
    }
}
