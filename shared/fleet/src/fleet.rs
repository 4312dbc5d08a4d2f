use std::sync::Arc;

use clap::ValueEnum;
use clap::builder::PossibleValue;
use config::Settings;
use consensus_builder::ConsensusBuilder;
use context_writer::ContextWriter;
use contract::WorkerInfo;
use memory_sync::MemorySync;
use retention_cleaner::RetentionCleaner;
use router_logger::RouterLogger;
use runtime::{Observed, Phase, Readiness, Stats, Worker};
use tokio::net::TcpListener;
use tokio::task::{JoinError, JoinSet};
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;
use vector_indexer::VectorIndexer;

use crate::health;

/// The failure of a worker.
#[derive(Debug, thiserror::Error)]
pub enum FleetError {
    /// A worker of a stream.
    #[error(transparent)]
    Worker(#[from] runtime::RunError),
    /// vector-indexer, during its start.
    #[error(transparent)]
    Indexer(#[from] vector_indexer::OpenError),
    /// consensus-builder, during its start.
    #[error(transparent)]
    Builder(#[from] consensus_builder::OpenError),
    /// memory-sync, during its start.
    #[error(transparent)]
    Sync(#[from] memory_sync::OpenError),
    /// retention-cleaner, during its start.
    #[error(transparent)]
    Cleaner(#[from] retention_cleaner::OpenError),
    /// memory-reader.
    #[error(transparent)]
    Reader(#[from] memory_reader::RunError),
    /// token-issuer.
    #[error(transparent)]
    Issuer(#[from] token_issuer::RunError),
    /// token-issuer, because of its keys.
    #[error("token-issuer cannot start: {0}")]
    IssuerKeys(#[from] token_issuer::IssuerKeyError),
    /// A worker panicked.
    #[error("a worker panicked: {0}")]
    Panicked(#[from] JoinError),
}

/// The workers of this program, each with its entry in the catalogue and the function that starts it. To add a worker,
/// add a line to the list below.
macro_rules! workers {
    ($($name:ident($info:ident) => $start:expr,)+) => {
        /// A worker of the catalogue that this program can run.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum WorkerName {
            $(
                #[doc = concat!("`contract::", stringify!($info), "`.")]
                $name,
            )+
        }

        impl WorkerName {
            /// Every worker.
            pub const ALL: &'static [Self] = &[$(Self::$name),+];

            /// Its entry in the catalogue.
            pub fn info(self) -> &'static WorkerInfo {
                match self { $(Self::$name => &contract::$info,)+ }
            }

            fn start(self, fleet: &mut Fleet, settings: &Settings) {
                let start: fn(&mut Fleet, Self, &Settings) = match self { $(Self::$name => $start,)+ };
                start(fleet, self, settings);
            }
        }
    };
}

workers! {
    ContextWriter(CONTEXT_WRITER) => |fleet, name, settings| fleet.spawn(name, ContextWriter, settings),
    RouterLogger(ROUTER_LOGGER) => |fleet, name, settings| fleet.spawn(name, RouterLogger, settings),
    VectorIndexer(VECTOR_INDEXER) => Fleet::spawn_indexer,
    ConsensusBuilder(CONSENSUS_BUILDER) => Fleet::spawn_builder,
    MemorySync(MEMORY_SYNC) => Fleet::spawn_sync,
    RetentionCleaner(RETENTION_CLEANER) => Fleet::spawn_cleaner,
    MemoryReader(MEMORY_READER) => Fleet::spawn_reader,
    TokenIssuer(TOKEN_ISSUER) => Fleet::spawn_issuer,
}

impl ValueEnum for WorkerName {
    fn value_variants<'a>() -> &'a [Self] {
        Self::ALL
    }

    fn to_possible_value(&self) -> Option<PossibleValue> {
        Some(PossibleValue::new(self.as_str()).help(self.info().description))
    }
}

impl WorkerName {
    /// The workers that can run with these settings: vector-indexer needs a vector store.
    pub fn of(settings: &Settings) -> Vec<Self> {
        let can_run = |name: &Self| *name != Self::VectorIndexer || settings.vectors.url.is_some();
        Self::ALL.iter().copied().filter(can_run).collect()
    }

    /// The name of its crate, consumer and role.
    pub fn as_str(self) -> &'static str {
        self.info().name
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
    /// Starts workers. Each waits for its own dependencies.
    pub fn start(names: &[WorkerName], settings: &Settings) -> Self {
        let mut fleet = Self {
            running: JoinSet::new(),
            stats: Vec::new(),
            readiness: Vec::new(),
            stop: CancellationToken::new(),
        };
        for &name in names {
            name.start(&mut fleet, settings);
        }
        fleet
    }

    fn spawn<W: Worker>(&mut self, name: WorkerName, worker: W, settings: &Settings) {
        let observed = self.observe(name);
        let (settings, stop) = (settings.clone(), self.stop.child_token());
        self.running
            .spawn(async move { Ok(runtime::run(Arc::new(worker), &settings, observed, stop).await?) });
    }

    fn spawn_indexer(&mut self, name: WorkerName, settings: &Settings) {
        let observed = self.observe(name);
        let (settings, stop) = (settings.clone(), self.stop.child_token());
        self.running.spawn(async move {
            let opened = tokio::select! {
                () = stop.cancelled() => return Ok(()),
                opened = VectorIndexer::open(&settings, &observed.readiness) => opened?,
            };
            Ok(runtime::run(Arc::new(opened), &settings, observed, stop).await?)
        });
    }

    fn spawn_builder(&mut self, name: WorkerName, settings: &Settings) {
        let observed = self.observe(name);
        let (settings, stop) = (settings.clone(), self.stop.child_token());
        self.running.spawn(async move {
            let opened = tokio::select! {
                () = stop.cancelled() => return Ok(()),
                opened = ConsensusBuilder::open(&settings) => opened?,
            };
            Ok(runtime::run(Arc::new(opened), &settings, observed, stop).await?)
        });
    }

    fn spawn_sync(&mut self, name: WorkerName, settings: &Settings) {
        let observed = self.observe(name);
        let (settings, stop) = (settings.clone(), self.stop.child_token());
        self.running.spawn(async move {
            let opened = MemorySync::open(&settings)?;
            Ok(runtime::run(Arc::new(opened), &settings, observed, stop).await?)
        });
    }

    fn spawn_cleaner(&mut self, name: WorkerName, settings: &Settings) {
        let observed = self.observe(name);
        let (settings, stop) = (settings.clone(), self.stop.child_token());
        self.running.spawn(async move {
            let opened = RetentionCleaner::open(&settings)?;
            Ok(runtime::run(Arc::new(opened), &settings, observed, stop).await?)
        });
    }

    /// Creates the counters and the readiness of a worker of a stream.
    fn observe(&mut self, name: WorkerName) -> Observed {
        let observed = Observed { stats: Arc::default(), readiness: self.track_readiness(name) };
        self.stats.push((name, Arc::clone(&observed.stats)));
        observed
    }

    fn spawn_reader(&mut self, name: WorkerName, settings: &Settings) {
        let readiness = self.track_readiness(name);
        let (settings, stop) = (settings.clone(), self.stop.child_token());
        self.running.spawn(async move { Ok(memory_reader::run(&settings, readiness, stop).await?) });
    }

    fn spawn_issuer(&mut self, name: WorkerName, settings: &Settings) {
        let readiness = self.track_readiness(name);
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

    /// Waits until a worker ends. A worker ends only if it fails.
    ///
    /// # Errors
    /// [`FleetError`] of the worker that ended.
    pub async fn ended(&mut self) -> Result<(), FleetError> {
        match self.running.join_next().await {
            Some(ended) => ended?,
            None => Ok(()),
        }
    }

    /// Stops all workers: each finishes the messages in flight and returns the others to the stream.
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

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn the_program_runs_every_worker_of_the_catalogue() {
        let run: BTreeSet<&str> = WorkerName::ALL.iter().map(|name| name.as_str()).collect();
        let all: BTreeSet<&str> = contract::WORKERS.iter().map(|worker| worker.name).collect();
        assert_eq!(run, all);
        let own = [
            contract::CONTEXT_WRITER.name,
            contract::ROUTER_LOGGER.name,
            contract::VECTOR_INDEXER.name,
            contract::CONSENSUS_BUILDER.name,
            contract::MEMORY_SYNC.name,
            contract::RETENTION_CLEANER.name,
            memory_reader::NAME,
            token_issuer::NAME,
        ];
        assert_eq!(WorkerName::ALL.iter().map(|name| name.as_str()).collect::<Vec<_>>(), own);
    }

    #[tokio::test]
    async fn every_worker_is_started_and_observed() {
        for name in WorkerName::ALL {
            let fleet = Fleet::start(&[*name], &Settings::default());
            assert_eq!((fleet.running.len(), fleet.readiness.len()), (1, 1), "{name:?}");
        }
    }
}
