//! Texts to vectors, by a model in this process or by a server.
//!
//! ```text
//! kind = "local"  all-MiniLM-L6-v2: 384 numbers, computed here
//! kind = "http"   any model, by a server with the API of OpenAI (`/v1/embeddings`): Ollama, vLLM, TEI and others
//! kind = "none"   no vectors
//! ```
//!
//! A model reads the beginning of a text only, so a text is split into pieces first ([`Embedder::chunks`]), and each piece has
//! a vector of its own ([`Embedder::embed`]). Vectors of different models cannot be compared: who keeps one keeps the name of
//! its model with it.

mod answer;
mod bert;
mod chunk;
mod error;
mod http;
mod local;
mod remote;
mod vector;
mod weights;

use std::fmt;
use std::ops::Range;

use chunk::Cut;
use config::{EmbedderKind, EmbedderSettings};
use local::Local;
use remote::Remote;

pub use error::{EmbedError, Refusal};

/// Makes vectors of texts. Cheap to clone: the clones share the model, its threads and the limits.
#[derive(Clone)]
pub struct Embedder {
    by: By,
    cut: Cut,
}

/// Who makes the vectors.
#[derive(Clone)]
enum By {
    Local(Local),
    Http(Remote),
}

impl Embedder {
    /// Opens the embedder that is configured; `None` for the kind `none`. For `local` this reads 90 MB; for `http` nobody is
    /// asked yet, so that a server may come later.
    ///
    /// # Errors
    /// [`EmbedError::Misconfigured`] names the option that is missing, out of bounds or wrong, or the file of the weights that
    /// is missing or another.
    pub async fn open(settings: &EmbedderSettings) -> Result<Option<Self>, EmbedError> {
        settings.check().map_err(EmbedError::Misconfigured)?;
        let by = match (settings.kind, &settings.weights) {
            (EmbedderKind::None, _) => return Ok(None),
            (EmbedderKind::Local, Some(folder)) => By::Local(Local::open(folder, settings.threads).await?),
            (EmbedderKind::Local, None) => return Err(missing("weights")),
            (EmbedderKind::Http, _) => By::Http(Remote::open(settings)?),
        };
        let EmbedderSettings { chunk_tokens: tokens, chunk_overlap: overlap, chunk_limit: pieces, .. } =
            *settings;
        Ok(Some(Self { by, cut: Cut { tokens, overlap, pieces } }))
    }

    /// The name of the model, such as `all-MiniLM-L6-v2`.
    #[must_use]
    pub fn model(&self) -> &str {
        match &self.by {
            By::Local(_) => weights::MODEL,
            By::Http(remote) => remote.model(),
        }
    }

    /// How many numbers a vector has.
    #[must_use]
    pub fn dimension(&self) -> usize {
        match &self.by {
            By::Local(local) => local.dimension(),
            By::Http(remote) => remote.dimension(),
        }
    }

    /// The pieces of a text that fit the model, as places of bytes, in order, in whole letters. Each shares some words with the
    /// one before it, and ends with a sentence where one ends nearby. At least one for a text that is not blank, none for one
    /// that is, and at most `chunk_limit`: the rest of the text is left out.
    ///
    /// A text of 100 kB takes some 50 ms, and a longer one that is left out no more than what is read of it.
    #[must_use]
    pub fn chunks(&self, text: &str) -> Vec<Range<usize>> {
        match &self.by {
            By::Local(local) => local.chunks(self.cut, text),
            By::Http(remote) => remote.chunks(self.cut, text),
        }
    }

    /// A vector for each text, in their order: [`Embedder::dimension`] numbers, finite, of length one. Of a text that is longer
    /// than the model reads, its beginning counts, or else the server refuses it. Who needs them soon asks for few at a time.
    ///
    /// # Errors
    /// [`EmbedError::Unavailable`] after all retries, and [`EmbedError::Misconfigured`]: the same texts can be tried later.
    /// [`EmbedError::Refused`] names texts that are not taken; there are no vectors for the others then either, before they are
    /// asked for without these.
    pub async fn embed(&self, texts: Vec<String>) -> Result<Vec<Vec<f32>>, EmbedError> {
        if texts.is_empty() {
            return Ok(Vec::new());
        }
        match &self.by {
            By::Local(local) => local.embed(texts).await,
            By::Http(remote) => remote.embed(texts).await,
        }
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
