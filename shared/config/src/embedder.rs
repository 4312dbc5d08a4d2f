//! Settings of the embedder.

use std::fmt;
use std::path::PathBuf;

use secrecy::{ExposeSecret, SecretString};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// The embedder, which computes vectors of texts.
#[derive(Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct EmbedderSettings {
    /// The kind of embedder.
    pub kind: EmbedderKind,
    /// For `local`: the folder with `config.json`, `tokenizer.json` and `model.safetensors` of all-MiniLM-L6-v2.
    /// `make setup` downloads them to `.memfleet/models/all-MiniLM-L6-v2`.
    pub weights: Option<PathBuf>,
    /// For `local`: the number of threads, 1 to 64. Default: 2, or 1 on a machine with one core.
    pub threads: Option<usize>,
    /// For `http`: the URL of the API, such as `http://127.0.0.1:11434/v1`; `/embeddings` is appended.
    pub url: Option<String>,
    /// For `http`: the name of the model on the server.
    pub model: Option<String>,
    /// For `http`: the number of dimensions of the model, 1 to 8192.
    pub dimension: Option<usize>,
    /// For `http`: the bearer token, if the server requires one.
    #[serde(serialize_with = "write_token", deserialize_with = "read_token")]
    pub token: Option<SecretString>,
    /// For `http`: the most texts of a request, 1 to 256.
    pub batch: usize,
    /// For `http`: the timeout of a request, in milliseconds, 100 to 600000.
    pub timeout_ms: u64,
    /// For `http`: how often a request is retried after a transient failure, 0 to 10.
    pub retries: u32,
    /// For `http`: the most requests per second, 1 to 10000. Default: no limit.
    pub requests_per_second: Option<u32>,
    /// The maximum number of tokens of a chunk of a text, 16 to 8192; for `local` at most 254, the limit of the model.
    /// For `http`, the number of tokens is estimated from the characters, rather too high than too low.
    pub chunk_tokens: usize,
    /// The number of tokens that a chunk shares with the previous one, 0 to half of `chunk_tokens`.
    pub chunk_overlap: usize,
    /// The maximum number of chunks of a text, 1 to 4096. The rest of a longer text is not embedded.
    pub chunk_limit: usize,
}

/// The kind of embedder.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum EmbedderKind {
    /// No embedder: no vectors are computed.
    #[default]
    None,
    /// all-MiniLM-L6-v2 in this process.
    Local,
    /// A server with the OpenAI API, such as Ollama, vLLM or TEI.
    Http,
}

impl Default for EmbedderSettings {
    fn default() -> Self {
        Self {
            kind: EmbedderKind::None,
            weights: None,
            threads: None,
            url: None,
            model: None,
            dimension: None,
            token: None,
            batch: 32,
            timeout_ms: 30_000,
            retries: 3,
            requests_per_second: None,
            chunk_tokens: 200,
            chunk_overlap: 40,
            chunk_limit: 64,
        }
    }
}

impl fmt::Debug for EmbedderSettings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EmbedderSettings")
            .field("kind", &self.kind)
            .field("model", &self.model)
            .field("dimension", &self.dimension)
            .finish_non_exhaustive()
    }
}

impl PartialEq for EmbedderSettings {
    fn eq(&self, other: &Self) -> bool {
        // Destructured, so that a new option without a comparison does not compile.
        let Self {
            kind,
            weights,
            threads,
            url,
            model,
            dimension,
            token,
            batch,
            timeout_ms,
            retries,
            requests_per_second,
            chunk_tokens,
            chunk_overlap,
            chunk_limit,
        } = self;
        let exposed =
            |token: &Option<SecretString>| token.as_ref().map(|token| token.expose_secret().to_owned());
        *kind == other.kind
            && *weights == other.weights
            && *threads == other.threads
            && *url == other.url
            && *model == other.model
            && *dimension == other.dimension
            && exposed(token) == exposed(&other.token)
            && *batch == other.batch
            && *timeout_ms == other.timeout_ms
            && *retries == other.retries
            && *requests_per_second == other.requests_per_second
            && *chunk_tokens == other.chunk_tokens
            && *chunk_overlap == other.chunk_overlap
            && *chunk_limit == other.chunk_limit
    }
}

impl EmbedderSettings {
    /// Checks the range of every number, and that the options that the kind requires are set.
    ///
    /// # Errors
    /// A sentence that names the first option that is missing or out of range, and the range.
    pub fn check(&self) -> Result<(), String> {
        let size = |value: usize| u64::try_from(value).unwrap_or(u64::MAX);
        // The limit of the model, without the tokens `[CLS]` and `[SEP]`.
        let max_tokens = match self.kind {
            EmbedderKind::Local => 254,
            EmbedderKind::None | EmbedderKind::Http => 8_192,
        };
        let bounds = [
            ("threads", self.threads.map_or(1, size), 1, 64),
            ("dimension", self.dimension.map_or(1, size), 1, 8_192),
            ("batch", size(self.batch), 1, 256),
            ("timeout_ms", self.timeout_ms, 100, 600_000),
            ("retries", self.retries.into(), 0, 10),
            ("requests_per_second", self.requests_per_second.map_or(1, u64::from), 1, 10_000),
            ("chunk_tokens", size(self.chunk_tokens), 16, max_tokens),
            ("chunk_overlap", size(self.chunk_overlap), 0, size(self.chunk_tokens / 2)),
            ("chunk_limit", size(self.chunk_limit), 1, 4_096),
        ];
        if let Some((name, value, least, most)) =
            bounds.iter().find(|(_, value, least, most)| value < least || value > most)
        {
            let problem = format!("embedder.{name} is {value}; it must be from {least} to {most}");
            return Err(problem);
        }
        let lacking = match self.kind {
            EmbedderKind::Local if self.weights.is_none() => Some("weights"),
            EmbedderKind::Http if self.url.is_none() => Some("url"),
            EmbedderKind::Http if self.model.is_none() => Some("model"),
            EmbedderKind::Http if self.dimension.is_none() => Some("dimension"),
            EmbedderKind::None | EmbedderKind::Local | EmbedderKind::Http => None,
        };
        lacking.map_or(Ok(()), |option| Err(missing(option)))
    }
}

/// The message that an option that the kind of the embedder requires is not set.
pub fn missing(option: &str) -> String {
    format!("embedder.{option} is not set, but embedder.kind requires it")
}

/// Settings are serialized only to pass them to another process of memfleet, which needs the token too.
fn write_token<S: Serializer>(token: &Option<SecretString>, to: S) -> Result<S::Ok, S::Error> {
    token.as_ref().map(ExposeSecret::expose_secret).serialize(to)
}

fn read_token<'de, D: Deserializer<'de>>(from: D) -> Result<Option<SecretString>, D::Error> {
    Ok(Option::<String>::deserialize(from)?.map(SecretString::from))
}
