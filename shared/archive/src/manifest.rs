//! Manifests, and the exact bytes that are signed.

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use sha2::{Digest as _, Sha256};
use trust::text::{from_hex, to_hex};
use trust::{PrivateKey, PublicKey};
use uuid::Uuid;

use crate::column::Column;

/// What an archive contains.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// The version of this format.
    pub version: u32,
    /// The id of the archive.
    pub id: Uuid,
    /// The table that was archived.
    pub table: String,
    /// When.
    pub created_at: DateTime<Utc>,
    /// The run of the job that did it.
    pub run: Uuid,
    /// The policies that the rows were archived by.
    pub policies: Vec<Policy>,
    /// The number of rows of the table.
    pub rows: u64,
    /// Whose they are.
    pub users: Vec<i32>,
    /// When the first and the last of them was created.
    pub first_at: DateTime<Utc>,
    /// See `first_at`.
    pub last_at: DateTime<Utc>,
    /// The files: first that of the table, then those with what belongs to its rows.
    pub files: Vec<File>,
}

impl Manifest {
    /// The folder of its archive at the target. No archive is in another one.
    pub fn location(&self) -> String {
        format!("{}/{}/{}", self.table, self.created_at.format("%Y-%m"), self.id)
    }
}

/// A policy, as it was then.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Policy {
    /// Its id.
    pub id: Uuid,
    /// Its user; 0 for the platform.
    pub user_id: i32,
    /// Its chat mode, if it names one.
    pub chat_mode: Option<String>,
    /// Its access tier, if it names one.
    pub access_tier: Option<String>,
    /// How many days rows are kept in the database.
    pub keep_days: i32,
}

/// A file of an archive.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct File {
    /// Its name in the folder of the archive.
    pub name: String,
    /// The table that its rows are of.
    pub table: String,
    /// The number of rows.
    pub rows: u64,
    /// Its length.
    pub bytes: u64,
    /// The SHA-256 of its bytes, in hexadecimal digits.
    pub sha256: String,
    /// Its columns.
    pub columns: Vec<Column>,
}

/// The version of the format.
pub(crate) const VERSION: u32 = 1;

/// The prefix of the hashed bytes, for domain separation from other messages that the key may sign.
const CONTEXT: &[u8] = b"memfleet archive manifest v1\n";

/// A manifest with its signature, as the file has it. The signature is of the bytes of the manifest in it.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Signed {
    manifest: Box<RawValue>,
    key: String,
    signature: String,
}

impl Signed {
    /// Signs a manifest.
    ///
    /// # Errors
    /// If it cannot be serialized, which does not happen.
    pub fn new(manifest: &Manifest, key: &PrivateKey) -> Result<Self, serde_json::Error> {
        let manifest = serde_json::value::to_raw_value(manifest)?;
        let signature = to_hex(&key.sign(&hash(&manifest)));
        Ok(Self { manifest, key: key.name().to_owned(), signature })
    }

    /// The hash that is signed.
    pub fn hash(&self) -> [u8; 32] {
        hash(&self.manifest)
    }

    /// The manifest, if one of these keys has signed it.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn verify(&self, keys: &[PublicKey]) -> Result<Manifest, String> {
        let mut named = keys.iter().filter(|key| key.name() == self.key).peekable();
        if named.peek().is_none() {
            return Err(format!(
                "its manifest is signed with the key {:?}, which archive.public_keys_file does not have",
                self.key
            ));
        }
        let signature: Option<[u8; 64]> = from_hex(&self.signature).and_then(|bytes| bytes.try_into().ok());
        let signature = signature.ok_or("the signature of its manifest is malformed")?;
        let hash = self.hash();
        if !named.any(|key| key.verifies(&hash, &signature)) {
            return Err(format!("the signature of its manifest is not of the key {:?}", self.key));
        }
        let manifest: Manifest = serde_json::from_str(self.manifest.get())
            .map_err(|error| format!("its manifest is of another version: {error}"))?;
        if manifest.version != VERSION {
            return Err(format!(
                "its manifest is of version {}; this program reads {VERSION}",
                manifest.version
            ));
        }
        Ok(manifest)
    }
}

fn hash(manifest: &RawValue) -> [u8; 32] {
    Sha256::new().chain_update(CONTEXT).chain_update(manifest.get().as_bytes()).finalize().into()
}
