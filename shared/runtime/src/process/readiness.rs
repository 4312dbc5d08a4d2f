//! The readiness of a worker: whether its dependencies are available. For monitoring and troubleshooting.
//!
//! A worker without a dependency waits and loses no messages, so a worker that is not ready need not be restarted.

use std::collections::BTreeMap;
use std::fmt::Display;
use std::future::Future;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_nats::connection::State;
use chrono::{DateTime, SecondsFormat, Utc};
use serde::Serialize;
use tokio::time::{Instant, MissedTickBehavior, interval, timeout};
use tokio_util::sync::CancellationToken;

use crate::process::blocked::{BlockedReport, BlockedUsers};

/// An external dependency of a worker.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Dependency {
    /// The broker, with the streams and consumers of the worker.
    Nats,
    /// The database.
    Postgres,
    /// The database that queries read from. It may be a replica.
    ReadDatabase,
    /// The key store and its KEK provider.
    KeyStore,
    /// The keys of encrypted bodies, checked at startup.
    PayloadKeys,
    /// The stream of dead letters. Messages that must go there are redelivered until it has room for them.
    DeadLetterStream,
    /// The vector store.
    Qdrant,
    /// The embedding server.
    Embedder,
}

/// The results of probing a worker's dependencies.
pub type ProbeResults = Vec<(Dependency, Result<(), String>)>;

/// The readiness of a worker. Clones share the same state.
#[derive(Clone, Debug)]
pub struct Readiness {
    worker: &'static str,
    inner: Arc<Mutex<Inner>>,
    blocked: BlockedUsers,
}

#[derive(Debug)]
struct Inner {
    phase: Phase,
    missing: BTreeMap<Dependency, Missing>,
}

/// The lifecycle phase of a worker.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Phase {
    /// It waits for its dependencies before it starts.
    Starting,
    /// It processes messages, or waits for a dependency.
    Running,
    /// It finishes the messages in flight.
    Stopping,
}

#[derive(Clone, Debug)]
struct Missing {
    since: DateTime<Utc>,
    problem: String,
}

/// A snapshot of [`Readiness`].
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ReadinessReport {
    /// The worker.
    pub worker: &'static str,
    /// Whether it is running, all its dependencies are available, and no table that it writes is locked.
    pub ready: bool,
    /// Its lifecycle phase.
    pub phase: Phase,
    /// The unavailable dependencies.
    pub missing: Vec<MissingReport>,
    /// The users whose messages wait because their rows are locked, at most 20, and the lock of a whole table. The
    /// messages of other users are written meanwhile.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub blocked: Vec<BlockedReport>,
}

/// An unavailable dependency.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct MissingReport {
    /// The dependency.
    pub dependency: Dependency,
    /// Since when it is unavailable, as in RFC 3339.
    pub since: String,
    /// The error, without passwords.
    pub problem: String,
}

/// Maximum length of a reported problem, in characters.
const MAX_PROBLEM_CHARS: usize = 300;
/// Interval between probes of the dependencies.
const PROBE_INTERVAL: Duration = Duration::from_secs(5);
/// Failed probes of the broker after which a worker connects to another server, though its server is connected.
const FAILURES_BEFORE_RECONNECT: u32 = 3;
/// Time limit of one probe.
const PROBE_TIMEOUT: Duration = Duration::from_secs(5);

impl Readiness {
    /// The readiness of a starting worker.
    pub fn new(worker: &'static str) -> Self {
        let inner = Inner { phase: Phase::Starting, missing: BTreeMap::new() };
        Self { worker, inner: Arc::new(Mutex::new(inner)), blocked: BlockedUsers::default() }
    }

    /// The users whose rows are locked.
    pub(crate) fn blocked(&self) -> &BlockedUsers {
        &self.blocked
    }

