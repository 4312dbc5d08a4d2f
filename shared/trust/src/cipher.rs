//! Authenticated encryption: AES-256-GCM (NIST SP 800-38D) with a derived key for each record.
//!
//! ```text
//! version 1 | algorithm 1 | key version 4, big-endian | salt 32 | commitment 32 | ciphertext | tag 16
//! ```
//!
//! HKDF-SHA256 (RFC 5869) derives the key, the nonce and the commitment of a record from the long-lived key and the
//! record's random salt. Two records share a key and a nonce only if their 256-bit salts collide: among 2^40 records,
//! with a probability of 2^-177. The commitment binds a ciphertext to exactly one key and is compared before anything
//! is decrypted; with GCM alone, an attacker can build a ciphertext that decrypts under two keys.

use std::fmt;
use std::sync::Arc;

use aes_gcm::aead::{AeadInOut, KeyInit};
use aes_gcm::{Aes256Gcm, Nonce, Tag};
use contract::UserId;
use hkdf::Hkdf;
use secrecy::{ExposeSecret, SecretBox};
use sha2::Sha256;
use subtle::ConstantTimeEq;
use uuid::Uuid;
use zeroize::{Zeroize, Zeroizing};

/// The only format.
const FORMAT: u8 = 1;
/// HKDF-SHA256 and AES-256-GCM, the only algorithms.
const ALGORITHM: u8 = 1;
const SALT: usize = 32;
const COMMITMENT: usize = 32;
const NONCE: usize = 12;
const TAG: usize = 16;
/// The format, the algorithm and the version of the key.
const HEADER: usize = 6;
/// How many bytes a ciphertext is longer than its plaintext.
pub const CIPHERTEXT_OVERHEAD: usize = HEADER + SALT + COMMITMENT + TAG;
/// The largest plaintext, in bytes: more than the largest message that the NATS server accepts.
pub const MAX_PLAINTEXT_BYTES: usize = 2 * 1024 * 1024 - CIPHERTEXT_OVERHEAD;

/// The record that a ciphertext belongs to, authenticated as associated data. A ciphertext does not decrypt with any
/// other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AssociatedData<'a> {
    /// A column of a row.
    Field {
        /// The table.
        table: &'a str,
        /// The column.
        column: &'a str,
        /// The primary key of the row.
        row: Uuid,
        /// The user.
        user: UserId,
    },
    /// The data key of a user.
    DataKey {
        /// The user.
        user: UserId,
        /// The version of the key.
        version: u32,
    },
    /// The body of a request. The request id is left out, because it changes when a dead letter is replayed.
    Payload {
        /// The subject of the request.
        subject: &'a str,
    },
}

impl AssociatedData<'_> {
    /// The encoding: the kind and the fields, each preceded by its length, so that no two values have the same
    /// encoding.
    pub fn to_bytes(self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(96);
        let mut part = |part: &[u8]| {
            bytes.extend((part.len() as u64).to_be_bytes());
            bytes.extend(part);
        };
        match self {
            Self::Field { table, column, row, user } => {
                part(b"field");
                part(table.as_bytes());
                part(column.as_bytes());
                part(row.as_bytes());
                part(&user.get().to_be_bytes());
            }
            Self::DataKey { user, version } => {
                part(b"data-key");
                part(&user.get().to_be_bytes());
                part(&version.to_be_bytes());
            }
            Self::Payload { subject } => {
                part(b"payload");
                part(subject.as_bytes());
            }
        }
        bytes
    }
}

/// Why encryption or decryption failed. No message contains plaintext.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CipherError {
    /// The bytes are not a ciphertext of this format.
    #[error("is not a ciphertext of format {FORMAT}")]
    Malformed,
    /// The ciphertext is encrypted with another version of the key.
    #[error("is encrypted with version {0} of the key, not with the given one")]
    OtherVersion(u32),
    /// The key is wrong, the ciphertext was modified, or it belongs to another record.
    #[error("cannot be decrypted: wrong key, modified ciphertext, or a ciphertext of another record")]
    Refused,
    /// The plaintext exceeds [`MAX_PLAINTEXT_BYTES`].
    #[error("is longer than {MAX_PLAINTEXT_BYTES} bytes")]
    TooLong,
    /// The operating system provides no random bytes.
    #[error("cannot be encrypted: the operating system provides no random bytes")]
    NoRandomness,
}

/// An encryption key with its version. `Debug` shows the version only, and the key is wiped on drop.
#[derive(Clone)]
pub struct CipherKey {
    version: u32,
    key: Arc<SecretBox<[u8; 32]>>,
}

impl fmt::Debug for CipherKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CipherKey").field("version", &self.version).finish_non_exhaustive()
    }
}

/// The values that HKDF derives for one record.
struct RecordKey {
    cipher: Aes256Gcm,
    nonce: [u8; NONCE],
    commitment: [u8; COMMITMENT],
}

impl CipherKey {
    /// A key from its bytes. The given bytes are wiped.
    pub fn new(version: u32, bytes: &mut [u8; 32]) -> Self {
        let key = SecretBox::init_with_mut(|key: &mut [u8; 32]| key.copy_from_slice(bytes));
        bytes.zeroize();
        Self { version, key: Arc::new(key) }
    }

