//! Ed25519 signing keys (RFC 8032). Seals of the audit trail and service tokens use different keys.

use std::fmt;
use std::path::Path;

use ed25519_dalek::{Signature, Signer, SigningKey, VerifyingKey};
use sha2::{Digest as _, Sha256};
use uuid::Uuid;

use crate::text::{KeyError, content, from_hex, is_key_name, secret_content, to_hex};

/// A private key. `Debug` shows its name only.
#[derive(Clone)]
pub struct PrivateKey {
    name: String,
    key: SigningKey,
}

impl fmt::Debug for PrivateKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PrivateKey").field("name", &self.name).finish_non_exhaustive()
    }
}

/// A public key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PublicKey {
    name: String,
    key: VerifyingKey,
}

impl PrivateKey {
    /// Generates a random key.
    ///
    /// # Errors
    /// [`KeyError::Signing`] if the name is invalid.
    pub fn generate(name: &str) -> Result<Self, KeyError> {
        check_name(name, "a private key")?;
        let random: Vec<u8> = (0..3).flat_map(|_| Uuid::new_v4().into_bytes()).collect();
        Ok(Self { name: name.to_owned(), key: SigningKey::from_bytes(&Sha256::digest(random).into()) })
    }

    /// Reads a key file: `<name> private <64 hex digits>`.
    ///
    /// # Errors
    /// [`KeyError`] if the file cannot be read, is accessible to every user of the machine, or does not contain a key.
    pub fn read(path: &Path) -> Result<Self, KeyError> {
        Self::parse(&secret_content(path)?)
    }

    /// Reads the line of a key file.
    ///
    /// # Errors
    /// [`KeyError::Signing`], which quotes nothing of the text.
    pub fn parse(line: &str) -> Result<Self, KeyError> {
        let (name, bytes) = parse(line, "private", "a private key")?;
        Ok(Self { name, key: SigningKey::from_bytes(&bytes) })
    }

    /// Its name, which is stored with its signatures.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The line that [`PrivateKey::parse`] reads. Review every use.
    pub fn expose_line(&self) -> String {
        format!("{} private {}\n", self.name, to_hex(&self.key.to_bytes()))
    }

    /// Its public key.
    pub fn public(&self) -> PublicKey {
        PublicKey { name: self.name.clone(), key: self.key.verifying_key() }
    }

    /// Signs a message.
    pub fn sign(&self, message: &[u8]) -> [u8; 64] {
        self.key.sign(message).to_bytes()
    }
}

impl PublicKey {
    /// Reads a file of public keys, one per line: `<name> public <64 hex digits>`.
    ///
    /// # Errors
    /// [`KeyError`] if the file cannot be read or does not contain a key.
    pub fn read_all(path: &Path) -> Result<Vec<Self>, KeyError> {
        let text = content(path)?;
        let keys: Vec<Self> =
            text.lines().filter(|line| !line.trim().is_empty()).map(Self::parse).collect::<Result<_, _>>()?;
        if keys.is_empty() { Err(KeyError::Signing("a public key")) } else { Ok(keys) }
    }

    fn parse(line: &str) -> Result<Self, KeyError> {
        let (name, bytes) = parse(line, "public", "a public key")?;
        Self::from_bytes(&name, &bytes)
    }

    /// A key of this name from its 32 bytes.
    ///
    /// # Errors
    /// [`KeyError::Signing`] if the name or the bytes are invalid.
    pub fn from_bytes(name: &str, bytes: &[u8; 32]) -> Result<Self, KeyError> {
        check_name(name, "a public key")?;
        let key = VerifyingKey::from_bytes(bytes).map_err(|_| KeyError::Signing("a public key"))?;
        Ok(Self { name: name.to_owned(), key })
    }

    /// Its 32 bytes.
    pub fn to_bytes(&self) -> [u8; 32] {
        self.key.to_bytes()
    }

    /// Its name, which is stored with its signatures.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// A line that [`PublicKey::read_all`] reads.
    pub fn line(&self) -> String {
        format!("{} public {}\n", self.name, to_hex(self.key.as_bytes()))
    }

    /// Verifies a signature of a message. Keys of small order and non-canonical signatures are rejected, so that a
    /// message has exactly one valid signature.
    pub fn verifies(&self, message: &[u8], signature: &[u8; 64]) -> bool {
        self.key.verify_strict(message, &Signature::from_bytes(signature)).is_ok()
    }
}

fn check_name(name: &str, needed: &'static str) -> Result<(), KeyError> {
    if is_key_name(name) { Ok(()) } else { Err(KeyError::Signing(needed)) }
}

