//! Embedding by a server, which may be down, and may not be able to embed every text.

use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use config::EmbedderSettings;

use crate::EmbedError;
use crate::chunk::{Chunking, estimated_tokens};
use crate::client::{Client, Effort, unavailable};
use crate::isolate::Isolation;

/// How often a text that failed alone is tried again, alone.
const ROUNDS: u32 = 3;
/// How long after a failure a call is preceded by a harmless text.
const DOUBT: Duration = Duration::from_secs(60);
/// The shortest timeout of a request.
const SHORTEST_TIMEOUT: Duration = Duration::from_millis(100);

/// A server. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Remote(Arc<Inner>);

struct Inner {
    client: Client,
    /// When a call failed for a reason that may lie in the server.
    last_failure: Mutex<Option<Instant>>,
    /// Held by a call for some time after that.
    in_doubt: tokio::sync::Mutex<()>,
}

impl Remote {
    pub(crate) fn open(settings: &EmbedderSettings) -> Result<Self, EmbedError> {
        Ok(Self(Arc::new(Inner {
            client: Client::open(settings)?,
            last_failure: Mutex::default(),
            in_doubt: tokio::sync::Mutex::default(),
        })))
    }

    pub(crate) fn model(&self) -> &str {
        self.0.client.model()
    }

    pub(crate) fn dimension(&self) -> usize {
        self.0.client.dimension()
    }

    pub(crate) fn chunks(&self, chunking: Chunking, text: &str) -> Vec<Range<usize>> {
        let text = chunking.readable(text);
        chunking.split(text, &estimated_tokens(text))
    }

    /// Embeds texts, and finds those that the server cannot embed.
    pub(crate) async fn embed(&self, texts: &[String]) -> Result<Vec<Vec<f32>>, EmbedError> {
        let effort = self.0.client.effort(ROUNDS);
        // For some time after a failure, calls go one after the other, and a harmless text goes before each. If the
        // server then fails on the texts of a call, they may be the cause, and not those of a call beside it.
        let is_in_doubt = self.is_in_doubt();
        let _alone = if is_in_doubt { Some(self.0.in_doubt.lock().await) } else { None };
        let embedded = match if is_in_doubt { self.0.client.embed_harmless(effort).await } else { Ok(()) } {
            Ok(()) => Isolation::new(&self.0.client, texts, effort, is_in_doubt).run().await,
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
        let effort = self.0.client.effort(1);
        let effort = Effort { timeout: effort.timeout.min(limit.max(SHORTEST_TIMEOUT)), ..effort };
        Isolation::new(&self.0.client, texts, effort, false).run().await
    }

    fn is_in_doubt(&self) -> bool {
        let last = *self.0.last_failure.lock().unwrap_or_else(PoisonError::into_inner);
        last.is_some_and(|last| last.elapsed() < DOUBT)
    }
}
