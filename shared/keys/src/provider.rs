//! KEK providers: they wrap and unwrap data keys.

use std::path::Path;
use std::sync::Arc;

use contract::UserId;
use trust::{AssociatedData, CipherKey, KeyRing, RingFile};

use crate::KeyError;
use crate::data_key::key_of;
use crate::key_store::WrappedKey;
#[cfg(feature = "aws-kms")]
use crate::kms::Kms;
#[cfg(feature = "vault")]
use crate::vault::Vault;
use config::{KeySettings, ProviderName};

/// The name of KEKs in a key ring.
pub const KEK: &str = "kek";

/// Why a data key was not unwrapped.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Unopened {
    /// The reason.
    pub(crate) reason: String,
    /// Whether its KEK could not be asked. Otherwise this key will never open.
    pub(crate) is_outage: bool,
}

impl Unopened {
    pub(crate) fn never(reason: String) -> Self {
        Self { reason, is_outage: false }
    }

    pub(crate) fn outage(error: &KeyError) -> Self {
        Self { reason: error.to_string(), is_outage: true }
    }
}

/// The configured KEK providers. One of them wraps new data keys; each unwraps the keys that it wrapped.
#[derive(Debug)]
pub struct Provider {
    wrapping: ProviderName,
    ring: Option<Ring>,
    #[cfg(feature = "vault")]
    vault: Option<Vault>,
    #[cfg(feature = "aws-kms")]
    kms: Option<Kms>,
}

impl Provider {
    /// Opens the configured providers.
    ///
    /// # Errors
    /// [`KeyError::Settings`] if the wrapping provider lacks an option or is not part of this build.
    pub fn open(settings: &KeySettings) -> Result<Self, KeyError> {
        let missing = |option: &str| {
            KeyError::Settings(format!("keys.{option} is not set, but keys.provider requires it"))
        };
        let provider = Self {
            wrapping: settings.provider,
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

    /// The id of the current KEK.
    ///
    /// # Errors
    /// [`KeyError::Provider`] if it is not available.
    pub async fn current(&self) -> Result<String, KeyError> {
        match self.wrapping {
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
        match self.wrapping {
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

    /// Unwraps data keys, in order, each with the provider that wrapped it. Only the KEK that wraps new keys must be
    /// available: a worker that holds a grant of a user can store a key that names any other one, and nobody else may wait
    /// for that.
    pub(crate) async fn unwrap(
        &self,
        keys: &[WrappedKey],
    ) -> Result<Vec<Result<CipherKey, Unopened>>, KeyError> {
        let mut opened: Vec<Option<Result<CipherKey, Unopened>>> = keys.iter().map(|_| None).collect();
        for (prefix, name) in [
            ("ring:", ProviderName::Ring),
            ("vault:", ProviderName::Vault),
            ("aws-kms:", ProviderName::AwsKms),
        ] {
            let indexes: Vec<usize> =
                (0..keys.len()).filter(|&at| keys[at].kek.starts_with(prefix)).collect();
            if indexes.is_empty() {
                continue;
            }
            let wrapped: Vec<&WrappedKey> = indexes.iter().map(|&at| &keys[at]).collect();
            let found = match self.unwrap_with(name, &wrapped).await {
                Ok(found) => found,
                Err(error) if name == self.wrapping => return Err(error),
                Err(error) => wrapped.iter().map(|_| Err(Unopened::outage(&error))).collect(),
            };
            for (at, key) in indexes.into_iter().zip(found) {
                opened[at] = Some(key);
            }
        }
        let unknown = |key: &WrappedKey| {
            Err(Unopened::never(format!("it is wrapped by {}, which is not a known provider", key.kek)))
        };
        Ok(opened.into_iter().zip(keys).map(|(found, key)| found.unwrap_or_else(|| unknown(key))).collect())
    }

    async fn unwrap_with(
        &self,
        name: ProviderName,
        wrapped: &[&WrappedKey],
    ) -> Result<Vec<Result<CipherKey, Unopened>>, KeyError> {
        match name {
            ProviderName::Ring => self.ring()?.unwrap(wrapped),
            #[cfg(feature = "vault")]
            ProviderName::Vault => self.vault()?.unwrap(wrapped).await,
            #[cfg(feature = "aws-kms")]
            ProviderName::AwsKms => self.kms()?.unwrap(wrapped).await,
            #[cfg(not(feature = "vault"))]
            ProviderName::Vault => Err(not_built("vault")),
            #[cfg(not(feature = "aws-kms"))]
            ProviderName::AwsKms => Err(not_built("aws-kms")),
        }
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

/// The KEKs of a setting that lists former ones, separated by commas.
#[cfg(any(feature = "vault", feature = "aws-kms"))]
pub(crate) fn former_keys(listed: Option<&str>) -> impl Iterator<Item = String> {
    listed.unwrap_or_default().split(',').map(|key| key.trim().to_owned()).filter(|key| !key.is_empty())
}

fn not_configured(name: &str, option: &str) -> KeyError {
    KeyError::Provider(format!("a data key is wrapped by {name}, but keys.{option} is not set"))
}

#[cfg(not(all(feature = "vault", feature = "aws-kms")))]
fn not_built(name: &str) -> KeyError {
    KeyError::Settings(format!("this build of memfleet lacks the feature {name}"))
}

/// A file of KEKs.
#[derive(Debug)]
struct Ring(RingFile);

impl Ring {
    fn read(&self) -> Result<Arc<KeyRing>, KeyError> {
        self.0.ring().map_err(|error| KeyError::Provider(error.to_string()))
    }

    fn current(&self) -> Result<String, KeyError> {
        let ring = self.read()?;
        let key = ring.current(KEK).ok_or_else(|| self.missing_kek(None))?;
        Ok(format!("ring:{}", trust::key_id(KEK, key.version())))
    }

    fn wrap(&self, keys: &[(UserId, CipherKey)]) -> Result<Vec<WrappedKey>, KeyError> {
        let ring = self.read()?;
        let kek = ring.current(KEK).ok_or_else(|| self.missing_kek(None))?;
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

    fn unwrap(&self, keys: &[&WrappedKey]) -> Result<Vec<Result<CipherKey, Unopened>>, KeyError> {
        let ring = self.read()?;
        let newest = ring.current(KEK).map_or(0, CipherKey::version);
        Ok(keys
            .iter()
            .map(|key| {
                let named = key.kek.strip_prefix("ring:").and_then(trust::parse_key_id);
                let Some(kek) = named.and_then(|(name, version)| ring.get(name, version)) else {
                    // A newer KEK may not have reached the file of this replica yet. An older KEK, or one of another name,
                    // is lost.
                    let is_outage = named.is_some_and(|(name, version)| name == KEK && version > newest);
                    return Err(Unopened { reason: self.missing_kek(Some(&key.kek)).to_string(), is_outage });
                };
                let aad = AssociatedData::DataKey { user: key.user, version: key.version };
                let bytes =
                    kek.open(&key.wrapped, aad).map_err(|error| Unopened::never(error.to_string()))?;
                key_of(key.version, &bytes).map_err(Unopened::never)
            })
            .collect())
    }

    fn missing_kek(&self, kek: Option<&str>) -> KeyError {
        let file = self.0.path().display();
        KeyError::Provider(match kek.map(|kek| kek.trim_start_matches("ring:")) {
            None => format!("{file} has no key-encryption key; `memfleet keys generate` creates one"),
            // A new key of that name could not unwrap anything.
            Some(kek) => {
                format!("{file} lacks the key-encryption key {kek}; copy its line from a replica or a backup")
            }
        })
    }
}
