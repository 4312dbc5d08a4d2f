//! Errors of embedding.

/// Why texts were not embedded. No message quotes a text, a response or a token.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EmbedError {
    /// A transient failure: the server is unreachable, busy or failing, or its response is invalid. Retry later.
    #[error("the embedder is unavailable: {0}")]
    Unavailable(String),
    /// The server responded until it got these texts, and does not respond since. One of them may be what stops it.
    /// Retry later; if that happens again and again with the same texts, they are the cause.
    #[error("the embedder responded until it got these texts: {0}")]
    Stopped(String),
    /// Some of the texts are rejected permanently: the server rejects them, or it fails on each of them again and again
    /// and embeds a harmless text meanwhile. The others can be embedded.
    #[error("{0}")]
    Refused(Refusal),
    /// An operator must correct the configuration, the server or the model files.
    #[error("the embedder is misconfigured: {0}")]
    Misconfigured(String),
}

impl EmbedError {
    /// Whether the same texts may succeed later.
    #[must_use]
    pub fn is_transient(&self) -> bool {
        match self {
            Self::Unavailable(_) | Self::Stopped(_) | Self::Misconfigured(_) => true,
            Self::Refused(_) => false,
        }
    }
}

/// The texts that are rejected, and the reason.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{} of the texts are rejected: {reason}", texts.len())]
pub struct Refusal {
    /// The indexes of rejected texts in the call, ascending, at least one. There may be more rejected texts, because
    /// the search for them is limited.
    pub texts: Vec<usize>,
    /// The reason.
    pub reason: String,
}
