//! The receipt of an erasure: what was in each store before it and after it, signed with a key that no database has. It names nobody.

use std::path::Path;

use ::archive::Target;
use audit::{ErasureStatement, Inclusion};
use chrono::{DateTime, Utc};
use config::{PrivacySettings, Settings};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use sha2::{Digest as _, Sha256};
use trust::text::{from_hex, to_hex};
use trust::{PrivateKey, PublicKey};
use uuid::Uuid;

use crate::error::{PrivacyError, Store};
use crate::step::Removal;

/// The version of the format.
const VERSION: u32 = 1;
/// The prefix of the hashed bytes, for domain separation from other messages that the key may sign.
const CONTEXT: &[u8] = b"memfleet erasure receipt v1\n";

/// What no erasure reaches.
const OUT_OF_REACH: [&str; 2] = [
    "what the memories of other persons say of this person",
    "logs of messages, copies and stores outside of memfleet",
];
/// What is left for a while, or without a name.
const REMAINS: [&str; 11] = [
    "the files of PostgreSQL keep deleted rows until their pages are written anew (VACUUM FULL), and its log until it is recycled",
    "the samples of PostgreSQL's planner have values of deleted rows until the next ANALYZE",
    "the files of the vector store keep deleted vectors, without text, under a pseudonym until it optimizes its segments and cuts off its log",
    "backups of the databases: after a restore, `memfleet privacy reapply` erases again; without the data keys, their encrypted fields do not open",
    "the logs of replicated streams of NATS, until their next snapshot",
    "earlier versions of archives, if the bucket keeps versions",
    "exports of the person, encrypted, in the folder privacy.export_folder and wherever an operator wrote them",
    "files of archive runs that were killed, until `memfleet archive clean`",
    "logs of the processes, which have ids of users and requests, and no content",
    "the memory of running processes, until it is used for something else; data keys until keys.cache_s later and the next request that needs a key",
    "the audit trail, under a token that nobody can assign to a person any more",
];

/// What a receipt says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Body {
    /// The version of this format.
    pub version: u32,
    /// The id of the erasure, which was that of its request.
    pub erasure: Uuid,
    /// `erase`, or `anonymise`: then sums over all persons who were anonymised have what the rows counted.
    pub kind: String,
    /// The keyed hash of the person's id, in hexadecimal digits.
    pub tombstone: String,
    /// The name of the key of the hash, which the main database has.
    pub tombstone_key: String,
    /// By what the key store knows the person again. Receipts of earlier versions do not have it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key_store_tombstone: Option<Tombstone>,
    /// When it was requested.
    pub requested_at: DateTime<Utc>,
    /// When the fence was up.
    pub fenced_at: Option<DateTime<Utc>>,
    /// When the last of the person was deleted.
    pub erased_at: DateTime<Utc>,
    /// What each store had.
    pub stores: Vec<Line>,
    /// What was stated of the audit trail.
    pub statements: Stated,
    /// What no erasure reaches.
    pub out_of_reach: Vec<String>,
    /// What is left for a while, or without a name.
    pub remains: Vec<String>,
}

/// By what a database knows a person again.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Tombstone {
    /// The keyed hash of the person's id, in hexadecimal digits.
    pub hash: String,
    /// The name of the key, which the database has.
    pub key: String,
}

impl Tombstone {
    pub(crate) fn new(hash: &[u8], key: String) -> Self {
        Self { hash: to_hex(hash), key }
    }

    /// The hash as bytes.
    pub(crate) fn bytes(&self) -> Vec<u8> {
        from_hex(&self.hash).unwrap_or_default()
    }
}

/// What a store had of the person.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Line {
    /// `postgresql`, `key-store`, `qdrant`, `nats` or `archives`.
    pub store: String,
    /// The table, collection or stream.
    pub name: String,
    /// Before the first deletion.
    pub before: u64,
    /// When nothing was left to delete.
    pub after: u64,
}

impl Line {
    pub(crate) fn emptied(store: &str, name: impl Into<String>, before: u64) -> Self {
        Self { store: store.to_owned(), name: name.into(), before, after: 0 }
    }
}

/// The statements that rows of the audit trail may be missing.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Stated {
    /// How many there are: thousands, if the person had many events.
    pub count: u64,
    /// How many rows they name.
    pub rows: u64,
    /// The SHA-256 of the roots of their Merkle trees, in the order of their numbers, in hexadecimal digits.
    pub roots: String,
}

