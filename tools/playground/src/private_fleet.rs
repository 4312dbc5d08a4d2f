//! Private servers and all workers in this process, for the duration of a command.

use std::future::Future;
use std::sync::Arc;

use anyhow::{Context, bail};
use cli::signal::interrupted;
use config::Settings;
use fleet::{Fleet, WorkerName};
use runtime::Stats;
use stack::StackOptions;

use crate::local::Local;

/// Temporary private servers and all workers.
pub struct PrivateFleet {
    local: Local,
    fleet: Fleet,
}

impl PrivateFleet {
    /// Starts temporary servers, including a vector store if `vectors` is set, and the workers.
    ///
    /// # Errors
    /// If the servers cannot be started or set up, or the start is interrupted by a signal.
    pub async fn start(settings: &Settings, vectors: bool) -> anyhow::Result<Self> {
        let starting = Local::temporary(settings, StackOptions { vectors, ..StackOptions::default() });
        let local = tokio::select! {
            // First, so that signal handlers are installed before any server that could be left running is started.
            biased;
            stopped = interrupted() => { stopped?; bail!("interrupted") }
            local = starting => local?,
        };
        let fleet = Fleet::start(&WorkerName::of(&local.settings), &local.settings);
        Ok(Self { local, fleet })
    }

    /// The settings to connect to the servers.
    pub fn settings(&self) -> &Settings {
        &self.local.settings
    }

    /// The counters of each worker.
    pub fn stats(&self) -> Vec<Arc<Stats>> {
        self.fleet.stats().iter().map(|(_, stats)| Arc::clone(stats)).collect()
    }

    /// Runs `work` while the workers run.
    ///
    /// # Errors
    /// The error of `work`; or if a worker ends or a signal arrives first.
    pub async fn during<T>(&mut self, work: impl Future<Output = anyhow::Result<T>>) -> anyhow::Result<T> {
        tokio::select! {
            done = work => done,
            ended = self.fleet.ended() => { ended?; bail!("a worker ended unexpectedly") }
            stopped = interrupted() => { stopped?; bail!("interrupted") }
        }
    }

    /// Stops the workers and then the servers, whose data is removed.
    ///
    /// # Errors
    /// The first failure; everything else is stopped anyway.
    pub async fn stop(self) -> anyhow::Result<()> {
        let workers = self.fleet.stop().await.context("the workers did not stop cleanly");
        let servers = self.local.stop().await;
        workers.and(servers)
    }
}
