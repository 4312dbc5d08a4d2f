//! The folder `nats/` as documents that are generated from the catalogue, for operators who apply them with other
//! tools.

use contract::{WORKERS, WorkerInfo};
use serde::Serialize;

use crate::invalid;
use crate::permission::{INCLUDED_NKEYS, render};
use crate::{Service, TopologyError, catalogue};

/// A file of the folder `nats/`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Document {
    /// Its path in the folder, such as `streams/CONTEXT.json`.
    pub path: String,
    /// Its text.
    pub text: String,
}

/// The streams, the consumers and `accounts.conf`.
///
/// # Errors
/// [`TopologyError::Invalid`] for a configuration that is not JSON; a test rules it out.
pub fn documents(services: &[Service]) -> Result<Vec<Document>, TopologyError> {
    let mut documents = streams(WORKERS)?;
    documents.extend(consumers(WORKERS)?);
    documents.push(Document { path: "accounts.conf".to_owned(), text: render(services, INCLUDED_NKEYS) });
    Ok(documents)
}

/// A document for each stream, by its name.
pub(crate) fn streams(workers: &[WorkerInfo]) -> Result<Vec<Document>, TopologyError> {
    catalogue::streams(workers).iter().map(|stream| json("streams", &stream.name, stream)).collect()
}

/// A document for each durable consumer, by its name.
pub(crate) fn consumers(workers: &[WorkerInfo]) -> Result<Vec<Document>, TopologyError> {
    let consumers = catalogue::consumers(workers);
    consumers.iter().map(|consumer| json("consumers", &consumer.config.durable_name, consumer)).collect()
}

fn json(folder: &str, name: &str, config: &impl Serialize) -> Result<Document, TopologyError> {
    let path = format!("{folder}/{name}.json");
    match serde_json::to_string_pretty(config) {
        Ok(text) => Ok(Document { path, text: text + "\n" }),
        Err(error) => Err(invalid(&path, error.to_string())),
    }
}
