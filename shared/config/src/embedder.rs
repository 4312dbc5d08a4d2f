//! How texts become vectors.

use std::fmt;
use std::path::PathBuf;

use secrecy::{ExposeSecret, SecretString};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// How texts become vectors.
#[derive(Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct EmbedderSettings {
    /// Who makes the vectors.
    pub kind: EmbedderKind,
    /// For `local`: the folder with `config.json`, `tokenizer.json` and `model.safetensors` of all-MiniLM-L6-v2. `make setup`
    /// puts them into `.memfleet/models/all-MiniLM-L6-v2`.
    pub weights: Option<PathBuf>,
    /// For `local`: how many threads compute, 1 to 64. By default two, or one on a machine with one core.
    pub threads: Option<usize>,
    /// For `http`: where the API is, such as `http://127.0.0.1:11434/v1`; `/embeddings` is added.
    pub url: Option<String>,
    /// For `http`: the name of the model, as the server knows it.
    pub model: Option<String>,
    /// For `http`: how many numbers a vector of that model has, 1 to 8192.
    pub dimension: Option<usize>,
    /// For `http`: the bearer token, if the server wants one.
    #[serde(serialize_with = "write_token", deserialize_with = "read_token")]
    pub token: Option<SecretString>,
    /// For `http`: how many texts a request has at most, 1 to 256.
    pub batch: usize,
    /// For `http`: how long a request may take, in milliseconds, 100 to 600000.
    pub timeout_ms: u64,
    /// For `http`: how often a request is repeated that failed for now, 0 to 10.
    pub retries: u32,
    /// For `http`: how many requests are sent a second at most, 1 to 10000. No limit by default.
    pub requests_per_second: Option<u32>,
    /// How many tokens a piece of a text has at most, 16 to 8192; for `local` at most 254, which is what the model reads. For
    /// `http` tokens are guessed from letters, rather too many than too few.
    pub chunk_tokens: usize,
    /// How many tokens a piece shares with the one before it, 0 to half of `chunk_tokens`.
    pub chunk_overlap: usize,
    /// How many pieces a text is split into at most, 1 to 4096. What comes after them is left out.
    pub chunk_limit: usize,
}

/// Who makes the vectors.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum EmbedderKind {
    /// Nobody: there are no vectors.
    #[default]
    None,
    /// This process, with all-MiniLM-L6-v2.
    Local,
    /// A server with the API of OpenAI, such as Ollama, vLLM or TEI.
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
        // Taken apart, so that a new option cannot be forgotten here.
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
    /// Checks the bounds of every number, and that what the kind needs is there.
    ///
    /// # Errors
    /// A sentence that names the first option that is missing or out of bounds, and the bounds.
    pub fn check(&self) -> Result<(), String> {
        let size = |value: usize| u64::try_from(value).unwrap_or(u64::MAX);
        // What the model reads, without the two tokens that stand around every text.
        let most_tokens = match self.kind {
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
            ("chunk_tokens", size(self.chunk_tokens), 16, most_tokens),
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

/// Says that an option is not set which the kind of the embedder needs.
pub fn missing(option: &str) -> String {
    format!("embedder.{option} is not set, which this embedder.kind needs")
}

/// Settings are written for one purpose: to hand them to another process of ours, which needs the token as well.
fn write_token<S: Serializer>(token: &Option<SecretString>, to: S) -> Result<S::Ok, S::Error> {
    token.as_ref().map(ExposeSecret::expose_secret).serialize(to)
}

fn read_token<'de, D: Deserializer<'de>>(from: D) -> Result<Option<SecretString>, D::Error> {
    Ok(Option::<String>::deserialize(from)?.map(SecretString::from))
}
