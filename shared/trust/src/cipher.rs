//! Ciphertexts: AES-256-GCM (NIST SP 800-38D) under keys that are each used once.
//!
//! ```text
//! version 1 | algorithm 1 | key version 4, big-endian | salt 32 | commitment 32 | ciphertext | tag 16
//! ```
//!
//! HKDF-SHA256 (RFC 5869) makes key, nonce and commitment of a record out of the long-lived key and the record's own random
//! salt. So no two records share a key and a nonce unless their salts are the same 256 random bits: among 2^40 records that
//! comes to pass with a chance of 2^-177. The commitment, which is compared before anything is decrypted, makes a ciphertext
//! one of exactly one key; GCM by itself would let somebody write one that opens under two.

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

/// The only format so far.
const FORMAT: u8 = 1;
/// HKDF-SHA256 and AES-256-GCM, the only algorithms so far.
const ALGORITHM: u8 = 1;
const SALT: usize = 32;
const COMMITMENT: usize = 32;
const NONCE: usize = 12;
const TAG: usize = 16;
/// Format, algorithm, and the key's version.
const HEADER: usize = 6;
/// How many bytes longer a ciphertext is than what it holds.
pub const CIPHERTEXT_OVERHEAD: usize = HEADER + SALT + COMMITMENT + TAG;
/// The most bytes that one ciphertext holds: what a broker takes as one message, and room to spare.
pub const MAX_PLAINTEXT_BYTES: usize = 2 * 1024 * 1024 - CIPHERTEXT_OVERHEAD;

/// What a ciphertext belongs to. Opened as anything else's, it is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AssociatedData<'a> {
    /// A column of a row of a user.
    Field {
        /// The table.
        table: &'a str,
        /// Its column.
        column: &'a str,
        /// The row's primary key.
        row: Uuid,
        /// Whose it is.
        user: UserId,
    },
    /// The data key of a user.
    DataKey {
        /// Whose it is.
        user: UserId,
        /// Which of the user's.
        version: u32,
    },
    /// The body of a request. Not its id, which a dead letter changes when it is replayed.
    Payload {
        /// Where it is published.
        subject: &'a str,
    },
}

impl AssociatedData<'_> {
    /// The associated data: the sort, then every part after its length, so that no two of them are alike.
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

/// Why a ciphertext cannot be made or opened. Nothing of its content is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CipherError {
    /// It is none, or of another format.
    #[error("is no ciphertext of format {FORMAT}")]
    Malformed,
    /// It is of another version of the key.
    #[error("is encrypted with version {0} of its key, and not with this one")]
    OtherVersion(u32),
    /// The key is another one, or the ciphertext was changed or belongs elsewhere.
    #[error("does not open: it was made with another key, was changed, or belongs elsewhere")]
    Refused,
    /// There is too much to encrypt.
    #[error("is longer than {MAX_PLAINTEXT_BYTES} bytes")]
    TooLong,
    /// The operating system gives no random bytes.
    #[error("cannot be encrypted: the operating system gives no random bytes")]
    NoRandomness,
}

/// A key that encrypts, with its version. Its `Debug` shows the version only, and its bytes are wiped when it goes.
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

/// What HKDF makes for one record.
struct Once {
    cipher: Aes256Gcm,
    nonce: [u8; NONCE],
    commitment: [u8; COMMITMENT],
}

impl CipherKey {
    /// A key from its bytes, which are wiped.
    pub fn new(version: u32, bytes: &mut [u8; 32]) -> Self {
        let key = SecretBox::init_with_mut(|key: &mut [u8; 32]| key.copy_from_slice(bytes));
        bytes.zeroize();
        Self { version, key: Arc::new(key) }
    }

    /// Makes a key by chance.
    ///
    /// # Errors
    /// [`CipherError::NoRandomness`].
    pub fn generate(version: u32) -> Result<Self, CipherError> {
        let mut bytes = [0; 32];
        getrandom::fill(&mut bytes).map_err(|_| CipherError::NoRandomness)?;
        Ok(Self::new(version, &mut bytes))
    }

