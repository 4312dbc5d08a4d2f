//! Values of columns as types of the contract.

use contract::Json;
use serde::de::DeserializeOwned;
use store::{Fault, FaultKind};

/// The variant of an enumeration with this label in the database.
pub(crate) fn label<T: DeserializeOwned>(label: &str) -> Result<T, Fault> {
    serde_json::from_value(label.into())
        .map_err(|_| newer(format!("unknown label {label:?}; the database is newer than this program")))
}

/// A JSON value of the database.
pub(crate) fn json(text: String) -> Result<Json, Fault> {
    Json::new(text).map_err(newer)
}

fn newer(reason: String) -> Fault {
    Fault { kind: FaultKind::Permanent, reason }
}
