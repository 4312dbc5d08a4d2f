//! Why texts did not become vectors.

/// Why texts did not become vectors. No reason quotes a text, an answer or a token.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EmbedError {
    /// Not now: the server cannot be reached, is busy, fails or answers nonsense. Try again later.
    #[error("texts cannot be embedded now: {0}")]
    Unavailable(String),
    /// Never: some of these texts are not taken, however often they are tried. The others are.
    #[error("{0}")]
    Refused(Refusal),
    /// Not before an operator mends the configuration, the server or the file of the weights.
    #[error("the embedder is misconfigured: {0}")]
    Misconfigured(String),
}

impl EmbedError {
    /// Whether the same texts may succeed later, without anybody changing them.
    #[must_use]
    pub fn is_transient(&self) -> bool {
        match self {
            Self::Unavailable(_) | Self::Misconfigured(_) => true,
            Self::Refused(_) => false,
        }
    }
}

/// Which texts are refused, and why.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{} of the texts are refused: {reason}", texts.len())]
pub struct Refusal {
    /// The places of the texts that are known to be at fault, in the order of the call, ascending, at least one. There may
    /// be more: the search for them is bounded.
    pub texts: Vec<usize>,
    /// Why.
    pub reason: String,
}