fn parse(text: &str, kind: &str, needed: &'static str) -> Result<(String, [u8; 32]), KeyError> {
    let mut parts = text.split_whitespace();
    let (Some(name), Some(named), Some(digits), None) =
        (parts.next(), parts.next(), parts.next(), parts.next())
    else {
        return Err(KeyError::Signing(needed));
    };
    check_name(name, needed)?;
    let bytes = (named == kind)
        .then(|| from_hex(digits)?.try_into().ok())
        .flatten()
        .ok_or(KeyError::Signing(needed))?;
    Ok((name.to_owned(), bytes))
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use std::fs::Permissions;
    use std::os::unix::fs::PermissionsExt;

    use super::*;
    use crate::{GrantKey, KeyRing};

    #[test]
    fn a_secret_key_that_every_user_can_read_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("key");
        let digits = "0f".repeat(32);
        type Read = fn(&Path) -> Result<(), KeyError>;
        let readers: [(String, Read); 3] = [
            (format!("name private {digits}"), |file| PrivateKey::read(file).map(drop)),
            (format!("name {digits}"), |file| GrantKey::read(file).map(drop)),
            (format!("name.1 {digits}"), |file| KeyRing::read(file).map(drop)),
        ];
        for (text, read) in readers {
            std::fs::write(&file, text).unwrap();
            for mode in [0o400, 0o440, 0o600, 0o640, 0o660] {
                std::fs::set_permissions(&file, Permissions::from_mode(mode)).unwrap();
                read(&file).unwrap();
            }
            for mode in [0o604, 0o602, 0o644, 0o444, 0o666] {
                std::fs::set_permissions(&file, Permissions::from_mode(mode)).unwrap();
                let refused = read(&file).unwrap_err().to_string();
                assert!(
                    refused.contains(&format!("(mode {mode:o}): run `chmod o-rwx {}`", file.display())),
                    "{refused}"
                );
            }
            // What is written next may be.
            std::fs::set_permissions(&file, Permissions::from_mode(0o600)).unwrap();
        }
    }

    /// RFC 8032 section 7.1, test 3.
    #[test]
    fn a_known_key() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("key");
        let secret = "c5aa8df43f9f837bedb7442f31dcb7b166d38535076f094b85ce3a2e0b4458f7";
        std::fs::write(&file, format!("known private {secret}\n")).unwrap();
        std::fs::set_permissions(&file, Permissions::from_mode(0o600)).unwrap();
        let key = PrivateKey::read(&file).unwrap();
        assert_eq!(key.expose_line(), format!("known private {secret}\n"));
        let public = "known public fc51cd8e6218a1a38da47ed00230f0580816ed13ba3303ac5deb911548908025\n";
        assert_eq!(key.public().line(), public);
        assert_eq!(format!("{key:?}"), "PrivateKey { name: \"known\", .. }");
        std::fs::write(&file, public).unwrap();
        let [read] = <[PublicKey; 1]>::try_from(PublicKey::read_all(&file).unwrap()).unwrap();
        let signature = key.sign(&[7; 32]);
        assert!(read.verifies(&[7; 32], &signature) && !read.verifies(&[8; 32], &signature));
        let known = "6291d657deec24024827e69c3abe01a30ce548a284743a445e3680d7db5ac3ac18ff9b538d16f290ae67f760984dc6594a7c15e9716ed28dc027beceea1ec40a";
        assert_eq!(to_hex(&key.sign(&[0xaf, 0x82])), known);
        assert!(matches!(PrivateKey::read(&file), Err(KeyError::Signing("a private key"))));
        assert!(!PrivateKey::generate("other").unwrap().public().verifies(&[7; 32], &signature));
    }

    #[test]
    fn an_invalid_key_is_rejected_without_being_quoted() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("key");
        let digits = "0f".repeat(32);
        for text in [
            String::new(),
            digits.clone(),
            format!("Name private {digits}"),
            format!("name secret {digits}"),
            format!("name private {digits}00"),
            format!("name private {digits} more"),
            format!("name public 02{}", "00".repeat(31)),
        ] {
            std::fs::write(&file, &text).unwrap();
            let refused = PublicKey::read_all(&file).unwrap_err().to_string();
            assert!(refused.contains("is needed here") && !refused.contains("0f0f"), "{text}: {refused}");
        }
        assert!(PublicKey::read_all(&folder.path().join("none")).unwrap_err().to_string().contains("none"));
    }
}
