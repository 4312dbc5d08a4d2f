//! Who can open an export: the holder of a key, or of a passphrase.

use std::io::{self, BufRead};
use std::str::FromStr;

use age::stream::StreamReader;
use age::{DecryptError, Decryptor, Encryptor, Identity, IdentityFile, scrypt, x25519};
use secrecy::{ExposeSecret, SecretString};

use crate::error::PrivacyError;

/// The least length of a passphrase, in characters.
pub const MIN_PASSPHRASE: usize = 12;
/// The greatest length.
pub const MAX_PASSPHRASE: usize = 1_024;

/// 2 to the power of this is the work factor of scrypt, as in the program `age`: a second and 256 MiB for each part. It is fixed, so that no export
/// is weaker for having been made on a machine that was busy.
const WORK_FACTOR: u8 = 18;
/// The greatest that is accepted: a file of somebody else must not keep the machine busy.
const MAX_WORK_FACTOR: u8 = 20;

/// Whom an export is encrypted for.
#[derive(Clone)]
pub enum Recipient {
    /// The holder of the private key of this public key, `age1…`.
    Key(x25519::Recipient),
    /// The holder of this passphrase.
    Passphrase(SecretString),
}

impl std::fmt::Debug for Recipient {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.kind())
    }
}

impl Recipient {
    /// The recipient of a public key of age.
    ///
    /// # Errors
    /// Why the text is no public key.
    pub fn key(text: &str) -> Result<Self, String> {
        if text.trim_start().to_ascii_uppercase().starts_with("AGE-SECRET-KEY-") {
            return Err(
                "this is a private key, and must stay with the person; give the public key, which begins with age1"
                    .to_owned(),
            );
        }
        x25519::Recipient::from_str(text.trim()).map(Self::Key).map_err(|problem| {
            format!("not a public key of age ({problem}); `age-keygen` prints one, which begins with age1")
        })
    }

    /// A new pair of keys: the recipient, and the private key as the program `age-keygen` writes it.
    #[must_use]
    pub fn generate() -> (Self, SecretString) {
        let identity = x25519::Identity::generate();
        (Self::Key(identity.to_public()), identity.to_string())
    }

    /// The recipient who knows a passphrase, which a line break may end.
    ///
    /// # Errors
    /// [`PrivacyError::Settings`] if it is too short or too long.
    pub fn passphrase(text: &str) -> Result<Self, PrivacyError> {
        passphrase(text).map(Self::Passphrase)
    }

    /// The public key; none of a passphrase.
    #[must_use]
    pub fn public_key(&self) -> Option<String> {
        match self {
            Self::Key(key) => Some(key.to_string()),
            Self::Passphrase(_) => None,
        }
    }

    /// What kind of recipient it is, as the request notes it.
    pub(super) fn kind(&self) -> &'static str {
        match self {
            Self::Key(_) => "key",
            Self::Passphrase(_) => "passphrase",
        }
    }

    pub(super) fn encryptor(&self) -> io::Result<Encryptor> {
        let encryptor = match self {
            Self::Key(key) => Encryptor::with_recipients(std::iter::once(key as _)),
            Self::Passphrase(passphrase) => {
                let mut recipient = scrypt::Recipient::new(passphrase.clone());
                recipient.set_work_factor(WORK_FACTOR);
                Encryptor::with_recipients(std::iter::once(&recipient as _))
            }
        };
        encryptor.map_err(|error| io::Error::other(error.to_string()))
    }
}

fn passphrase(text: &str) -> Result<SecretString, PrivacyError> {
    let text = text.trim_end_matches(['\r', '\n']);
    match text.chars().count() {
        MIN_PASSPHRASE..=MAX_PASSPHRASE => Ok(SecretString::from(text)),
        _ => Err(PrivacyError::Settings(format!(
            "a passphrase has {MIN_PASSPHRASE} to {MAX_PASSPHRASE} characters"
        ))),
    }
}

/// What opens an export.
pub enum Opener {
    /// Private keys.
    Identities(Vec<Box<dyn Identity + Send + Sync>>),
    /// A passphrase.
    Passphrase(SecretString),
}

impl std::fmt::Debug for Opener {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Identities(_) => "identities",
            Self::Passphrase(_) => "passphrase",
        })
    }
}

impl Opener {
    /// The private keys in a file of `age-keygen`.
    ///
    /// # Errors
    /// [`PrivacyError::Settings`] if there is none in it. The message quotes nothing of it.
    pub fn identities(content: &SecretString) -> Result<Self, PrivacyError> {
        let wrong = || {
            PrivacyError::Settings(
                "the file has no private key of age, a line that begins with AGE-SECRET-KEY-1, or something else, too"
                    .to_owned(),
            )
        };
        let file = IdentityFile::from_buffer(content.expose_secret().as_bytes()).map_err(|_| wrong())?;
        let identities = file.into_identities().map_err(|_| wrong())?;
        if identities.is_empty() { Err(wrong()) } else { Ok(Self::Identities(identities)) }
    }

    /// A passphrase, which a line break may end.
    ///
    /// # Errors
    /// [`PrivacyError::Settings`] if it is too short or too long to be one.
    pub fn passphrase(text: &str) -> Result<Self, PrivacyError> {
        passphrase(text).map(Self::Passphrase)
    }

    /// The plain text of a part. Gives why it cannot be opened.
    #[allow(clippy::wildcard_enum_match_arm, reason = "the library may add variants")]
    pub(super) fn open<R: BufRead>(&self, input: R) -> Result<StreamReader<R>, String> {
        let decryptor = Decryptor::new_buffered(input).map_err(|error| reason(&error))?;
        let decrypted = match (self, decryptor.is_scrypt()) {
            (Self::Identities(_), true) => {
                return Err("it is encrypted with a passphrase; give --passphrase-file".to_owned());
            }
            (Self::Passphrase(_), false) => {
                return Err("it is encrypted for a key; give --identity".to_owned());
            }
            (Self::Identities(identities), false) => {
                decryptor.decrypt(identities.iter().map(|one| one.as_ref() as &dyn Identity))
            }
            (Self::Passphrase(passphrase), true) => {
                let mut identity = scrypt::Identity::new(passphrase.clone());
                identity.set_max_work_factor(MAX_WORK_FACTOR);
                let opened = decryptor.decrypt(std::iter::once(&identity as _));
                return opened.map_err(|error| match error {
                    DecryptError::DecryptionFailed | DecryptError::KeyDecryptionFailed => {
                        "the passphrase is not the one that it was encrypted with".to_owned()
                    }
                    other => reason(&other),
                });
            }
        };
        decrypted.map_err(|error| reason(&error))
    }
}

/// Why something is not opened, without the words of the library.
#[allow(clippy::wildcard_enum_match_arm, reason = "the library may add variants")]
fn reason(error: &DecryptError) -> String {
    match error {
        DecryptError::NoMatchingKeys => {
            "it is encrypted for another key; give the private key of the public key that the export was made for"
                .to_owned()
        }
        DecryptError::InvalidHeader | DecryptError::UnknownFormat => {
            "it is no file of the format age, or it is damaged".to_owned()
        }
        DecryptError::ExcessiveWork { .. } => {
            "its passphrase needs more work than any export; it is no export".to_owned()
        }
        DecryptError::Io(error) if error.kind() != io::ErrorKind::UnexpectedEof => {
            format!("it cannot be read: {error}")
        }
        _ => "it is damaged; get it again".to_owned(),
    }
}
