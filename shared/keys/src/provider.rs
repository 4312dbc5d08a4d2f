//! Who wraps data keys.

use std::path::Path;
use std::sync::Arc;

use contract::UserId;
use trust::{AssociatedData, CipherKey, KeyRing, RingFile};

use crate::KeyError;
use crate::key_store::WrappedKey;
#[cfg(feature = "aws-kms")]
use crate::kms::Kms;
#[cfg(feature = "vault")]
use crate::vault::Vault;
use config::{KeySettings, ProviderName};

/// The name of key-encryption keys in a ring.
pub const KEK: &str = "kek";

/// A data key, or why this one cannot be had while others can.
pub(crate) type Unwrapped = Result<CipherKey, String>;

/// The providers that are configured. One of them wraps; each opens what it has wrapped.
#[derive(Debug)]
pub struct Provider {
    wraps: ProviderName,
    ring: Option<Ring>,
    #[cfg(feature = "vault")]
    vault: Option<Vault>,
    #[cfg(feature = "aws-kms")]
    kms: Option<Kms>,
}

impl Provider {
    /// The providers that the configuration describes.
    ///
    /// # Errors
    /// [`KeyError::Settings`] if the one that wraps lacks an option, or is not in this build.
    pub fn open(settings: &KeySettings) -> Result<Self, KeyError> {
        let missing = |option: &str| {
            KeyError::Settings(format!("keys.{option} is not set, which the provider of keys needs"))
        };
        let provider = Self {
            wraps: settings.provider,
            ring: settings.ring_file.as_ref().map(|file| Ring(RingFile::new(Path::new(file)))),
            #[cfg(feature = "vault")]
            vault: Vault::open(settings)?,
            #[cfg(feature = "aws-kms")]
            kms: Kms::open(settings)?,
        };
        match settings.provider {
            ProviderName::Ring if provider.ring.is_none() => Err(missing("ring_file")),
            #[cfg(feature = "vault")]
            ProviderName::Vault if provider.vault.is_none() => Err(missing("vault_url")),
            #[cfg(feature = "aws-kms")]
            ProviderName::AwsKms if provider.kms.is_none() => Err(missing("kms_key")),
            #[cfg(not(feature = "vault"))]
            ProviderName::Vault => Err(not_built("vault")),
            #[cfg(not(feature = "aws-kms"))]
            ProviderName::AwsKms => Err(not_built("aws-kms")),
            #[allow(unreachable_patterns, reason = "which are left depends on what is built in")]
            ProviderName::Ring | ProviderName::Vault | ProviderName::AwsKms => Ok(provider),
        }
    }

    /// The key-encryption key that wraps now.
    ///
    /// # Errors
    /// [`KeyError::Provider`] if it cannot be had.
    pub async fn current(&self) -> Result<String, KeyError> {
        match self.wraps {
            ProviderName::Ring => self.ring()?.current(),
            #[cfg(feature = "vault")]
            ProviderName::Vault => self.vault()?.current().await,
            #[cfg(feature = "aws-kms")]
            ProviderName::AwsKms => self.kms()?.current().await,
            #[cfg(not(feature = "vault"))]
            ProviderName::Vault => Err(not_built("vault")),
            #[cfg(not(feature = "aws-kms"))]
            ProviderName::AwsKms => Err(not_built("aws-kms")),
        }
    }

    /// Wraps data keys.
    pub(crate) async fn wrap(&self, keys: &[(UserId, CipherKey)]) -> Result<Vec<WrappedKey>, KeyError> {
        if keys.is_empty() {
            return Ok(Vec::new());
        }
        match self.wraps {
            ProviderName::Ring => self.ring()?.wrap(keys),
            #[cfg(feature = "vault")]
            ProviderName::Vault => self.vault()?.wrap(keys).await,
            #[cfg(feature = "aws-kms")]
            ProviderName::AwsKms => self.kms()?.wrap(keys).await,
            #[cfg(not(feature = "vault"))]
            ProviderName::Vault => Err(not_built("vault")),
            #[cfg(not(feature = "aws-kms"))]
            ProviderName::AwsKms => Err(not_built("aws-kms")),
        }
    }

