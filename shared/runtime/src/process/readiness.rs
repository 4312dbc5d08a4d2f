//! Whether a worker has what it needs: for whoever watches it, and for people who look for what is wrong.
//!
//! A worker that lacks something waits and loses nothing, so that being not ready is no reason to stop it.

use std::collections::BTreeMap;
use std::fmt::Display;
use std::future::Future;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_nats::connection::State;
use chrono::{DateTime, SecondsFormat, Utc};
use serde::Serialize;
use tokio::time::{MissedTickBehavior, interval, timeout};
use tokio_util::sync::CancellationToken;

/// What a worker may be without.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Dependency {
    /// The broker, with the streams and consumers of the worker.
    Nats,
    /// The database.
    Postgres,
    /// The database that queries are answered from, which may be another.
    ReadDatabase,
    /// The key store, and who keeps the keys of its keys.
    KeyStore,
    /// The keys of bodies that travel encrypted, at start.
    PayloadKeys,
    /// The vector store.
    Qdrant,
    /// Who makes vectors of texts.
    Embedder,
}

/// What is known of the servers that a worker needs.
pub type ProbeResults = Vec<(Dependency, Result<(), String>)>;

/// What a worker has and lacks. Cheap to clone: the clones are one.
#[derive(Clone, Debug)]
pub struct Readiness {
    worker: &'static str,
    inner: Arc<Mutex<Inner>>,
}

#[derive(Debug)]
struct Inner {
    phase: Phase,
    missing: BTreeMap<Dependency, Missing>,
}

/// How far a worker is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Phase {
    /// It has not found everything that it needs yet.
    Starting,
    /// It works, or waits for what is missing.
    Running,
    /// It finishes what is in flight.
    Stopping,
}

#[derive(Clone, Debug)]
struct Missing {
    since: DateTime<Utc>,
    problem: String,
}

/// What [`Readiness`] says at a moment.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ReadinessReport {
    /// The worker.
    pub worker: &'static str,
    /// Whether it takes messages or queries and can do what they want.
    pub ready: bool,
    /// How far it is.
    pub phase: Phase,
    /// What it waits for.
    pub missing: Vec<MissingReport>,
}

/// Something that a worker waits for.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct MissingReport {
    /// What.
    pub dependency: Dependency,
    /// Since when, as in RFC 3339.
    pub since: String,
    /// What happens when it is asked for, without passwords.
    pub problem: String,
}

/// The most letters of a problem that are told.
const PROBLEM: usize = 300;
/// How often a worker looks for its servers.
const LOOK_EVERY: Duration = Duration::from_secs(5);
/// How long it looks for one.
const LOOK_WITHIN: Duration = Duration::from_secs(5);

impl Readiness {
    /// That of a worker which starts.
    pub fn new(worker: &'static str) -> Self {
        let inner = Inner { phase: Phase::Starting, missing: BTreeMap::new() };
        Self { worker, inner: Arc::new(Mutex::new(inner)) }
    }

    /// Whose it is.
    pub fn worker(&self) -> &'static str {
        self.worker
    }

    fn with<T>(&self, work: impl FnOnce(&mut Inner) -> T) -> T {
        // What a panic has left is still what is known.
        work(&mut self.inner.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Notes whether something is there. That it is gone is logged, and that it is back.
    pub fn note(&self, dependency: Dependency, found: Result<(), impl Into<String>>) {
        let worker = self.worker;
        match found {
            Ok(()) => {
                if let Some(missing) = self.with(|inner| inner.missing.remove(&dependency)) {
                    let seconds = (Utc::now() - missing.since).num_seconds();
                    tracing::info!(worker, ?dependency, seconds, "it is back");
                }
            }
            Err(problem) => {
                let problem: String = problem.into().chars().take(PROBLEM).collect();
                let is_news = self.with(|inner| match inner.missing.get_mut(&dependency) {
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
                if is_news {
                    tracing::warn!(worker, ?dependency, %problem, "waiting for it");
                }
            }
        }
    }

    /// Notes how far the worker is.
    pub fn reached(&self, phase: Phase) {
        self.with(|inner| inner.phase = phase);
    }

    /// What is known now.
    pub fn report(&self) -> ReadinessReport {
        self.with(|inner| ReadinessReport {
            worker: self.worker,
            ready: inner.phase == Phase::Running && inner.missing.is_empty(),
            phase: inner.phase,
            missing: inner.missing.iter().map(MissingReport::new).collect(),
        })
    }

    /// Looks for the broker and what `look` looks for, until `stop` is cancelled: a worker that has nothing to do would not
    /// notice otherwise.
    pub async fn follow<F>(self, client: async_nats::Client, look: impl Fn() -> F, stop: CancellationToken)
    where
        F: Future<Output = ProbeResults>,
    {
        let mut tick = interval(LOOK_EVERY);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                _ = tick.tick() => {}
            }
            let connected = match client.connection_state() {
                State::Connected => Ok(()),
                State::Pending | State::Disconnected => {
                    Err("it cannot be reached; the client tries on".to_owned())
                }
            };
            let looked = tokio::select! {
                () = stop.cancelled() => return,
                looked = look() => looked,
            };
            // What a worker finds out about the broker counts as long as there is a connection.
            let mut all = BTreeMap::from([(Dependency::Nats, Ok(()))]);
            all.extend(looked);
            if connected.is_err() {
                all.insert(Dependency::Nats, connected);
            }
            for (dependency, found) in all {
                self.note(dependency, found);
            }
        }
    }
}

/// Looks for one server, no longer than a look may take: one that does not answer is as good as none.
pub async fn probe<T, E: Display>(
    dependency: Dependency,
    look: impl Future<Output = Result<T, E>>,
) -> (Dependency, Result<(), String>) {
    let found = match timeout(LOOK_WITHIN, look).await {
        Ok(found) => found.map(drop).map_err(|error| error.to_string()),
        Err(_) => Err(format!("no answer within {} s", LOOK_WITHIN.as_secs())),
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
    fn a_worker_is_ready_when_it_runs_and_lacks_nothing() {
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
        // It has been away since it was first.
        assert_eq!(report.missing[0].since, first.missing[0].since);
        assert_eq!(report.missing[0].problem.len(), PROBLEM);

        readiness.note(Dependency::Qdrant, Ok::<(), String>(()));
        assert!(readiness.report().ready);
        readiness.reached(Phase::Stopping);
        assert!(!readiness.report().ready);
    }
}
