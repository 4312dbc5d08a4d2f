//! Embedding by a server, with batches, retries and a search for the texts that it rejects.

use std::num::NonZeroU32;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use governor::clock::{Clock, DefaultClock};
use governor::{DefaultDirectRateLimiter, Quota, RateLimiter};
use tokio::sync::Semaphore;
use tokio::time::sleep;
use tracing::{debug, info};

use crate::answer::Fault;
use crate::chunk::{Chunking, estimated_tokens};
use crate::http::Server;
use config::EmbedderSettings;

use crate::{EmbedError, Refusal};

/// The delay before the first retry of a request. It doubles with every retry.
const FIRST_DELAY: Duration = Duration::from_millis(200);
/// The longest delay before a retry, whatever the server requests.
const LONGEST_DELAY: Duration = Duration::from_secs(30);
/// The maximum number of concurrent requests.
const AT_ONCE: usize = 4;
/// The maximum number of additional requests of a call to find the texts that the server rejects.
const SEARCH: usize = 64;
/// A text that every model accepts.
const HARMLESS: &str = "a";

/// A server with its batch size, retries and rate limit. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Remote(Arc<Inner>);

struct Inner {
    server: Arc<Server>,
    batch: usize,
    retries: u32,
    rate: Option<DefaultDirectRateLimiter>,
    clock: DefaultClock,
    permits: Arc<Semaphore>,
}

impl Remote {
    pub(crate) fn open(settings: &EmbedderSettings) -> Result<Self, EmbedError> {
        let server = Server::new(settings)?;
        info!(model = server.model, dimension = server.dimension, "embedding texts with a server");
        let rate = settings.requests_per_second.and_then(NonZeroU32::new);
        Ok(Self(Arc::new(Inner {
            server: Arc::new(server),
            batch: settings.batch,
            retries: settings.retries,
            rate: rate.map(|rate| RateLimiter::direct(Quota::per_second(rate).allow_burst(NonZeroU32::MIN))),
            clock: DefaultClock::default(),
            permits: Arc::new(Semaphore::new(AT_ONCE)),
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

    /// Embeds texts. If the server rejects a batch, the batch is halved recursively to find the rejected texts.
    pub(crate) async fn embed(&self, texts: Vec<String>) -> Result<Vec<Vec<f32>>, EmbedError> {
        let starts = (0..texts.len()).step_by(self.0.batch);
        // A stack: the next range is at the end.
        let mut left: Vec<Range<usize>> =
            starts.rev().map(|start| start..texts.len().min(start + self.0.batch)).collect();
        let mut vectors = vec![Vec::new(); texts.len()];
        let mut refused: Option<Refusal> = None;
        let mut searched = 0;
        let mut taken = false;
        while let Some(range) = left.pop() {
            match self.embed_batch(&texts[range.clone()]).await {
                Ok(made) => {
                    taken = true;
                    for (at, vector) in range.zip(made) {
                        vectors[at] = vector;
                    }
                }
                Err(Fault::Refused(reason)) if range.len() == 1 => {
                    let found = refused.get_or_insert(Refusal { texts: Vec::new(), reason });
                    found.texts.push(range.start);
                }
                Err(Fault::Refused(_)) => {
                    let middle = range.start + range.len() / 2;
                    left.extend([middle..range.end, range.start..middle]);
                    searched += 2;
                }
                Err(Fault::Later { reason, .. }) => return Err(EmbedError::Unavailable(reason)),
                Err(Fault::Misconfigured(reason)) => return Err(EmbedError::Misconfigured(reason)),
            }
            // One rejected text among 256 is found within 17 requests, so a caller that omits the texts found so far
            // makes progress.
            if searched >= SEARCH && refused.is_some() {
                break;
            }
        }
        match refused {
            None => Ok(vectors),
            Some(refusal) if taken => Err(EmbedError::Refused(refusal)),
            Some(refusal) => Err(self.refusal(refusal).await),
        }
    }

    /// Distinguishes rejected texts from a server that rejects every text, which is a misconfiguration and no reason to
    /// dead-letter a text.
    async fn refusal(&self, refusal: Refusal) -> EmbedError {
        match self.embed_batch(&[HARMLESS.to_owned()]).await {
            Ok(_) => EmbedError::Refused(refusal),
            Err(Fault::Refused(reason)) => EmbedError::Misconfigured(format!(
                "{reason} for every text; check embedder.model and embedder.url"
            )),
            Err(Fault::Misconfigured(reason)) => EmbedError::Misconfigured(reason),
            Err(Fault::Later { reason, .. }) => EmbedError::Unavailable(reason),
        }
    }

    /// Embeds a batch, with retries of transient failures.
    async fn embed_batch(&self, texts: &[String]) -> Result<Vec<Vec<f32>>, Fault> {
        let body = self.0.server.body(texts)?;
        let mut tried = 0;
        loop {
            let (reason, after) = match self.send(&body, texts.len()).await {
                Err(Fault::Later { reason, after }) => (reason, after),
                Ok(vectors) => return Ok(vectors),
                Err(fault @ (Fault::Refused(_) | Fault::Misconfigured(_))) => return Err(fault),
            };
            if tried >= self.0.retries {
                return Err(Fault::Later { reason, after });
            }
            let delay = delay(tried, after);
            tried += 1;
            debug!(reason, ?delay, tried, "retrying an embedding request");
            sleep(delay).await;
        }
    }

    async fn send(&self, body: &Arc<Vec<u8>>, count: usize) -> Result<Vec<Vec<f32>>, Fault> {
        let permit = Arc::clone(&self.0.permits).acquire_owned().await;
        let permit = permit.map_err(|error| Fault::later(error.to_string()))?;
        // A request that waits keeps its permit: the requests behind it would have to wait as well.
        while let Some(Err(early)) = self.0.rate.as_ref().map(DefaultDirectRateLimiter::check) {
            sleep(early.wait_time_from(self.0.clock.now())).await;
        }
        let (server, body) = (Arc::clone(&self.0.server), Arc::clone(body));
        let response = tokio::task::spawn_blocking(move || {
            // The request holds the permit, because its caller may be cancelled.
            let _permit = permit;
            server.ask(&body, count)
        });
        response.await.unwrap_or_else(|error| Err(Fault::later(error.to_string())))
    }
}

/// The delay before the next attempt, after so many failed ones: with jitter, so that clients that failed together do
/// not retry together, and not shorter than the server requests.
fn delay(tried: u32, after: Option<Duration>) -> Duration {
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
