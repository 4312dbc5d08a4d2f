//! Waits at startup for dependencies that are not available yet.

use std::fmt::Display;
use std::future::Future;
use std::time::Duration;

use config::Settings;
use tokio::time::{Instant, sleep};

use crate::process::readiness::{Dependency, Readiness};

/// A dependency of a worker did not become available in time.
#[derive(Debug, thiserror::Error)]
#[error("{worker} cannot start: not ready after {waited_s} s: {problem}")]
pub struct NotReady {
    /// The worker.
    pub worker: &'static str,
    /// How long it waited.
    pub waited_s: u64,
    /// The last error, and what to do about it.
    pub problem: String,
}

const BETWEEN_TRIES: Duration = Duration::from_millis(500);

/// The deadline for all dependencies of a starting worker: `worker.startup_timeout_s` after its creation.
#[derive(Debug)]
pub struct StartupDeadline {
    readiness: Readiness,
    limit: Duration,
    since: Instant,
}

impl StartupDeadline {
    /// Starts the deadline of one worker.
    pub fn new(readiness: &Readiness, settings: &Settings) -> Self {
        let limit = settings.worker.startup_timeout();
        Self { readiness: readiness.clone(), limit, since: Instant::now() }
    }

    /// Repeats `attempt` until it succeeds.
    ///
    /// # Errors
    /// [`NotReady`] with the last error when the deadline has passed.
    pub async fn wait_for<T, E: Display, F>(
        &self,
        dependency: Dependency,
        mut attempt: impl FnMut() -> F,
    ) -> Result<T, NotReady>
    where
        F: Future<Output = Result<T, E>>,
    {
        loop {
            let problem = match attempt().await {
                Ok(found) => {
                    self.readiness.note(dependency, Ok::<(), String>(()));
                    return Ok(found);
                }
                Err(error) => error.to_string(),
            };
            self.readiness.note(dependency, Err(problem.as_str()));
            if self.since.elapsed() + BETWEEN_TRIES > self.limit {
                let worker = self.readiness.worker();
                return Err(NotReady { worker, waited_s: self.limit.as_secs(), problem });
            }
            sleep(BETWEEN_TRIES).await;
        }
    }
}
