//! Key rings: files of encryption keys, with several versions of each name.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;

use contract::Service;
use secrecy::{ExposeSecret, SecretString};
use zeroize::Zeroizing;

use crate::cipher::CipherKey;
use crate::text::{KeyError, from_hex, secret_content, to_hex};

/// The maximum number of lines of a ring.
const LINES: usize = 10_000;

/// The keys of a file, one per line: `<name>.<version> <64 hex digits>`. Empty lines and lines that start with `#` are
/// ignored. The highest version of a name encrypts; every version decrypts.
#[derive(Clone, Debug, Default)]
pub struct KeyRing {
    keys: BTreeMap<String, BTreeMap<u32, CipherKey>>,
}

impl KeyRing {
    /// Reads a key ring file.
    ///
    /// # Errors
    /// [`KeyError`] if the file cannot be read or a line is not a key.
    pub fn read(path: &Path) -> Result<Self, KeyError> {
        Self::parse(&SecretString::from(secret_content(path)?))
    }

    /// Reads the contents of a key ring file.
    ///
    /// # Errors
    /// [`KeyError::Ring`], which names the line number and quotes nothing of the line.
    pub fn parse(text: &SecretString) -> Result<Self, KeyError> {
        let mut ring = Self::default();
        let lines = text.expose_secret().lines().enumerate();
        for (at, line) in lines.map(|(at, line)| (at + 1, line.trim())) {
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            let (name, key) = parse_line(line).filter(|_| at <= LINES).ok_or(KeyError::Ring(at))?;
            let versions = ring.keys.entry(name.to_owned()).or_default();
            if versions.insert(key.version(), key).is_some() {
                return Err(KeyError::Ring(at));
            }
        }
        Ok(ring)
    }

    /// A key by its name and version.
    pub fn get(&self, name: &str, version: u32) -> Option<&CipherKey> {
        self.keys.get(name)?.get(&version)
    }

    /// The key of this name that encrypts.
    pub fn current(&self, name: &str) -> Option<&CipherKey> {
        self.keys.get(name)?.last_key_value().map(|(_, key)| key)
    }

    /// The line of a key in a key ring file. Review every use.
    pub fn expose_line(name: &str, key: &CipherKey) -> Zeroizing<String> {
        Zeroizing::new(format!("{} {}\n", key_id(name, key.version()), *Zeroizing::new(to_hex(key.expose()))))
    }
}

/// A key ring file that is reloaded when it changes, so that a new key needs no restart.
#[derive(Debug)]
pub struct RingFile {
    path: PathBuf,
    read: Mutex<Option<(Stamp, Arc<KeyRing>)>>,
}

/// The modification time and the length, by which a change is detected.
type Stamp = (SystemTime, u64);

impl RingFile {
    /// A key ring file. It is not read yet.
    pub fn new(path: &Path) -> Self {
        Self { path: path.to_owned(), read: Mutex::new(None) }
    }

    /// Its path.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The current key ring. While the file is missing, incomplete or being replaced, it is the last one that was read.
    ///
    /// # Errors
    /// As [`KeyRing::read`], if no key ring was read yet.
    pub fn ring(&self) -> Result<Arc<KeyRing>, KeyError> {
        self.reload().or_else(|error| {
            let read = self.read.lock().unwrap_or_else(PoisonError::into_inner);
            read.as_ref().map(|(_, ring)| Arc::clone(ring)).ok_or(error)
        })
    }

    fn reload(&self) -> Result<Arc<KeyRing>, KeyError> {
        let unreadable = |error: std::io::Error| KeyError::Unreadable {
            path: self.path.display().to_string(),
            problem: error.to_string(),
        };
        let file = std::fs::metadata(&self.path).map_err(unreadable)?;
        let stamp = (file.modified().map_err(unreadable)?, file.len());
        let mut read = self.read.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((known, ring)) = &*read
            && *known == stamp
        {
            return Ok(Arc::clone(ring));
        }
        let ring = Arc::new(KeyRing::read(&self.path)?);
        if ring.keys.is_empty() && read.is_some() {
            return Err(KeyError::Ring(1));
        }
        *read = Some((stamp, Arc::clone(&ring)));
        Ok(ring)
    }
}

/// The id of a key, such as `simple-chat.3`. It is stored with the ciphertexts of the key.
pub fn key_id(name: &str, version: u32) -> String {
    format!("{name}.{version}")
}

/// The name and the version of a key id. None if it is malformed.
pub fn parse_key_id(id: &str) -> Option<(&str, u32)> {
    let (name, version) = id.rsplit_once('.')?;
    // A plus sign or leading zeros would give a key several ids.
    let plain = !version.starts_with(['0', '+']);
    Some((name, version.parse().ok()?)).filter(|_| plain && is_ring_name(name))
}

/// Whether it is a valid name of keys in a ring: the same rule as for services.
pub fn is_ring_name(name: &str) -> bool {
    name.parse::<Service>().is_ok()
}

fn parse_line(line: &str) -> Option<(&str, CipherKey)> {
    let (id, digits) = line.split_once(' ')?;
    let (name, version) = parse_key_id(id)?;
    let bytes = Zeroizing::new(from_hex(digits)?);
    let mut key = <[u8; 32]>::try_from(bytes.as_slice()).ok()?;
    Some((name, CipherKey::new(version, &mut key)))
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<KeyRing, KeyError> {
        KeyRing::parse(&text.to_owned().into())
    }

    #[test]
    fn the_highest_version_encrypts_and_all_versions_decrypt() {
        let (one, ten) = (CipherKey::generate(1).unwrap(), CipherKey::generate(10).unwrap());
        let (one, ten) = (KeyRing::expose_line("kek", &one), KeyRing::expose_line("kek", &ten));
        let ring = parse(&format!("# keys\n\n{}{}", *ten, *one)).unwrap();
        assert_eq!(ring.current("kek").unwrap().version(), 10);
        assert_eq!(*KeyRing::expose_line("kek", ring.get("kek", 1).unwrap()), *one);
        assert!(
            ring.get("kek", 2).is_none() && ring.current("other").is_none() && ring.get("kek", 10).is_some()
        );
        assert!(parse("").unwrap().current("kek").is_none());
    }

    #[test]
    fn an_invalid_ring_is_rejected_with_its_line_number() {
        let digits = "0f".repeat(32);
        let good = format!("kek.1 {digits}");
        for bad in [
            digits.clone(),
            format!("kek {digits}"),
            format!("kek.0 {digits}"),
            format!("kek.01 {digits}"),
            format!("kek.+1 {digits}"),
            format!("kek.4294967296 {digits}"),
            format!("Kek.2 {digits}"),
            format!(".2 {digits}"),
            format!("kek.2 {digits}00"),
            format!("kek.2  {digits}"),
            good.clone(),
        ] {
            let refused = parse(&format!("{good}\n{bad}\n")).unwrap_err().to_string();
            assert!(refused.contains("line 2") && !refused.contains("0f0f"), "{bad}: {refused}");
        }
    }
}
