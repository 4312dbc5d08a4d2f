//! Private servers with every worker in this process, for as long as a command needs them.

use std::future::Future;
use std::sync::Arc;

use anyhow::{Context, bail};
use cli::signal::interrupted;
use config::Settings;
use fleet::{Fleet, WorkerName};
use runtime::Stats;
use stack::StackOptions;

use crate::local::Local;

/// Private servers and every worker.
pub struct PrivateFleet {
    local: Local,
    fleet: Fleet,
}

impl PrivateFleet {
    /// Starts temporary servers and the workers, with a vector store if it is wanted, unless Ctrl-C comes first.
    ///
    /// # Errors
    /// If the servers cannot be started or set up, or it is interrupted.
    pub async fn start(settings: &Settings, vectors: bool) -> anyhow::Result<Self> {
        let starting = Local::temporary(settings, StackOptions { vectors, ..StackOptions::default() });
        let local = tokio::select! {
            // First, so that signals are listened for before anything runs that would be left behind.
            biased;
            stopped = interrupted() => { stopped?; bail!("interrupted") }
            local = starting => local?,
        };
        let fleet = Fleet::start(&WorkerName::of(&local.settings), &local.settings);
        Ok(Self { local, fleet })
    }

    /// How to reach the servers.
    pub fn settings(&self) -> &Settings {
        &self.local.settings
    }

    /// The counters of each worker.
    pub fn stats(&self) -> Vec<Arc<Stats>> {
        self.fleet.stats().iter().map(|(_, stats)| Arc::clone(stats)).collect()
    }

    /// Works while the workers run.
    ///
    /// # Errors
    /// The error of the work, or that a worker ended, or that it was interrupted.
    pub async fn during<T>(&mut self, work: impl Future<Output = anyhow::Result<T>>) -> anyhow::Result<T> {
        tokio::select! {
            done = work => done,
            ended = self.fleet.ended() => { ended?; bail!("a worker ended by itself") }
            stopped = interrupted() => { stopped?; bail!("interrupted") }
        }
    }

    /// Stops the workers, then the servers, which are removed.
    ///
    /// # Errors
    /// The first failure; the others are stopped all the same.
    pub async fn stop(self) -> anyhow::Result<()> {
        let workers = self.fleet.stop().await.context("the workers did not stop as they should");
        let servers = self.local.stop().await;
        workers.and(servers)
    }
}