    /// Which key it is, among those of its owner.
    pub fn version(&self) -> u32 {
        self.version
    }

    /// Its bytes. Every use is a place to look at.
    pub fn expose(&self) -> &[u8; 32] {
        self.key.expose_secret()
    }

    /// Encrypts.
    ///
    /// # Errors
    /// [`CipherError::TooLong`] and [`CipherError::NoRandomness`].
    pub fn seal(&self, plain: &[u8], aad: AssociatedData<'_>) -> Result<Vec<u8>, CipherError> {
        if plain.len() > MAX_PLAINTEXT_BYTES {
            return Err(CipherError::TooLong);
        }
        let mut salt = [0; SALT];
        getrandom::fill(&mut salt).map_err(|_| CipherError::NoRandomness)?;
        let once = self.once(&salt);
        let mut sealed = Vec::with_capacity(plain.len() + CIPHERTEXT_OVERHEAD);
        sealed.extend([FORMAT, ALGORITHM]);
        sealed.extend(self.version.to_be_bytes());
        sealed.extend(salt);
        sealed.extend(once.commitment);
        let start = sealed.len();
        let associated = associated(&sealed, aad);
        sealed.extend(plain);
        let tag = once
            .cipher
            .encrypt_inout_detached(&Nonce::from(once.nonce), &associated, (&mut sealed[start..]).into())
            .map_err(|_| CipherError::TooLong)?;
        sealed.extend(tag);
        Ok(sealed)
    }

    /// Decrypts.
    ///
    /// # Errors
    /// Every [`CipherError`] but the last two.
    pub fn open(&self, sealed: &[u8], aad: AssociatedData<'_>) -> Result<Zeroizing<Vec<u8>>, CipherError> {
        let version = key_version(sealed)?;
        if version != self.version {
            return Err(CipherError::OtherVersion(version));
        }
        let (head, rest) =
            sealed.split_at_checked(HEADER + SALT + COMMITMENT).ok_or(CipherError::Malformed)?;
        let (held, tag) = rest.split_last_chunk::<TAG>().ok_or(CipherError::Malformed)?;
        let once = self.once(&head[HEADER..HEADER + SALT]);
        if !bool::from(once.commitment.ct_eq(&head[HEADER + SALT..])) {
            return Err(CipherError::Refused);
        }
        let mut plain = Zeroizing::new(held.to_vec());
        once.cipher
            .decrypt_inout_detached(
                &Nonce::from(once.nonce),
                &associated(head, aad),
                plain.as_mut_slice().into(),
                &Tag::from(*tag),
            )
            .map_err(|_| CipherError::Refused)?;
        Ok(plain)
    }

    fn once(&self, salt: &[u8]) -> Once {
        let mut made = Zeroizing::new([0_u8; 32 + NONCE + COMMITMENT]);
        // HKDF gives up to 255 times 32 bytes, so that this much never fails; were it to, all would be refused alike.
        let _ = Hkdf::<Sha256>::new(Some(salt), self.expose()).expand(b"memfleet record 1", &mut *made);
        let (mut nonce, mut commitment) = ([0; NONCE], [0; COMMITMENT]);
        nonce.copy_from_slice(&made[32..32 + NONCE]);
        commitment.copy_from_slice(&made[32 + NONCE..]);
        let mut key = [0_u8; 32];
        key.copy_from_slice(&made[..32]);
        let cipher = Aes256Gcm::new(&key.into());
        key.zeroize();
        Once { cipher, nonce, commitment }
    }
}

/// What GCM authenticates beside the content: all that stands before it, and what it belongs to.
fn associated(head: &[u8], aad: AssociatedData<'_>) -> Vec<u8> {
    let mut bytes = head.to_vec();
    bytes.extend(aad.to_bytes());
    bytes
}

/// The version of the key that a ciphertext is made with.
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
