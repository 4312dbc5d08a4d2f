//! Text embeddings, computed by a model in this process or by a server.
//!
//! ```text
//! kind = "local"  all-MiniLM-L6-v2, 384 dimensions, in this process
//! kind = "http"   any model on a server with the OpenAI API (`/v1/embeddings`), such as Ollama, vLLM or TEI
//! kind = "none"   no embeddings
//! ```
//!
//! A model reads only the beginning of a text. A text is therefore split into chunks ([`Embedder::chunks`]), and each
//! chunk is embedded by itself ([`Embedder::embed`]). Vectors of different models cannot be compared: store the name of
//! the model with every vector.

mod answer;
mod bert;
mod chunk;
mod client;
mod error;
mod http;
mod isolate;
mod local;
mod remote;
mod vector;
mod weights;

use std::fmt;
use std::ops::Range;
use std::time::Duration;

use chunk::Chunking;
use config::{EmbedderKind, EmbedderSettings};
use local::Local;
use remote::Remote;

pub use error::{EmbedError, Refusal};

/// Computes vectors of texts. Cheap to clone: clones share the model, its threads and the rate limits.
#[derive(Clone)]
pub struct Embedder {
    backend: Backend,
    chunking: Chunking,
}

/// What computes the vectors.
#[derive(Clone)]
enum Backend {
    Local(Local),
    Http(Remote),
}

impl Embedder {
    /// Opens the configured embedder; `None` for the kind `none`. For `local`, it reads 90 MB of weights. For `http`,
    /// it sends no request, so that the server may start later.
    ///
    /// # Errors
    /// [`EmbedError::Misconfigured`] names the option that is missing, out of range or wrong, or the model file that is
    /// missing or has another checksum.
    pub async fn open(settings: &EmbedderSettings) -> Result<Option<Self>, EmbedError> {
        settings.check().map_err(EmbedError::Misconfigured)?;
        let backend = match (settings.kind, &settings.weights) {
            (EmbedderKind::None, _) => return Ok(None),
            (EmbedderKind::Local, Some(folder)) => {
                Backend::Local(Local::open(folder, settings.threads).await?)
            }
            (EmbedderKind::Local, None) => return Err(missing("weights")),
            (EmbedderKind::Http, _) => Backend::Http(Remote::open(settings)?),
        };
        let EmbedderSettings { chunk_tokens: tokens, chunk_overlap: overlap, chunk_limit: limit, .. } =
            *settings;
        Ok(Some(Self { backend, chunking: Chunking { tokens, overlap, limit } }))
    }

    /// The name of the model, such as `all-MiniLM-L6-v2`.
    #[must_use]
    pub fn model(&self) -> &str {
        match &self.backend {
            Backend::Local(_) => weights::MODEL,
            Backend::Http(remote) => remote.model(),
        }
    }

    /// The number of dimensions of its vectors.
    #[must_use]
    pub fn dimension(&self) -> usize {
        match &self.backend {
            Backend::Local(local) => local.dimension(),
            Backend::Http(remote) => remote.dimension(),
        }
    }

    /// The chunks of a text that fit the model, as byte ranges at character boundaries, in order. Each chunk shares
    /// some words with the previous one and ends at the end of a sentence if there is one nearby. A blank text has no
    /// chunks, any other text 1 to `chunk_limit`; the rest of a longer text is left out.
    ///
    /// A text of 100 kB takes about 50 ms. A longer text takes no more than the part of it that is read.
    #[must_use]
    pub fn chunks(&self, text: &str) -> Vec<Range<usize>> {
        match &self.backend {
            Backend::Local(local) => local.chunks(self.chunking, text),
            Backend::Http(remote) => remote.chunks(self.chunking, text),
        }
    }

    /// Computes a vector for each text, in order: normalized, with [`Embedder::dimension`] finite numbers. Of a text
    /// that is longer than the model reads, the beginning is embedded, or the server rejects it. Pass few texts at a
    /// time for a low latency.
    ///
    /// # Errors
    /// [`EmbedError::Unavailable`] after all retries, [`EmbedError::Stopped`] and [`EmbedError::Misconfigured`]: retry the
    /// same texts later.
    /// [`EmbedError::Refused`] names rejected texts. It returns no vectors for the other texts: call again without the
    /// rejected ones.
    pub async fn embed(&self, texts: Vec<String>) -> Result<Vec<Vec<f32>>, EmbedError> {
        if texts.is_empty() {
            return Ok(Vec::new());
        }
        match &self.backend {
            Backend::Local(local) => local.embed(texts).await,
            Backend::Http(remote) => remote.embed(&texts).await,
        }
    }

    /// Computes the vector of one text for somebody who waits no longer than `limit`: a request to a server is given up
    /// after that time, so that a text without an answer keeps nobody else waiting.
    ///
    /// # Errors
    /// As [`embed`](Self::embed).
    pub async fn embed_within(&self, text: String, limit: Duration) -> Result<Vec<f32>, EmbedError> {
        let vectors = match &self.backend {
            Backend::Local(local) => local.embed(vec![text]).await?,
            Backend::Http(remote) => remote.embed_within(&[text], limit).await?,
        };
        let none = || EmbedError::Unavailable("the embedder returned no vector".to_owned());
        vectors.into_iter().next().ok_or_else(none)
    }
}

pub(crate) fn missing(option: &str) -> EmbedError {
    EmbedError::Misconfigured(config::missing_embedder_option(option))
}

impl fmt::Debug for Embedder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Embedder")
            .field("model", &self.model())
            .field("dimension", &self.dimension())
            .finish_non_exhaustive()
    }
}
