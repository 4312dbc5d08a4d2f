//! Embedding by a server, with batches and retries.

use std::num::NonZeroU32;
use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use governor::clock::{Clock, DefaultClock};
use governor::{DefaultDirectRateLimiter, Quota, RateLimiter};
use tokio::sync::Semaphore;
use tokio::time::sleep;
use tracing::{debug, info};

use crate::answer::Fault;
use crate::chunk::{Chunking, estimated_tokens};
use crate::http::Server;
use crate::isolate::Isolation;
use config::EmbedderSettings;

use crate::EmbedError;

/// The delay before the first retry of a request. It doubles with every retry.
const FIRST_DELAY: Duration = Duration::from_millis(200);
/// The longest delay before a retry, whatever the server requests.
const LONGEST_DELAY: Duration = Duration::from_secs(30);
/// The maximum number of concurrent requests.
pub(crate) const AT_ONCE: usize = 4;
/// How often a text that failed alone is tried again, alone.
const ROUNDS: u32 = 3;
/// How long after a failure a call is preceded by a harmless text.
const DOUBT: Duration = Duration::from_secs(60);
/// The shortest timeout of a request.
const SHORTEST_TIMEOUT: Duration = Duration::from_millis(100);

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

/// A server with its batch size, retries and rate limit. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Remote(Arc<Inner>);

struct Inner {
    server: Arc<Server>,
    batch: usize,
    timeout: Duration,
    retries: u32,
    rate: Option<DefaultDirectRateLimiter>,
    clock: DefaultClock,
    permits: Arc<Semaphore>,
    /// When a call failed for a reason that may lie in the server.
    last_failure: Mutex<Option<Instant>>,
    /// Held by a call for some time after that.
    in_doubt: tokio::sync::Mutex<()>,
}

impl Remote {
    pub(crate) fn open(settings: &EmbedderSettings) -> Result<Self, EmbedError> {
        let server = Server::new(settings)?;
        info!(model = server.model, dimension = server.dimension, "embedding texts with a server");
        let rate = settings.requests_per_second.and_then(NonZeroU32::new);
        Ok(Self(Arc::new(Inner {
            server: Arc::new(server),
            batch: settings.batch,
            timeout: Duration::from_millis(settings.timeout_ms),
            retries: settings.retries,
            rate: rate.map(|rate| RateLimiter::direct(Quota::per_second(rate).allow_burst(NonZeroU32::MIN))),
            clock: DefaultClock::default(),
            permits: Arc::new(Semaphore::new(AT_ONCE)),
            last_failure: Mutex::default(),
            in_doubt: tokio::sync::Mutex::default(),
        })))
    }

    pub(crate) fn model(&self) -> &str {
        &self.0.server.model
    }

    pub(crate) fn dimension(&self) -> usize {
        self.0.server.dimension
    }

    pub(crate) fn chunks(&self, chunking: Chunking, text: &str) -> Vec<Range<usize>> {
        let text = chunking.readable(text);
        chunking.split(text, &estimated_tokens(text))
    }

    /// Embeds texts, and finds those that the server cannot embed.
    pub(crate) async fn embed(&self, texts: &[String]) -> Result<Vec<Vec<f32>>, EmbedError> {
        let effort = Effort { timeout: self.0.timeout, retries: self.0.retries, rounds: ROUNDS };
        // For some time after a failure, calls go one after the other, and a harmless text goes before each. If the
        // server then fails on the texts of a call, they may be the cause, and not those of a call beside it.
        let is_in_doubt = self.is_in_doubt();
        let _alone = if is_in_doubt { Some(self.0.in_doubt.lock().await) } else { None };
        let embedded = match if is_in_doubt { self.embed_harmless(effort).await } else { Ok(()) } {
            Ok(()) => Isolation::new(self, texts, effort, is_in_doubt).run().await,
            Err(fault) => Err(unavailable(fault)),
        };
        if embedded.as_ref().is_err_and(EmbedError::is_transient) {
            *self.0.last_failure.lock().unwrap_or_else(PoisonError::into_inner) = Some(Instant::now());
        }
        embedded
    }

    /// As [`embed`](Self::embed), for somebody who waits: a request takes at most this long.
    pub(crate) async fn embed_within(
        &self,
        texts: &[String],
        limit: Duration,
    ) -> Result<Vec<Vec<f32>>, EmbedError> {
        let timeout = self.0.timeout.min(limit.max(SHORTEST_TIMEOUT));
        let effort = Effort { timeout, retries: self.0.retries, rounds: 1 };
        Isolation::new(self, texts, effort, false).run().await
    }

    fn is_in_doubt(&self) -> bool {
        let last = *self.0.last_failure.lock().unwrap_or_else(PoisonError::into_inner);
        last.is_some_and(|last| last.elapsed() < DOUBT)
    }

    /// The maximum number of texts of a request.
    pub(crate) fn batch(&self) -> usize {
        self.0.batch
    }

    /// Embeds a text that every model accepts, once. It differs each time, because a cache in front of the server would
    /// answer for it.
    pub(crate) async fn embed_harmless(&self, effort: Effort) -> Result<(), Fault> {
        let text = format!("a {}", fastrand::u32(..));
        self.embed_batch(&[text], effort.once()).await.map(|_| ())
    }

    /// Embeds a batch in one request, with retries of failures that may pass.
    pub(crate) async fn embed_batch(&self, texts: &[String], effort: Effort) -> Result<Vec<Vec<f32>>, Fault> {
        let body = self.0.server.body(texts)?;
        let mut tried = 0;
        loop {
            let fault = match self.send(&body, texts.len(), effort.timeout).await {
                Ok(vectors) => return Ok(vectors),
                Err(fault) => fault,
            };
            let (after, retries) = match &fault {
                Fault::Busy { after, .. } => (*after, self.0.retries),
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
        let permit = Arc::clone(&self.0.permits).acquire_owned().await;
        let permit = permit.map_err(|error| Fault::failed(error.to_string()))?;
        // A request that waits keeps its permit: the requests behind it would have to wait as well.
        while let Some(Err(early)) = self.0.rate.as_ref().map(DefaultDirectRateLimiter::check) {
            sleep(early.wait_time_from(self.0.clock.now())).await;
        }
        let (server, body) = (Arc::clone(&self.0.server), Arc::clone(body));
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