impl Stated {
    fn new(statements: &[ErasureStatement]) -> Self {
        Self {
            count: u64::try_from(statements.len()).unwrap_or(u64::MAX),
            rows: statements.iter().map(|one| u64::from(one.count)).sum(),
            roots: to_hex(&audit::hash_of_roots(statements.iter().map(|one| &one.root))),
        }
    }
}

impl Body {
    /// Also notes how many places at the archive target could not be read.
    pub(crate) fn with_unreadable(mut self, places: u64) -> Self {
        if places > 0 {
            self.remains.push(format!(
                "{places} places at the archive target, which no row of the database names, could not be read: nobody can tell whose rows are there"
            ));
        }
        self
    }

    pub(crate) fn new(
        (erasure, removal): (Uuid, Removal),
        tombstones: (Tombstone, Option<Tombstone>),
        times: (DateTime<Utc>, Option<DateTime<Utc>>, DateTime<Utc>),
        stores: Vec<Line>,
        statements: &[ErasureStatement],
    ) -> Self {
        let (requested_at, fenced_at, erased_at) = times;
        Self {
            version: VERSION,
            erasure,
            kind: removal.as_str().to_owned(),
            tombstone: tombstones.0.hash,
            tombstone_key: tombstones.0.key,
            key_store_tombstone: tombstones.1,
            requested_at,
            fenced_at,
            erased_at,
            stores,
            statements: Stated::new(statements),
            out_of_reach: OUT_OF_REACH.map(str::to_owned).to_vec(),
            remains: REMAINS.map(str::to_owned).to_vec(),
        }
    }

    /// The text that is signed, and its digest, which the audit trail commits to.
    ///
    /// # Errors
    /// If it cannot be serialized, which does not happen.
    pub(crate) fn write(&self) -> Result<(String, [u8; 32]), PrivacyError> {
        let text = serde_json::to_string(self).map_err(malformed)?;
        let digest = digest(&text);
        Ok((text, digest))
    }

    /// The tombstone as bytes.
    pub(crate) fn tombstone_bytes(&self) -> Vec<u8> {
        from_hex(&self.tombstone).unwrap_or_default()
    }
}

fn digest(body: &str) -> [u8; 32] {
    Sha256::digest(body.as_bytes()).into()
}

fn malformed(error: serde_json::Error) -> PrivacyError {
    PrivacyError::NotGenuine(format!("the receipt is malformed: {error}"))
}

fn not_genuine(problem: impl Into<String>) -> PrivacyError {
    PrivacyError::NotGenuine(problem.into())
}

/// A receipt as its file has it. The signature is of the bytes of body and audit in it.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Signed {
    body: Box<RawValue>,
    audit: Box<RawValue>,
    key: String,
    signature: String,
}

impl Signed {
    fn hash(&self) -> [u8; 32] {
        let (body, audit) = (self.body.get(), self.audit.get());
        let length = u64::try_from(body.len()).unwrap_or(u64::MAX);
        let hash = Sha256::new().chain_update(CONTEXT).chain_update(length.to_be_bytes());
        hash.chain_update(body).chain_update(audit).finalize().into()
    }
}

/// A receipt whose signature one of the accepted keys made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Receipt {
    /// What it says.
    pub body: Body,
    /// That the audit trail commits to it.
    pub audit: Inclusion,
    /// The content of its file.
    pub(crate) text: String,
    /// The digest of the bytes of the body.
    digest: [u8; 32],
}

/// Signs a receipt, and gives the content of its file. The same input gives the same content.
///
/// # Errors
/// [`PrivacyError::NotGenuine`] if the body is no JSON.
pub(crate) fn sign(body: String, audit: &Inclusion, key: &PrivateKey) -> Result<String, PrivacyError> {
    let mut signed = Signed {
        body: RawValue::from_string(body).map_err(malformed)?,
        audit: serde_json::value::to_raw_value(audit).map_err(malformed)?,
        key: key.name().to_owned(),
        signature: String::new(),
    };
    signed.signature = to_hex(&key.sign(&signed.hash()));
    let mut content = serde_json::to_string(&signed).map_err(malformed)?;
    content.push('\n');
    Ok(content)
}

