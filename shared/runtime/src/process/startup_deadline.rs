//! Waiting at start for what is not there yet.

use std::fmt::Display;
use std::future::Future;
use std::time::Duration;

use config::Settings;
use tokio::time::{Instant, sleep};

use crate::process::readiness::{Dependency, Readiness};

/// Something that a worker needs did not appear in time.
#[derive(Debug, thiserror::Error)]
#[error("{worker} cannot start: after {waited_s} s still {problem}")]
pub struct NotReady {
    /// The worker.
    pub worker: &'static str,
    /// How long it waited.
    pub waited_s: u64,
    /// What is missing and what to do about it.
    pub problem: String,
}

const BETWEEN_TRIES: Duration = Duration::from_millis(500);

/// How long a worker waits for all that it needs, from now on: `worker.startup_timeout_s`.
#[derive(Debug)]
pub struct StartupDeadline {
    readiness: Readiness,
    limit: Duration,
    since: Instant,
}

impl StartupDeadline {
    /// The acquire_timeout of one worker.
    pub fn new(readiness: &Readiness, settings: &Settings) -> Self {
        let limit = settings.worker.startup_timeout();
        Self { readiness: readiness.clone(), limit, since: Instant::now() }
    }

    /// Tries until it works.
    ///
    /// # Errors
    /// [`NotReady`] with the last problem when the time is over.
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
