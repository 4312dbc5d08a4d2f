//! Waiting at start for what is not there yet.

use std::fmt::Display;
use std::future::Future;
use std::time::Duration;

use tokio::time::{Instant, sleep};

use crate::settings::Settings;

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
pub struct Patience {
    worker: &'static str,
    limit: Duration,
    since: Instant,
}

impl Patience {
    /// The patience of one worker.
    pub fn new(worker: &'static str, settings: &Settings) -> Self {
        Self { worker, limit: settings.worker.startup_timeout(), since: Instant::now() }
    }

    /// Tries until it works. Why it does not is logged once.
    ///
    /// # Errors
    /// [`NotReady`] with the last problem when the time is over.
    pub async fn for_it<T, E: Display, F>(&self, mut attempt: impl FnMut() -> F) -> Result<T, NotReady>
    where
        F: Future<Output = Result<T, E>>,
    {
        let mut told = false;
        loop {
            let problem = match attempt().await {
                Ok(found) => return Ok(found),
                Err(error) => error.to_string(),
            };
            if self.since.elapsed() + BETWEEN_TRIES > self.limit {
                return Err(NotReady { worker: self.worker, waited_s: self.limit.as_secs(), problem });
            }
            if !told {
                tracing::warn!(worker = self.worker, %problem, "waiting");
                told = true;
            }
            sleep(BETWEEN_TRIES).await;
        }
    }
}