    /// Generates a random key.
    ///
    /// # Errors
    /// [`CipherError::NoRandomness`].
    pub fn generate(version: u32) -> Result<Self, CipherError> {
        let mut bytes = [0; 32];
        getrandom::fill(&mut bytes).map_err(|_| CipherError::NoRandomness)?;
        Ok(Self::new(version, &mut bytes))
    }

    /// Its version.
    pub fn version(&self) -> u32 {
        self.version
    }

    /// Its bytes. Review every use.
    pub fn expose(&self) -> &[u8; 32] {
        self.key.expose_secret()
    }

    /// Encrypts a plaintext and authenticates the associated data.
    ///
    /// # Errors
    /// [`CipherError::TooLong`] and [`CipherError::NoRandomness`].
    pub fn seal(&self, plain: &[u8], aad: AssociatedData<'_>) -> Result<Vec<u8>, CipherError> {
        if plain.len() > MAX_PLAINTEXT_BYTES {
            return Err(CipherError::TooLong);
        }
        let mut salt = [0; SALT];
        getrandom::fill(&mut salt).map_err(|_| CipherError::NoRandomness)?;
        let record = self.derive(&salt);
        let mut sealed = Vec::with_capacity(plain.len() + CIPHERTEXT_OVERHEAD);
        sealed.extend([FORMAT, ALGORITHM]);
        sealed.extend(self.version.to_be_bytes());
        sealed.extend(salt);
        sealed.extend(record.commitment);
        let start = sealed.len();
        let associated = associated(&sealed, aad);
        sealed.extend(plain);
        let tag = record
            .cipher
            .encrypt_inout_detached(&Nonce::from(record.nonce), &associated, (&mut sealed[start..]).into())
            .map_err(|_| CipherError::TooLong)?;
        sealed.extend(tag);
        Ok(sealed)
    }

    /// Decrypts a ciphertext of this associated data.
    ///
    /// # Errors
    /// [`CipherError::Malformed`], [`CipherError::OtherVersion`] and [`CipherError::Refused`].
    pub fn open(&self, sealed: &[u8], aad: AssociatedData<'_>) -> Result<Zeroizing<Vec<u8>>, CipherError> {
        let version = key_version(sealed)?;
        if version != self.version {
            return Err(CipherError::OtherVersion(version));
        }
        let (header, rest) =
            sealed.split_at_checked(HEADER + SALT + COMMITMENT).ok_or(CipherError::Malformed)?;
        let (ciphertext, tag) = rest.split_last_chunk::<TAG>().ok_or(CipherError::Malformed)?;
        let record = self.derive(&header[HEADER..HEADER + SALT]);
        if !bool::from(record.commitment.ct_eq(&header[HEADER + SALT..])) {
            return Err(CipherError::Refused);
        }
        let mut plain = Zeroizing::new(ciphertext.to_vec());
        record
            .cipher
            .decrypt_inout_detached(
                &Nonce::from(record.nonce),
                &associated(header, aad),
                plain.as_mut_slice().into(),
                &Tag::from(*tag),
            )
            .map_err(|_| CipherError::Refused)?;
        Ok(plain)
    }

    fn derive(&self, salt: &[u8]) -> RecordKey {
        let mut derived = Zeroizing::new([0_u8; 32 + NONCE + COMMITMENT]);
        // HKDF fails above 255 * 32 bytes only. If it did fail, encryption and decryption would both use zeros.
        let _ = Hkdf::<Sha256>::new(Some(salt), self.expose()).expand(b"memfleet record 1", &mut *derived);
        let (mut nonce, mut commitment) = ([0; NONCE], [0; COMMITMENT]);
        nonce.copy_from_slice(&derived[32..32 + NONCE]);
        commitment.copy_from_slice(&derived[32 + NONCE..]);
        let mut key = [0_u8; 32];
        key.copy_from_slice(&derived[..32]);
        let cipher = Aes256Gcm::new(&key.into());
        key.zeroize();
        RecordKey { cipher, nonce, commitment }
    }
}

/// What GCM authenticates besides the plaintext: the bytes before the ciphertext, and the associated data.
fn associated(header: &[u8], aad: AssociatedData<'_>) -> Vec<u8> {
    let mut bytes = header.to_vec();
    bytes.extend(aad.to_bytes());
    bytes
}

/// The version of the key that a ciphertext is encrypted with.
///
/// # Errors
/// [`CipherError::Malformed`].
pub fn key_version(sealed: &[u8]) -> Result<u32, CipherError> {
    match sealed {
        [FORMAT, ALGORITHM, a, b, c, d, rest @ ..]
            if (CIPHERTEXT_OVERHEAD - HEADER..=CIPHERTEXT_OVERHEAD - HEADER + MAX_PLAINTEXT_BYTES)
                .contains(&rest.len()) =>
        {
            Ok(u32::from_be_bytes([*a, *b, *c, *d]))
        }
        _ => Err(CipherError::Malformed),
    }
}