impl Receipt {
    /// Reads the content of a file, and checks the signature.
    ///
    /// # Errors
    /// [`PrivacyError::NotGenuine`] if it is no receipt, or none of these keys signed it.
    pub fn read(content: &[u8], keys: &[PublicKey]) -> Result<Self, PrivacyError> {
        let text = String::from_utf8(content.to_vec());
        let text = text.map_err(|_| not_genuine("the receipt is malformed: it is no text"))?;
        let signed: Signed = serde_json::from_str(&text).map_err(malformed)?;
        let mut named = keys.iter().filter(|key| key.name() == signed.key).peekable();
        if named.peek().is_none() {
            return Err(not_genuine(format!(
                "the receipt is signed with the key {:?}, which privacy.public_keys_file does not have",
                signed.key
            )));
        }
        let signature = from_hex(&signed.signature).and_then(|bytes| bytes.try_into().ok());
        let signature = signature.ok_or_else(|| not_genuine("the signature of the receipt is malformed"))?;
        let hash = signed.hash();
        if !named.any(|key| key.verifies(&hash, &signature)) {
            return Err(not_genuine(format!(
                "the signature of the receipt is not of the key {:?}",
                signed.key
            )));
        }
        let body: Body = serde_json::from_str(signed.body.get()).map_err(malformed)?;
        if body.version != VERSION {
            let found = body.version;
            return Err(not_genuine(format!(
                "the receipt is of version {found}; this program reads {VERSION}"
            )));
        }
        let audit = serde_json::from_str(signed.audit.get()).map_err(malformed)?;
        Ok(Self { body, audit, digest: digest(signed.body.get()), text })
    }

    /// Whether this is its body.
    pub(crate) fn says(&self, body: &str) -> bool {
        self.digest == digest(body)
    }

    /// Checks that the audit trail commits to it: the hash and the number of the seal.
    ///
    /// # Errors
    /// [`PrivacyError::NotGenuine`] if its row of the trail is of something else, or lies under no seal that one of these keys signed.
    pub fn verify_audit(&self, seal_keys: &[PublicKey]) -> Result<(i64, [u8; 32]), PrivacyError> {
        if self.audit.body_of(self.body.erasure) != Some(self.digest) {
            return Err(not_genuine("the audit row of the receipt is of another receipt"));
        }
        let hash = self.audit.verify(seal_keys).map_err(not_genuine)?;
        Ok((self.audit.seal.number, hash))
    }
}

/// The key that signs receipts and statements.
///
/// # Errors
/// [`PrivacyError::Settings`] if there is none, or it cannot be used.
pub fn signing_key(settings: &PrivacySettings) -> Result<PrivateKey, PrivacyError> {
    let Some(file) = &settings.receipt_key_file else {
        return Err(PrivacyError::Settings(
            "privacy.receipt_key_file is not set; receipts are signed with it (`memfleet audit key generate` creates a key)".to_owned(),
        ));
    };
    PrivateKey::read(Path::new(file))
        .map_err(|error| PrivacyError::Settings(format!("privacy.receipt_key_file: {error}")))
}

/// The keys whose signatures are accepted; none if none is configured.
///
/// # Errors
/// [`PrivacyError::Settings`] if a file cannot be read.
pub fn public_keys(settings: &PrivacySettings) -> Result<Vec<PublicKey>, PrivacyError> {
    match &settings.public_keys_file {
        Some(file) => PublicKey::read_all(Path::new(file))
            .map_err(|error| PrivacyError::Settings(format!("privacy.public_keys_file: {error}"))),
        None if settings.receipt_key_file.is_some() => Ok(vec![signing_key(settings)?.public()]),
        None => Ok(Vec::new()),
    }
}

/// The place of receipts: `privacy.receipt_url`, or another one.
///
/// # Errors
/// [`PrivacyError::Settings`] if none is configured, [`PrivacyError::Away`] if it cannot be used.
pub fn target(settings: &Settings, url: Option<&str>) -> Result<Target, PrivacyError> {
    let url = url.or(settings.privacy.receipt_url.as_deref()).ok_or_else(|| {
        PrivacyError::Settings(
            "privacy.receipt_url is not set; it names the folder or the S3 bucket of receipts, such as file:///var/lib/memfleet/receipts"
                .to_owned(),
        )
    })?;
    Target::open_url("privacy.receipt_url", url, &settings.archive).map_err(away)
}

pub(crate) fn away(error: ::archive::ArchiveError) -> PrivacyError {
    PrivacyError::Away { store: Store::Receipts, reason: error.to_string() }
}

