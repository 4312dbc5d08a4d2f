use contract::without_password;
use secrecy::{ExposeSecret, SecretString};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// The vector store and its collections.
#[derive(Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct VectorSettings {
    /// The gRPC URL of Qdrant 1.16 or newer, such as `http://127.0.0.1:6334`; `https://` for TLS. Absent: no
    /// vector-indexer and no search.
    pub url: Option<String>,
    /// The alias of the collection that is searched; the names of all collections begin with it. 1 to 48 lower-case
    /// letters, digits, `-` and single `_`. Deployments that share a Qdrant server need an alias each.
    pub alias: String,
    /// The API key, if the server requires one.
    #[serde(serialize_with = "write_key", deserialize_with = "read_key")]
    pub api_key: Option<SecretString>,
    /// The quantization of new collections.
    pub quantization: Quantization,
    /// With quantization: how many candidates per requested hit are rescored with their original vectors, 1 to 100.
    pub oversampling: f64,
    /// The timeout of a call, in milliseconds, 10 to 60000.
    pub timeout_ms: u64,
    /// The interval of `memfleet vectors reconcile --follow`, in seconds, 10 to 604800.
    pub reconcile_every_s: u64,
    /// The model of new collections if no embedder is configured, because publishers send the vectors.
    pub model: Option<String>,
    /// The number of dimensions of `model`, 1 to 8192.
    pub dimension: Option<usize>,
}

/// The quantization of vectors in memory. The original vectors are on disk.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Quantization {
    /// None: the original vectors.
    None,
    /// One byte per dimension: a quarter of the memory.
    #[default]
    Int8,
    /// One bit per dimension: 1/32 of the memory.
    Binary,
}

impl Quantization {
    /// The name in settings and collection names.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Int8 => "int8",
            Self::Binary => "binary",
        }
    }

    /// The quantization of this name.
    pub fn from_name(name: &str) -> Option<Self> {
        match name {
            "none" => Some(Self::None),
            "int8" => Some(Self::Int8),
            "binary" => Some(Self::Binary),
            _ => None,
        }
    }
}

impl Default for VectorSettings {
    fn default() -> Self {
        Self {
            url: None,
            alias: "unified_memory".to_owned(),
            api_key: None,
            quantization: Quantization::default(),
            oversampling: 4.0,
            timeout_ms: 5_000,
            reconcile_every_s: 3_600,
            model: None,
            dimension: None,
        }
    }
}

impl std::fmt::Debug for VectorSettings {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("VectorSettings")
            .field("url", &self.url.as_deref().map(without_password))
            .field("alias", &self.alias)
            .field("quantization", &self.quantization)
            .finish_non_exhaustive()
    }
}

impl PartialEq for VectorSettings {
    fn eq(&self, other: &Self) -> bool {
        // Destructured, so that a new option without a comparison does not compile.
        let Self {
            url,
            alias,
            api_key,
            quantization,
            oversampling,
            timeout_ms,
            reconcile_every_s,
            model,
            dimension,
        } = self;
        let exposed = |key: &Option<SecretString>| key.as_ref().map(|key| key.expose_secret().to_owned());
        *url == other.url
            && *alias == other.alias
            && exposed(api_key) == exposed(&other.api_key)
            && *quantization == other.quantization
            && *oversampling == other.oversampling
            && *timeout_ms == other.timeout_ms
            && *reconcile_every_s == other.reconcile_every_s
            && *model == other.model
            && *dimension == other.dimension
    }
}

impl VectorSettings {
    /// Checks the range of every number.
    ///
    /// # Errors
    /// A sentence that names the first option that is out of range.
    pub fn check(&self) -> Result<(), String> {
        if self.url.as_ref().is_some_and(|url| !url.starts_with("http://") && !url.starts_with("https://")) {
            return Err("vectors.url must begin with http:// or https://".to_owned());
        }
        // Two underscores separate the parts of a collection's name.
        let is_alias = (1..=48).contains(&self.alias.len())
            && self.alias.bytes().all(|byte| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'-' | b'_'))
            && self.alias.starts_with(|first: char| first.is_ascii_alphanumeric())
            && !self.alias.contains("__")
            && self.alias.ends_with(|last: char| last.is_ascii_alphanumeric());
        if !is_alias {
            return Err(
                "vectors.alias must be 1 to 48 lower-case letters, digits, - and single _, and begin and end with a \
                 letter or digit, such as unified_memory"
                    .to_owned(),
            );
        }
        if !(1.0..=100.0).contains(&self.oversampling) {
            return Err(format!("vectors.oversampling is {}; it must be from 1 to 100", self.oversampling));
        }
        if !(10..=60_000).contains(&self.timeout_ms) {
            return Err(format!("vectors.timeout_ms is {}; it must be from 10 to 60000", self.timeout_ms));
        }
        if !(10..=604_800).contains(&self.reconcile_every_s) {
            let every = self.reconcile_every_s;
            return Err(format!("vectors.reconcile_every_s is {every}; it must be from 10 to 604800"));
        }
        match self.dimension {
            Some(dimension) if !(1..=contract::VECTOR_DIMENSIONS).contains(&dimension) => Err(format!(
                "vectors.dimension is {dimension}; it must be from 1 to {}",
                contract::VECTOR_DIMENSIONS
            )),
            Some(_) | None => Ok(()),
        }
    }
}

/// Settings are serialized only to pass them to another process of memfleet, which needs the key too.
fn write_key<S: Serializer>(key: &Option<SecretString>, to: S) -> Result<S::Ok, S::Error> {
    key.as_ref().map(ExposeSecret::expose_secret).serialize(to)
}

fn read_key<'de, D: Deserializer<'de>>(from: D) -> Result<Option<SecretString>, D::Error> {
    Ok(Option::<String>::deserialize(from)?.map(SecretString::from))
}
