//! What a session holds of a key.

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::json::{Json, present};
use crate::key::Attributes;
use crate::state::KeyState;

/// What a session holds of a key: the row, and what syncs keep beside it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cell {
    /// The value; `None` once it is removed.
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "present")]
    pub value: Option<Json>,
    /// What it has beside.
    pub attributes: Attributes,
    /// How often the session itself has put or removed the key. A sync does not count.
    pub writes: u64,
    /// When the request of the last of these was stored; 1970 if there is none.
    pub written_at: DateTime<Utc>,
    /// What the last sync left: the ancestor of the next merge. `None` before the first.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub state: Option<KeyState>,
}

impl Cell {
    /// The first put of a key.
    pub fn new(value: Json, attributes: Attributes, at: DateTime<Utc>) -> Self {
        Self { value: Some(value), attributes, writes: 1, written_at: at, state: None }
    }

    /// The session puts a value, or removes it.
    pub fn write(&mut self, value: Option<Json>, attributes: Attributes, at: DateTime<Utc>) {
        (self.value, self.attributes, self.written_at) = (value, attributes, at);
        self.writes += 1;
    }

    /// The SHA-256 of all that the cell holds, in hexadecimal: whether it has been touched since.
    ///
    /// # Errors
    /// Never: a cell is always JSON.
    pub fn digest(&self) -> Result<String, serde_json::Error> {
        Ok(data_encoding::HEXLOWER.encode(&Sha256::digest(serde_json::to_vec(self)?)))
    }
}