/// The receipt of an erasure at a target.
///
/// # Errors
/// [`PrivacyError::Away`] if it cannot be read, [`PrivacyError::NotGenuine`] if none of these keys signed it, or it is of another erasure.
pub(crate) async fn read_one(
    target: &Target,
    keys: &[PublicKey],
    erasure: Uuid,
) -> Result<Receipt, PrivacyError> {
    let content = target.get_receipt(erasure).await.map_err(away)?;
    let receipt =
        Receipt::read(&content, keys).map_err(|error| not_genuine(format!("{erasure}.json: {error}")))?;
    if receipt.body.erasure != erasure {
        return Err(not_genuine(format!("{erasure}.json is the receipt of {}", receipt.body.erasure)));
    }
    Ok(receipt)
}

/// All receipts at a target, in the order of their ids.
///
/// # Errors
/// [`PrivacyError::Away`] if they cannot be read, [`PrivacyError::NotGenuine`] for one that none of these keys signed.
pub async fn read_all(target: &Target, keys: &[PublicKey]) -> Result<Vec<Receipt>, PrivacyError> {
    let mut receipts = Vec::new();
    for erasure in target.receipts().await.map_err(away)? {
        receipts.push(read_one(target, keys, erasure).await?);
    }
    Ok(receipts)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use audit::SealHeader;

    use super::*;

    fn key() -> PrivateKey {
        PrivateKey::parse(&format!("receipt private {}", "07".repeat(32))).unwrap()
    }

    fn body() -> Body {
        let at = DateTime::from_timestamp(1_800_000_000, 0).unwrap();
        let stores = vec![Line::emptied("postgresql", "users", 1), Line::emptied("qdrant", "c", 0)];
        Body::new(
            (Uuid::from_u128(7), Removal::Erase),
            (Tombstone::new(&[1; 32], "tombstone-1".to_owned()), None),
            (at, None, at),
            stores,
            &[],
        )
    }

    /// As the trail has it, but for the seal, whose signature is checked by the audit trail's own tests.
    fn inclusion(body: &[u8; 32]) -> Inclusion {
        let erasure = Uuid::from_u128(7);
        Inclusion {
            row: format!(
                r#"[9, "{}", 1, null, "operator", null, null, "erasures", "{erasure}", "INSERT", null, "{}", []]"#,
                Uuid::nil(),
                to_hex(body)
            ),
            index: 0,
            path: Vec::new(),
            seal: SealHeader {
                number: 1,
                previous: to_hex(&[0; 32]),
                through_transaction: 10,
                through_id: Uuid::nil(),
                count: 1,
                sealed_at: DateTime::from_timestamp(1_800_000_000, 0).unwrap(),
                key: "main".to_owned(),
                signature: to_hex(&[0; 64]),
            },
        }
    }

    fn content() -> Vec<u8> {
        let (text, digest) = body().write().unwrap();
        sign(text, &inclusion(&digest), &key()).unwrap().into_bytes()
    }

    #[test]
    fn a_receipt_is_read_as_it_was_signed() {
        let receipt = Receipt::read(&content(), &[key().public()]).unwrap();
        assert_eq!(receipt.body, body());
        assert_eq!(content(), content(), "it is written again with the same content");
        assert_eq!(receipt.body.tombstone_bytes(), [1; 32]);
    }

    #[test]
    fn a_receipt_that_was_altered_anywhere_is_refused() {
        let genuine = content();
        for at in (0..genuine.len()).filter(|at| genuine[*at].is_ascii_alphanumeric()) {
            let mut altered = genuine.clone();
            altered[at] = if altered[at] == b'1' { b'2' } else { b'1' };
            assert!(Receipt::read(&altered, &[key().public()]).is_err(), "byte {at}");
        }
        assert!(Receipt::read(&genuine[..genuine.len() / 2], &[key().public()]).is_err());
        assert!(Receipt::read(&genuine, &[]).is_err());
        let other = PrivateKey::parse(&format!("receipt private {}", "08".repeat(32))).unwrap();
        assert!(Receipt::read(&genuine, &[other.public()]).is_err());
    }

    #[test]
    fn a_receipt_with_the_audit_row_of_another_one_is_refused() {
        let (text, _) = body().write().unwrap();
        let content = sign(text, &inclusion(&[9; 32]), &key()).unwrap().into_bytes();
        let refused = Receipt::read(&content, &[key().public()]).unwrap().verify_audit(&[]);
        assert_eq!(refused.unwrap_err().to_string(), "the audit row of the receipt is of another receipt");
    }
}