    /// The name of the worker.
    pub fn worker(&self) -> &'static str {
        self.worker
    }

    fn with<T>(&self, work: impl FnOnce(&mut Inner) -> T) -> T {
        // The state is valid even if a panic poisoned the lock.
        work(&mut self.inner.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Records whether a dependency is available, and logs a change.
    pub fn note(&self, dependency: Dependency, found: Result<(), impl Into<String>>) {
        let worker = self.worker;
        match found {
            Ok(()) => {
                if let Some(missing) = self.with(|inner| inner.missing.remove(&dependency)) {
                    let seconds = (Utc::now() - missing.since).num_seconds();
                    tracing::info!(worker, ?dependency, seconds, "dependency available again");
                }
            }
            Err(problem) => {
                let problem: String = problem.into().chars().take(MAX_PROBLEM_CHARS).collect();
                let is_new = self.with(|inner| match inner.missing.get_mut(&dependency) {
                    Some(missing) => {
                        missing.problem.clone_from(&problem);
                        false
                    }
                    None => {
                        let missing = Missing { since: Utc::now(), problem: problem.clone() };
                        inner.missing.insert(dependency, missing);
                        true
                    }
                });
                if is_new {
                    tracing::warn!(worker, ?dependency, %problem, "dependency unavailable");
                }
            }
        }
    }

    /// Records the lifecycle phase.
    pub fn reached(&self, phase: Phase) {
        self.with(|inner| inner.phase = phase);
    }

    /// Returns the current state.
    pub fn report(&self) -> ReadinessReport {
        let (is_table_locked, blocked) = self.blocked.report(Instant::now());
        self.with(|inner| ReadinessReport {
            worker: self.worker,
            ready: inner.phase == Phase::Running && inner.missing.is_empty() && !is_table_locked,
            phase: inner.phase,
            missing: inner.missing.iter().map(MissingReport::new).collect(),
            blocked,
        })
    }

    /// Probes the broker connection, and other dependencies with `probe_all`, until `stop` is cancelled. Without it, an
    /// idle worker would not notice that a dependency is unavailable. If a server accepts the connection and the broker
    /// cannot be used through it, for example because it lost the rest of its cluster, the worker connects to another.
    pub async fn follow<F>(
        self,
        client: async_nats::Client,
        probe_all: impl Fn() -> F,
        stop: CancellationToken,
    ) where
        F: Future<Output = ProbeResults>,
    {
        let mut tick = interval(PROBE_INTERVAL);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut failures = 0;
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                _ = tick.tick() => {}
            }
            let connected = match client.connection_state() {
                State::Connected => Ok(()),
                State::Pending | State::Disconnected => {
                    Err("unreachable; the client is reconnecting".to_owned())
                }
            };
            let results = tokio::select! {
                () = stop.cancelled() => return,
                results = probe_all() => results,
            };
            // The worker's own probe of the broker counts only while the client is connected.
            let mut all = BTreeMap::from([(Dependency::Nats, Ok(()))]);
            all.extend(results);
            failures = match all.get(&Dependency::Nats) {
                Some(Err(_)) if connected.is_ok() => failures + 1,
                Some(_) | None => 0,
            };
            if failures >= FAILURES_BEFORE_RECONNECT {
                failures = 0;
                tracing::warn!(
                    worker = self.worker,
                    "NATS cannot be used through this server, connecting again"
                );
                if let Err(error) = client.force_reconnect().await {
                    tracing::warn!(worker = self.worker, %error, "cannot connect again");
                }
            }
            if connected.is_err() {
                all.insert(Dependency::Nats, connected);
            }
            for (dependency, found) in all {
                self.note(dependency, found);
            }
        }
    }
}

/// Probes one dependency. It counts as unavailable if the probe takes longer than 5 s.
pub async fn probe<T, E: Display>(
    dependency: Dependency,
    attempt: impl Future<Output = Result<T, E>>,
) -> (Dependency, Result<(), String>) {
    let found = match timeout(PROBE_TIMEOUT, attempt).await {
        Ok(found) => found.map(drop).map_err(|error| error.to_string()),
        Err(_) => Err(format!("no answer within {} s", PROBE_TIMEOUT.as_secs())),
    };
    (dependency, found)
}

impl MissingReport {
    fn new((dependency, missing): (&Dependency, &Missing)) -> Self {
        Self {
            dependency: *dependency,
            since: missing.since.to_rfc3339_opts(SecondsFormat::Millis, true),
            problem: missing.problem.clone(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_worker_is_ready_when_it_runs_and_no_dependency_is_missing() {
        let readiness = Readiness::new("tester");
        assert!(!readiness.report().ready);
        readiness.reached(Phase::Running);
        assert!(readiness.report().ready);

        readiness.note(Dependency::Qdrant, Err("refused"));
        let first = readiness.report();
        assert!(!first.ready);
        readiness.note(Dependency::Qdrant, Err("x".repeat(1_000)));
        readiness.note(Dependency::Embedder, Ok::<(), String>(()));
        let report = readiness.report();
        assert_eq!(report.missing.len(), 1);
        // `since` stays the time of the first failure.
        assert_eq!(report.missing[0].since, first.missing[0].since);
        assert_eq!(report.missing[0].problem.len(), MAX_PROBLEM_CHARS);

        readiness.note(Dependency::Qdrant, Ok::<(), String>(()));
        assert!(readiness.report().ready);
        readiness.reached(Phase::Stopping);
        assert!(!readiness.report().ready);
    }
}
