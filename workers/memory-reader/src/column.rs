//! Values of columns as types of the contract.

use chrono::{DateTime, Utc};
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
    Json::recorded(text).map_err(newer)
}

/// A value of a type of the contract that was stored as JSON.
pub(crate) fn recorded<T: DeserializeOwned>(text: &str) -> Result<T, Fault> {
    serde_json::from_str(text)
        .map_err(|error| newer(format!("unreadable value: {error}; the database is newer than this program")))
}

/// The last microsecond of the year 9999, in microseconds since 1970.
const LAST_TIME: i64 = 253_402_300_799_999_999;

/// A time that a publisher chose. RFC 3339 has no year after 9999, and a row may hold one that is no longer accepted.
pub(crate) fn time(time: DateTime<Utc>) -> DateTime<Utc> {
    let last = || DateTime::from_timestamp_micros(LAST_TIME).unwrap_or(time);
    contract::bounded_time(time).unwrap_or_else(|_| last())
}

fn newer(reason: String) -> Fault {
    Fault { kind: FaultKind::Permanent, reason }
}
