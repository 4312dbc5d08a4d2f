use std::path::Path;

use serde::Deserialize;

use crate::TopologyError;
use crate::file::invalid;

/// A service that publishes, as `nats/services.json` describes it.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Service {
    /// Its name: the token of its subjects, and of its inbox.
    pub service: String,
    /// What it is.
    pub description: String,
    /// What it may publish, as `noun:verb` or `noun:*`.
    pub scopes: Vec<String>,
}

const FILE: &str = "nats/services.json";
const SHIPPED: &str = include_str!("../../../nats/services.json");

impl Service {
    /// The services of this program, as the file was when it was built.
    ///
    /// # Errors
    /// [`TopologyError::Invalid`] if it cannot be read; a test sees to it that it can.
    pub fn shipped() -> Result<Vec<Self>, TopologyError> {
        Self::parse(FILE, SHIPPED)
    }

    /// Reads a file like it.
    ///
    /// # Errors
    /// [`TopologyError::Unreadable`] or [`TopologyError::Invalid`].
    pub fn read(path: &Path) -> Result<Vec<Self>, TopologyError> {
        let text = std::fs::read_to_string(path).map_err(|error| TopologyError::Unreadable {
            path: path.display().to_string(),
            problem: error.to_string(),
        })?;
        Self::parse(&path.display().to_string(), &text)
    }

    fn parse(file: &str, text: &str) -> Result<Vec<Self>, TopologyError> {
        serde_json::from_str(text).map_err(|error| invalid(file, error.to_string()))
    }
}
