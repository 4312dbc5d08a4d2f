//! Workers by name, and several of them in one process.

use std::sync::Arc;

use anyhow::Context;
use clap::ValueEnum;
use clap::builder::PossibleValue;
use config::Settings;
use context_writer::ContextWriter;
use contract::WorkerInfo;
use router_logger::RouterLogger;
use runtime::{Observed, Phase, Readiness, Stats, Worker};
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;
use vector_indexer::VectorIndexer;

use crate::{health, tokens};

/// The workers of this program: each with its entry in the catalogue, and how it starts. A new worker is a line in the list below.
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
    /// Every worker that has the servers it needs: vector-indexer needs a vector store.
    pub fn of(settings: &Settings) -> Vec<Self> {
        let works = |name: &Self| *name != Self::VectorIndexer || settings.vectors.url.is_some();
        Self::ALL.iter().copied().filter(works).collect()
    }

    /// The name of its crate, consumer and role.
    pub fn as_str(self) -> &'static str {
        self.info().name
    }
}

/// Workers that run in this process.
#[derive(Debug)]
pub struct Fleet {
    running: JoinSet<anyhow::Result<()>>,
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

    /// What is to be seen of a worker that takes messages.
    fn observe(&mut self, name: WorkerName) -> Observed {
        let observed = Observed { stats: Arc::default(), readiness: self.look_after(name) };
        self.stats.push((name, Arc::clone(&observed.stats)));
        observed
    }

    fn spawn_reader(&mut self, name: WorkerName, settings: &Settings) {
        let readiness = self.look_after(name);
        let (settings, stop) = (settings.clone(), self.stop.child_token());
        self.running.spawn(async move { Ok(memory_reader::run(&settings, readiness, stop).await?) });
    }

    fn spawn_issuer(&mut self, name: WorkerName, settings: &Settings) {
        let readiness = self.look_after(name);
        let (settings, stop) = (settings.clone(), self.stop.child_token());
        self.running.spawn(async move {
            let issuer = tokens::issuer(&settings.trust)?.context(
                "token-issuer cannot start: trust.token_key_file and trust.grant_key_file are not set",
            )?;
            Ok(token_issuer::run(issuer, &settings, readiness, stop).await?)
        });
    }

    fn look_after(&mut self, name: WorkerName) -> Readiness {
        let readiness = Readiness::new(name.as_str());
        self.readiness.push(readiness.clone());
        readiness
    }

    /// Answers whether each worker has what it needs, if anybody listens, until what is returned is dropped.
    pub fn tell_health(&self, listener: Option<TcpListener>) -> Option<AbortOnDropHandle<()>> {
        listener.map(|listener| health::serve(listener, self.readiness.clone()))
    }

    /// What each worker has done so far.
    pub fn stats(&self) -> &[(WorkerName, Arc<Stats>)] {
        &self.stats
    }

    /// Waits until a worker ends, which none does by itself unless it fails.
    ///
    /// # Errors
    /// What the worker that ended says.
    pub async fn ended(&mut self) -> anyhow::Result<()> {
        match self.running.join_next().await {
            Some(ended) => ended.context("a worker broke down")?,
            None => Ok(()),
        }
    }

    /// Stops every worker: they finish what is in flight and hand back the rest.
    ///
    /// # Errors
    /// What the first worker that failed says.
    pub async fn stop(mut self) -> anyhow::Result<()> {
        self.stop.cancel();
        for readiness in &self.readiness {
            readiness.reached(Phase::Stopping);
        }
        let mut failed = None;
        while let Some(ended) = self.running.join_next().await {
            let outcome = ended.context("a worker broke down").and_then(|ended| ended);
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
            ContextWriter::NAME,
            RouterLogger::NAME,
            VectorIndexer::NAME,
            memory_reader::NAME,
            token_issuer::NAME,
        ];
        assert_eq!(WorkerName::ALL.iter().map(|name| name.as_str()).collect::<Vec<_>>(), own);
    }
}