    /// Opens data keys, in order, each by who has wrapped it.
    pub(crate) async fn unwrap(&self, keys: &[WrappedKey]) -> Result<Vec<Unwrapped>, KeyError> {
        let mut opened: Vec<Option<Unwrapped>> = keys.iter().map(|_| None).collect();
        for name in ["ring:", "vault:", "aws-kms:"] {
            let places: Vec<usize> = (0..keys.len()).filter(|&at| keys[at].kek.starts_with(name)).collect();
            if places.is_empty() {
                continue;
            }
            let wrapped: Vec<&WrappedKey> = places.iter().map(|&at| &keys[at]).collect();
            let found = match name {
                "ring:" => self.ring()?.unwrap(&wrapped)?,
                #[cfg(feature = "vault")]
                "vault:" => self.vault()?.unwrap(&wrapped).await?,
                #[cfg(feature = "aws-kms")]
                "aws-kms:" => self.kms()?.unwrap(&wrapped).await?,
                other => return Err(not_built(other.trim_end_matches(':'))),
            };
            for (at, key) in places.into_iter().zip(found) {
                opened[at] = Some(key);
            }
        }
        let unknown = |key: &WrappedKey| Err(format!("nobody here opens what {} has wrapped", key.kek));
        Ok(opened.into_iter().zip(keys).map(|(found, key)| found.unwrap_or_else(|| unknown(key))).collect())
    }

    fn ring(&self) -> Result<&Ring, KeyError> {
        self.ring.as_ref().ok_or_else(|| not_configured("ring", "ring_file"))
    }

    #[cfg(feature = "vault")]
    fn vault(&self) -> Result<&Vault, KeyError> {
        self.vault.as_ref().ok_or_else(|| not_configured("vault", "vault_url"))
    }

    #[cfg(feature = "aws-kms")]
    fn kms(&self) -> Result<&Kms, KeyError> {
        self.kms.as_ref().ok_or_else(|| not_configured("aws-kms", "kms_key"))
    }
}

fn not_configured(name: &str, option: &str) -> KeyError {
    KeyError::Provider(format!("a data key is wrapped by {name}, and keys.{option} is not set"))
}

fn not_built(name: &str) -> KeyError {
    KeyError::Settings(format!("this memfleet is built without the feature {name}"))
}

/// A file of key-encryption keys.
#[derive(Debug)]
struct Ring(RingFile);

impl Ring {
    fn read(&self) -> Result<Arc<KeyRing>, KeyError> {
        self.0.ring().map_err(|error| KeyError::Provider(error.to_string()))
    }

    fn current(&self) -> Result<String, KeyError> {
        let ring = self.read()?;
        let key = ring.current(KEK).ok_or_else(|| self.without(None))?;
        Ok(format!("ring:{}", trust::key_id(KEK, key.version())))
    }

    fn wrap(&self, keys: &[(UserId, CipherKey)]) -> Result<Vec<WrappedKey>, KeyError> {
        let ring = self.read()?;
        let kek = ring.current(KEK).ok_or_else(|| self.without(None))?;
        let name = format!("ring:{}", trust::key_id(KEK, kek.version()));
        keys.iter()
            .map(|(user, key)| {
                let aad = AssociatedData::DataKey { user: *user, version: key.version() };
                let wrapped =
                    kek.seal(key.expose(), aad).map_err(|error| KeyError::Provider(error.to_string()))?;
                Ok(WrappedKey { user: *user, version: key.version(), kek: name.clone(), wrapped })
            })
            .collect()
    }

    fn unwrap(&self, keys: &[&WrappedKey]) -> Result<Vec<Unwrapped>, KeyError> {
        let ring = self.read()?;
        let newest = ring.current(KEK).map_or(0, CipherKey::version);
        keys.iter()
            .map(|key| {
                let named = key.kek.strip_prefix("ring:").and_then(trust::parse_key_id);
                let Some(kek) = named.and_then(|(name, version)| ring.get(name, version)) else {
                    // A newer one is on its way to this replica's file, and nobody's message is at fault. An older one or
                    // one of another name is lost, which is its users' trouble alone.
                    let is_newer = named.is_some_and(|(name, version)| name == KEK && version > newest);
                    let lacking = self.without(Some(&key.kek));
                    return if is_newer { Err(lacking) } else { Ok(Err(lacking.to_string())) };
                };
                let aad = AssociatedData::DataKey { user: key.user, version: key.version };
                Ok(match kek.open(&key.wrapped, aad) {
                    Ok(bytes) => key_of(key.version, &bytes),
                    Err(error) => Err(error.to_string()),
                })
            })
            .collect()
    }

    fn without(&self, kek: Option<&str>) -> KeyError {
        let file = self.0.path().display();
        KeyError::Provider(match kek.map(|kek| kek.trim_start_matches("ring:")) {
            None => format!("{file} has no key-encryption key; `memfleet keys generate` makes one"),
            // Another key under that name would open nothing that the real one has wrapped.
            Some(kek) => format!(
                "{file} lacks the key-encryption key {kek}; copy its line from a replica or a backup that has it"
            ),
        })
    }
}

/// A data key from what was in its wrapping.
pub(crate) fn key_of(version: u32, bytes: &[u8]) -> Unwrapped {
    let mut key =
        <[u8; 32]>::try_from(bytes).map_err(|_| "its wrapping holds no key of 32 bytes".to_owned())?;
    Ok(CipherKey::new(version, &mut key))
}
