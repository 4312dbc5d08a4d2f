use std::path::Path;

use async_nats::jetstream::{consumer, stream};
use contract::WorkerInfo;
use serde_json::{Map, Value};

use crate::document::{self, Document};
use crate::{TopologyError, invalid};

/// A stream as its document describes it.
#[derive(Clone, Debug, PartialEq)]
pub struct Stream {
    /// Its name.
    pub name: String,
    /// The fields that the document names, as the JetStream API spells them.
    pub config: Map<String, Value>,
}

/// A durable consumer as its document describes it.
#[derive(Clone, Debug, PartialEq)]
pub struct Consumer {
    /// The stream it consumes.
    pub stream: String,
    /// Its durable name.
    pub name: String,
    /// The fields that the document names, as the JetStream API spells them.
    pub config: Map<String, Value>,
}

/// Streams and consumers that a broker should have.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Topology {
    /// In the order of their names.
    pub streams: Vec<Stream>,
    /// In the order of their names. The stream of a consumer need not be among `streams`.
    pub consumers: Vec<Consumer>,
}

impl Topology {
    /// The streams and consumers of the workers of the catalogue.
    ///
    /// # Errors
    /// [`TopologyError::Invalid`] for a field that the JetStream API does not have; a test rules it out.
    pub fn shipped() -> Result<Self, TopologyError> {
        Self::of(contract::WORKERS)
    }

    /// The streams and consumers of these workers.
    ///
    /// # Errors
    /// As [`Topology::shipped`].
    pub fn of(workers: &[WorkerInfo]) -> Result<Self, TopologyError> {
        Ok(Self {
            streams: parse_all(&document::streams(workers)?, Stream::parse)?,
            consumers: parse_all(&document::consumers(workers)?, Consumer::parse)?,
        })
    }

    /// Reads `streams/*.json` and `consumers/*.json` below a folder, in the order of their names.
    ///
    /// # Errors
    /// [`TopologyError::Unreadable`] for a folder or file that cannot be read, [`TopologyError::Invalid`] for a
    /// file that is not a configuration.
    pub fn read(folder: &Path) -> Result<Self, TopologyError> {
        Ok(Self {
            streams: read_folder(&folder.join("streams"), Stream::parse)?,
            consumers: read_folder(&folder.join("consumers"), Consumer::parse)?,
        })
    }

    /// The same topology, with every stream replicated on `replicas` servers of a cluster. Consumers have the replicas
    /// of their streams.
    pub fn with_replicas(mut self, replicas: usize) -> Self {
        for stream in &mut self.streams {
            stream.config.insert("num_replicas".to_owned(), replicas.into());
        }
        self
    }
}

impl Stream {
    fn parse(file: &str, text: &str) -> Result<Self, TopologyError> {
        let config = object(file, parse(file, text)?)?;
        let parsed = as_stream(&config).and_then(|known| check_known(&config, &known));
        parsed.map_err(|problem| invalid(file, problem))?;
        Ok(Self { name: text_of(file, &config, "name")?, config })
    }
}

impl Consumer {
    fn parse(file: &str, text: &str) -> Result<Self, TopologyError> {
        let mut whole = object(file, parse(file, text)?)?;
        let stream = text_of(file, &whole, "stream_name")?;
        let config = whole.remove("config").ok_or_else(|| invalid(file, "config is missing".to_owned()))?;
        let config = object(file, config)?;
        let parsed = as_consumer(&config).and_then(|known| check_known(&config, &known));
        parsed.map_err(|problem| invalid(file, problem))?;
        Ok(Self { stream, name: text_of(file, &config, "durable_name")?, config })
    }
}

/// A stream's configuration as the client represents it, so that two spellings of the same value are equal.
pub(crate) fn as_stream(config: &Map<String, Value>) -> Result<Map<String, Value>, String> {
    let known: stream::Config =
        serde_json::from_value(Value::Object(config.clone())).map_err(|error| error.to_string())?;
    as_map(serde_json::to_value(known))
}

/// A consumer's configuration as the client represents it.
pub(crate) fn as_consumer(config: &Map<String, Value>) -> Result<Map<String, Value>, String> {
    let known: consumer::Config =
        serde_json::from_value(Value::Object(config.clone())).map_err(|error| error.to_string())?;
    as_map(serde_json::to_value(known))
}

fn as_map(value: serde_json::Result<Value>) -> Result<Map<String, Value>, String> {
    match value {
        Ok(Value::Object(map)) => Ok(map),
        Ok(_) => Err("is not a JSON object".to_owned()),
        Err(error) => Err(error.to_string()),
    }
}

/// Rejects a misspelt field, which the server would otherwise ignore. The client omits fields with their default value,
/// so a misspelt field with a default value is not detected.
fn check_known(config: &Map<String, Value>, known: &Map<String, Value>) -> Result<(), String> {
    match config.iter().find(|(field, value)| !known.contains_key(*field) && !is_default(value)) {
        Some((field, _)) => {
            Err(format!("{field} is not a field of the JetStream API that this program knows"))
        }
        None => Ok(()),
    }
}

fn is_default(value: &Value) -> bool {
    match value {
        Value::Null | Value::Bool(false) => true,
        Value::Number(number) => number.as_i64() == Some(0),
        Value::String(text) => text.is_empty(),
        Value::Array(items) => items.is_empty(),
        Value::Object(fields) => fields.is_empty(),
        Value::Bool(true) => false,
    }
}

fn parse_all<T>(
    documents: &[Document],
    parse: impl Fn(&str, &str) -> Result<T, TopologyError>,
) -> Result<Vec<T>, TopologyError> {
    documents.iter().map(|document| parse(&document.path, &document.text)).collect()
}

fn read_folder<T>(
    folder: &Path,
    parse: impl Fn(&str, &str) -> Result<T, TopologyError>,
) -> Result<Vec<T>, TopologyError> {
    let unreadable = |path: &Path, error: std::io::Error| TopologyError::Unreadable {
        path: path.display().to_string(),
        problem: error.to_string(),
    };
    let mut files = Vec::new();
    for entry in std::fs::read_dir(folder).map_err(|error| unreadable(folder, error))? {
        let path = entry.map_err(|error| unreadable(folder, error))?.path();
        if path.extension().is_some_and(|extension| extension == "json") {
            files.push(path);
        }
    }
    files.sort_by(|a, b| a.file_stem().cmp(&b.file_stem()));
    let read = |path: &std::path::PathBuf| {
        let text = std::fs::read_to_string(path).map_err(|error| unreadable(path, error))?;
        parse(&path.display().to_string(), &text)
    };
    files.iter().map(read).collect()
}

fn parse(file: &str, text: &str) -> Result<Value, TopologyError> {
    serde_json::from_str(text).map_err(|error| invalid(file, error.to_string()))
}

fn object(file: &str, value: Value) -> Result<Map<String, Value>, TopologyError> {
    match value {
        Value::Object(map) => Ok(map),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) | Value::Array(_) => {
            Err(invalid(file, "expected a JSON object".to_owned()))
        }
    }
}

fn text_of(file: &str, map: &Map<String, Value>, field: &str) -> Result<String, TopologyError> {
    match map.get(field).and_then(Value::as_str) {
        Some(text) if !text.is_empty() => Ok(text.to_owned()),
        Some(_) | None => Err(invalid(file, format!("{field} is missing or not a string"))),
    }
}
