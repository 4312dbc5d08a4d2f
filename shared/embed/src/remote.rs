//! Vectors made by a server: patiently, in batches, and without those that it refuses.

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
use crate::chunk::{Cut, guessed_tokens};
use crate::http::Server;
use config::EmbedderSettings;

use crate::{EmbedError, Refusal};

/// How long it takes at least until a failed request is repeated; twice as long each time.
const FIRST_DELAY: Duration = Duration::from_millis(200);
/// How long it takes at most, whatever the server asks for.
const LONGEST_DELAY: Duration = Duration::from_secs(30);
/// How many requests are under way at once.
const AT_ONCE: usize = 4;
/// How many requests more than its batches a call may make to find the texts that the server refuses.
const SEARCH: usize = 64;
/// A text that every model takes.
const HARMLESS: &str = "a";

/// A server, and how it is asked. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Remote(Arc<Inner>);

struct Inner {
    server: Arc<Server>,
    batch: usize,
    retries: u32,
    rate: Option<DefaultDirectRateLimiter>,
    clock: DefaultClock,
    places: Arc<Semaphore>,
}

impl Remote {
    pub(crate) fn open(settings: &EmbedderSettings) -> Result<Self, EmbedError> {
        let server = Server::new(settings)?;
        info!(model = server.model, dimension = server.dimension, "texts are embedded by a server");
        let rate = settings.requests_per_second.and_then(NonZeroU32::new);
        Ok(Self(Arc::new(Inner {
            server: Arc::new(server),
            batch: settings.batch,
            retries: settings.retries,
            rate: rate.map(|rate| RateLimiter::direct(Quota::per_second(rate).allow_burst(NonZeroU32::MIN))),
            clock: DefaultClock::default(),
            places: Arc::new(Semaphore::new(AT_ONCE)),
        })))
    }

    pub(crate) fn model(&self) -> &str {
        &self.0.server.model
    }

    pub(crate) fn dimension(&self) -> usize {
        self.0.server.dimension
    }

    pub(crate) fn chunks(&self, cut: Cut, text: &str) -> Vec<Range<usize>> {
        let text = cut.readable(text);
        cut.pieces(text, &guessed_tokens(text))
    }

    /// Where the server refuses a batch, its halves are tried, and theirs, to find which texts it does not take.
    pub(crate) async fn embed(&self, texts: Vec<String>) -> Result<Vec<Vec<f32>>, EmbedError> {
        let starts = (0..texts.len()).step_by(self.0.batch);
        // The last one is the next.
        let mut left: Vec<Range<usize>> =
            starts.rev().map(|start| start..texts.len().min(start + self.0.batch)).collect();
        let mut vectors = vec![Vec::new(); texts.len()];
        let mut refused: Option<Refusal> = None;
        let mut searched = 0;
        let mut taken = false;
        while let Some(range) = left.pop() {
            match self.ask(&texts[range.clone()]).await {
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
            // One of 256 is found within 17 requests, so that whoever leaves out what is found gets on.
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

    /// What it means that the server has refused all that it was asked: it may refuse everything, which is not for a text to
    /// be lost for.
    async fn refusal(&self, refusal: Refusal) -> EmbedError {
        match self.ask(&[HARMLESS.to_owned()]).await {
            Ok(_) => EmbedError::Refused(refusal),
            Err(Fault::Refused(reason)) => EmbedError::Misconfigured(format!(
                "{reason}, whatever the text; see embedder.model and embedder.url"
            )),
            Err(Fault::Misconfigured(reason)) => EmbedError::Misconfigured(reason),
            Err(Fault::Later { reason, .. }) => EmbedError::Unavailable(reason),
        }
    }

    /// Asks for the vectors of a batch, again and again while the server fails for now.
    async fn ask(&self, texts: &[String]) -> Result<Vec<Vec<f32>>, Fault> {
        let body = self.0.server.body(texts)?;
        let mut tried = 0;
        loop {
            let (reason, after) = match self.ask_once(&body, texts.len()).await {
                Err(Fault::Later { reason, after }) => (reason, after),
                Ok(vectors) => return Ok(vectors),
                Err(fault @ (Fault::Refused(_) | Fault::Misconfigured(_))) => return Err(fault),
            };
            if tried >= self.0.retries {
                return Err(Fault::Later { reason, after });
            }
            let delay = delay(tried, after);
            tried += 1;
            debug!(reason, ?delay, tried, "a request for embeddings is repeated");
            sleep(delay).await;
        }
    }

    async fn ask_once(&self, body: &Arc<Vec<u8>>, count: usize) -> Result<Vec<Vec<f32>>, Fault> {
        let place = Arc::clone(&self.0.places).acquire_owned().await;
        let place = place.map_err(|error| Fault::later(error.to_string()))?;
        // One that waits holds its place: those behind it would have to wait as well.
        while let Some(Err(early)) = self.0.rate.as_ref().map(DefaultDirectRateLimiter::check) {
            sleep(early.wait_time_from(self.0.clock.now())).await;
        }
        let (server, body) = (Arc::clone(&self.0.server), Arc::clone(body));
        let asked = tokio::task::spawn_blocking(move || {
            // Held by what asks, and not by who waits for it and may be gone.
            let _place = place;
            server.ask(&body, count)
        });
        asked.await.unwrap_or_else(|error| Err(Fault::later(error.to_string())))
    }
}

/// How long to wait before the next try, after so many that failed: at random, so that those who fail together do not come
/// back together, and not before the server wants.
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
    fn a_delay_grows_is_bounded_and_is_as_long_as_the_server_wants() {
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
