//! Requests to a server that embeds texts: rate, retries and how many go at once.

use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::Duration;

use config::EmbedderSettings;
use governor::clock::{Clock, DefaultClock};
use governor::{DefaultDirectRateLimiter, Quota, RateLimiter};
use tokio::sync::Semaphore;
use tokio::time::sleep;
use tracing::{debug, info};

use crate::EmbedError;
use crate::answer::Fault;
use crate::http::Server;

/// The delay before the first retry of a request. It doubles with every retry.
const FIRST_DELAY: Duration = Duration::from_millis(200);
/// The longest delay before a retry, whatever the server requests.
const LONGEST_DELAY: Duration = Duration::from_secs(30);
/// The maximum number of concurrent requests.
pub(crate) const AT_ONCE: usize = 4;

/// How much is done for a call.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Effort {
    /// The timeout of a request.
    pub(crate) timeout: Duration,
    /// How often a request that failed is retried.
    pub(crate) retries: u32,
    /// How often a text that failed alone is tried again.
    pub(crate) rounds: u32,
}

impl Effort {
    /// A request without retries.
    pub(crate) fn once(self) -> Self {
        Self { retries: 0, ..self }
    }
}

/// A server with its batch size, retries and rate limit.
pub(crate) struct Client {
    server: Arc<Server>,
    batch: usize,
    timeout: Duration,
    retries: u32,
    rate: Option<DefaultDirectRateLimiter>,
    clock: DefaultClock,
    permits: Arc<Semaphore>,
}

impl Client {
    pub(crate) fn open(settings: &EmbedderSettings) -> Result<Self, EmbedError> {
        let server = Server::new(settings)?;
        info!(model = server.model, dimension = server.dimension, "embedding texts with a server");
        let rate = settings.requests_per_second.and_then(NonZeroU32::new);
        Ok(Self {
            server: Arc::new(server),
            batch: settings.batch,
            timeout: Duration::from_millis(settings.timeout_ms),
            retries: settings.retries,
            rate: rate.map(|rate| RateLimiter::direct(Quota::per_second(rate).allow_burst(NonZeroU32::MIN))),
            clock: DefaultClock::default(),
            permits: Arc::new(Semaphore::new(AT_ONCE)),
        })
    }

    pub(crate) fn model(&self) -> &str {
        &self.server.model
    }

    pub(crate) fn dimension(&self) -> usize {
        self.server.dimension
    }

    /// The effort that the settings ask for.
    pub(crate) fn effort(&self, rounds: u32) -> Effort {
        Effort { timeout: self.timeout, retries: self.retries, rounds }
    }

    /// The maximum number of texts of a request.
    pub(crate) fn batch(&self) -> usize {
        self.batch
    }

    /// Embeds a text that every model accepts, once. It differs each time, because a cache in front of the server would
    /// answer for it.
    pub(crate) async fn embed_harmless(&self, effort: Effort) -> Result<(), Fault> {
        let text = format!("a {}", fastrand::u32(..));
        self.embed_batch(&[text], effort.once()).await.map(|_| ())
    }

    /// Embeds a batch in one request, with retries of failures that may pass.
    pub(crate) async fn embed_batch(&self, texts: &[String], effort: Effort) -> Result<Vec<Vec<f32>>, Fault> {
        let body = self.server.body(texts)?;
        let mut tried = 0;
        loop {
            let fault = match self.send(&body, texts.len(), effort.timeout).await {
                Ok(vectors) => return Ok(vectors),
                Err(fault) => fault,
            };
            let (after, retries) = match &fault {
                Fault::Busy { after, .. } => (*after, self.retries),
                Fault::Failed { after, .. } => (*after, effort.retries),
                Fault::NoAnswer(_) | Fault::Refused(_) | Fault::Misconfigured(_) => return Err(fault),
            };
            if tried >= retries {
                return Err(fault);
            }
            let delay = delay(tried, after);
            tried += 1;
            debug!(?fault, ?delay, tried, "retrying an embedding request");
            sleep(delay).await;
        }
    }

    async fn send(
        &self,
        body: &Arc<Vec<u8>>,
        count: usize,
        timeout: Duration,
    ) -> Result<Vec<Vec<f32>>, Fault> {
        let permit = Arc::clone(&self.permits).acquire_owned().await;
        let permit = permit.map_err(|error| Fault::failed(error.to_string()))?;
        // A request that waits keeps its permit: the requests behind it would have to wait as well.
        while let Some(Err(early)) = self.rate.as_ref().map(DefaultDirectRateLimiter::check) {
            sleep(early.wait_time_from(self.clock.now())).await;
        }
        let (server, body) = (Arc::clone(&self.server), Arc::clone(body));
        let response = tokio::task::spawn_blocking(move || {
            // The request holds the permit, because its caller may be cancelled.
            let _permit = permit;
            server.ask(&body, count, timeout)
        });
        // The message of a panic may quote a text.
        response.await.unwrap_or_else(|_| Err(Fault::failed("the request was aborted")))
    }
}

/// The error for a failure that is not due to the texts.
pub(crate) fn unavailable(fault: Fault) -> EmbedError {
    match fault {
        Fault::Busy { reason, .. } | Fault::Failed { reason, .. } | Fault::NoAnswer(reason) => {
            EmbedError::Unavailable(reason)
        }
        Fault::Refused(reason) => EmbedError::Misconfigured(format!(
            "{reason} for every text; check embedder.model and embedder.url"
        )),
        Fault::Misconfigured(reason) => EmbedError::Misconfigured(reason),
    }
}

/// The delay before the next attempt, after so many failed ones: with jitter, so that clients that failed together do
/// not retry together, and not shorter than the server requests.
pub(crate) fn delay(tried: u32, after: Option<Duration>) -> Duration {
    let most = FIRST_DELAY.saturating_mul(1 << tried.min(16)).min(LONGEST_DELAY);
    let share = 0.5 + fastrand::f64() / 2.0;
    let delay = after.map_or(most.mul_f64(share), |after| after.saturating_add(FIRST_DELAY.mul_f64(share)));
    delay.min(LONGEST_DELAY)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn delays_grow_are_limited_and_respect_the_server() {
        for tried in 0..40 {
            let most = FIRST_DELAY.saturating_mul(1 << tried.min(16)).min(LONGEST_DELAY);
            assert!((most / 2..=most).contains(&delay(tried, None)));
        }
        let wanted = Duration::from_secs(5);
        assert!((wanted..wanted + FIRST_DELAY).contains(&delay(9, Some(wanted))));
        assert_eq!(delay(0, Some(Duration::from_secs(86_400))), LONGEST_DELAY);
        assert_eq!(delay(0, Some(Duration::MAX)), LONGEST_DELAY);
    }
}
