//! The cache of decrypted data keys of a process.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use contract::UserId;
use secrecy::SecretString;
use store::{Pool, PoolOptions};
use trust::{AssociatedData, CipherKey};
use zeroize::Zeroizing;

use crate::data_key::{DataKeys, Unwrapped};
use crate::field::Encrypted;
use crate::key_store::{self, Grants, KeyRequest, WrappedKey};
use crate::provider::{Provider, Unopened};
use crate::{KeyError, SCHEMA};
use config::KeySettings;

/// The maximum number of cached keys. When it is reached, the cache is cleared.
const MAX_CACHED_KEYS: usize = 20_000;
/// Connections to the key store. The keys of a batch are read with one query.
const CONNECTIONS: usize = 2;
/// How long a worker waits for a lock in the key store. Only a transaction that adds a key of the same user holds one, for
/// milliseconds, unless somebody keeps it open.
const LOCK_TIMEOUT: Duration = Duration::from_millis(250);

/// How often a key is added for a user of whom none opens, if another process has added one first which does not open.
const ADD_TRIES: u32 = 5;

/// Which of several keys the caller cannot do without.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Need {
    /// All of them: those whose KEK cannot be asked are waited for.
    All,
    /// Those that open now.
    Available,
}

/// The data keys of users. The first encrypted field of a user creates the data key of the user.
pub struct Keys {
    pool: Pool,
    /// The database role of the worker. Empty for an operator.
    role: String,
    provider: Provider,
    lifetime: Duration,
    cache: Mutex<Cache>,
}

impl fmt::Debug for Keys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Keys").finish_non_exhaustive()
    }
}

/// The cached keys, each with the time at which it was read.
#[derive(Default)]
struct Cache {
    keys: HashMap<(UserId, u32), (CipherKey, Instant)>,
    current: HashMap<UserId, (u32, Instant)>,
}

impl Cache {
    fn current(&self, user: UserId, lifetime: Duration) -> Option<CipherKey> {
        let (version, since) = self.current.get(&user)?;
        if since.elapsed() < lifetime { self.key(user, *version, lifetime) } else { None }
    }

    fn key(&self, user: UserId, version: u32, lifetime: Duration) -> Option<CipherKey> {
        let (key, since) = self.keys.get(&(user, version))?;
        (since.elapsed() < lifetime).then(|| key.clone())
    }

    /// Caches a key that was read from the key store at a time.
    fn insert(&mut self, user: UserId, key: &CipherKey, is_current: bool, at: Instant) {
        if self.keys.len() >= MAX_CACHED_KEYS {
            self.keys.clear();
            self.current.clear();
        }
        self.keys.insert((user, key.version()), (key.clone(), at));
        if is_current {
            self.current.insert(user, (key.version(), at));
        }
    }

    /// Removes expired entries, so that no key stays in memory longer than its lifetime.
    fn evict_expired(&mut self, lifetime: Duration) {
        self.keys.retain(|_, (_, since)| since.elapsed() < lifetime);
        self.current.retain(|_, (_, since)| since.elapsed() < lifetime);
    }
}

impl Keys {
    /// Opens the configured key store and KEK provider for a worker's database role, or for an operator, who has no
    /// role (`""`). It connects with the first request.
    ///
    /// # Errors
    /// [`KeyError::Settings`] if the provider is misconfigured, [`KeyError::Store`] if the URL is invalid.
    pub fn open(
        settings: &KeySettings,
        role: &str,
        name: &str,
        acquire_timeout: Duration,
    ) -> Result<Self, KeyError> {
        let options = PoolOptions {
            name,
            size: CONNECTIONS,
            acquire_timeout,
            statement_timeout: acquire_timeout.max(Duration::from_secs(5)),
            lock_timeout: if role.is_empty() { Duration::ZERO } else { LOCK_TIMEOUT },
        };
        Ok(Self {
            pool: store::open_pool(&settings.url_of(role), &options)?,
            role: role.to_owned(),
            provider: Provider::open(settings)?,
            lifetime: settings.cache(),
            cache: Mutex::default(),
        })
    }

    /// Checks that the key store has its schema and isolates this login, and that the KEK provider has a key, when a
    /// worker starts.
    ///
    /// # Errors
    /// What is missing, and how to correct it.
    pub async fn check(&self) -> Result<(), String> {
        let mut connection = store::acquire(&self.pool)
            .await
            .map_err(|error| format!("the key store: {error}; is it running, and is keys.url correct?"))?;
        let missing = SCHEMA.missing(&mut connection).await.map_err(|fault| fault.to_string())?;
        if let Some(name) = missing.first() {
            return Err(format!(
                "the key store lacks the migration {name}; `memfleet keys migrate` applies it"
            ));
        }
        if !self.role.is_empty() {
            let login = key_store::login(&mut connection).await.map_err(|fault| fault.to_string())?;
            // The key store would refuse the grants of this role, or none, whatever the requests.
            if login.role != self.role || !login.is_isolated {
                return Err(format!(
                    "the key store: the login is {}{}; the worker needs the role {} there: see keys.worker_url",
                    login.role,
                    if login.is_isolated { "" } else { ", which bypasses row-level security" },
                    self.role
                ));
            }
        }
        self.provider.current().await.map(drop).map_err(|error| error.to_string())
    }

    /// The current data keys of at most 10,000 users, under their grants. A data key is created for a user without one that
    /// opens.
    ///
    /// # Errors
    /// [`KeyError::Denied`] if the key store refuses a grant, [`KeyError::Blocked`] if another transaction keeps adding a key of
    /// one of these users. Otherwise [`KeyError`] if the key store or the provider is unavailable, or lacks a key; that error
    /// concerns all users.
    pub async fn current(&self, grants: &Grants<'_>) -> Result<DataKeys, KeyError> {
        let users: BTreeSet<UserId> = grants.keys().copied().collect();
        let (mut found, mut highest) = self.newest(&users, grants).await?;
        for _ in 0..ADD_TRIES {
            let is_lacking = |user: &&UserId| !matches!(found.get(user), Some(Ok(_)));
            let next = |user: &UserId| (*user, highest.get(user).map_or(1, |version| version + 1));
            let lacking: BTreeMap<UserId, u32> = users.iter().filter(is_lacking).map(next).collect();
            if lacking.is_empty() {
                break;
            }
            for (user, version) in lacking.iter().filter(|(_, version)| **version > 1) {
                tracing::warn!(
                    user = user.get(),
                    version,
                    "no data key of a user opens; adding the next one"
                );
            }
            let (read_at, made) = (Instant::now(), self.generate(&lacking).await?);
            let wrapped = key_store::request(&self.pool, &KeyRequest::Add(&made), grants).await?;
            highest.extend(wrapped.iter().map(|key| (key.user, key.version)));
            self.unwrap_all(&wrapped, Some(read_at), |key, opened| drop(found.insert(key.user, opened)))
                .await?;
        }
        Ok(found)
    }

    /// The current data keys of those of these users who have one.
    pub(crate) async fn existing(
        &self,
        users: &BTreeSet<UserId>,
        grants: &Grants<'_>,
    ) -> Result<DataKeys, KeyError> {
        Ok(self.newest(users, grants).await?.0)
    }

    /// The current data key of each user: the highest version that opens. A higher one that does not open was stored by
    /// somebody who holds a grant of the user, or its KEK is not here; nothing that this process reads needs it. Also returns
    /// the highest version of each user whose key was not in the cache.
    async fn newest(
        &self,
        users: &BTreeSet<UserId>,
        grants: &Grants<'_>,
    ) -> Result<(DataKeys, BTreeMap<UserId, u32>), KeyError> {
        let (mut found, mut wanted) = (DataKeys::with_capacity(users.len()), BTreeSet::new());
        {
            let cache = self.cache.lock().unwrap_or_else(PoisonError::into_inner);
            for &user in users {
                match cache.current(user, self.lifetime) {
                    Some(key) => drop(found.insert(user, Ok(key))),
                    None => drop(wanted.insert(user)),
                }
            }
        }
        if wanted.is_empty() {
            return Ok((found, BTreeMap::new()));
        }
        let read_at = Instant::now();
        let wrapped = key_store::request(&self.pool, &KeyRequest::Highest(&wanted), grants).await?;
        let highest = wrapped.iter().map(|key| (key.user, key.version)).collect();
        self.unwrap_all(&wrapped, Some(read_at), |key, opened| drop(found.insert(key.user, opened))).await?;
        wanted.retain(|user| matches!(found.get(user), Some(Err(_))));
        if !wanted.is_empty() {
            let older = key_store::request(&self.pool, &KeyRequest::Older(&wanted), grants).await?;
            // In ascending order, so that the highest one that opens stays.
            let take = |key: &WrappedKey, opened: Unwrapped| {
                if opened.is_ok() {
                    found.insert(key.user, opened);
                }
            };
            self.unwrap_all(&older, Some(read_at), take).await?;
        }
        Ok((found, highest))
    }

    /// The data keys of these users and versions. A key whose KEK cannot be asked is an error for all if they are needed.
    ///
    /// # Errors
    /// As [`Keys::current`].
    pub(crate) async fn of_versions(
        &self,
        keys: impl IntoIterator<Item = (UserId, u32)>,
        grants: &Grants<'_>,
        need: Need,
    ) -> Result<HashMap<(UserId, u32), Unwrapped>, KeyError> {
        let (mut found, mut wanted) = (HashMap::new(), BTreeSet::new());
        {
            let cache = self.cache.lock().unwrap_or_else(PoisonError::into_inner);
            for (user, version) in keys {
                match cache.key(user, version, self.lifetime) {
                    Some(key) => drop(found.insert((user, version), Ok(key))),
                    None => drop(wanted.insert((user, version))),
                }
            }
        }
        if !wanted.is_empty() {
            let wrapped = key_store::request(&self.pool, &KeyRequest::OfVersions(&wanted), grants).await?;
            let opened = self.provider.unwrap(&wrapped).await?;
            let unasked = opened.iter().find_map(|opened| opened.as_ref().err().filter(|one| one.is_outage));
            if let (Need::All, Some(unasked)) = (need, unasked) {
                return Err(KeyError::Provider(unasked.reason.clone()));
            }
            let take = |key: &WrappedKey, opened| drop(found.insert((key.user, key.version), opened));
            self.cache_all(&wrapped, opened, None, take);
        }
        Ok(found)
    }

    /// Decrypts fields, in order, under the grants of their users.
    ///
    /// # Errors
    /// As [`Keys::current`]. A field that cannot be decrypted yields the reason: its key was deleted, or it was
    /// modified or moved to another row.
    pub async fn decrypt(
        &self,
        fields: &[Encrypted],
        grants: &Grants<'_>,
    ) -> Result<Vec<Result<SecretString, String>>, KeyError> {
        let versions = fields.iter().filter_map(|field| Some((field.user, field.key_version()?)));
        let keys = self.of_versions(versions, grants, Need::All).await?;
        Ok(fields.iter().map(|field| decrypt(field, &keys)).collect())
    }

    /// Unwraps data keys of these users and versions, and the current ones of the same users, under their grants. None is created.
    ///
    /// # Errors
    /// As [`Keys::current`].
    pub async fn open_keys(
        &self,
        wanted: &BTreeSet<(UserId, u32)>,
        grants: &Grants<'_>,
    ) -> Result<OpenKeys, KeyError> {
        let users: BTreeSet<UserId> = wanted.iter().map(|(user, _)| *user).collect();
        let current = self.existing(&users, grants).await?;
        let versions = self.of_versions(wanted.iter().copied(), grants, Need::All).await?;
        Ok(OpenKeys { current, versions, asked: wanted.clone() })
    }

    /// Generates and wraps a data key for each user, of this version. They are not stored yet.
    pub(crate) async fn generate(
        &self,
        versions: &BTreeMap<UserId, u32>,
    ) -> Result<Vec<WrappedKey>, KeyError> {
        let new = |(user, version): (&UserId, &u32)| {
            let key = CipherKey::generate(*version).map_err(|error| KeyError::Provider(error.to_string()))?;
            Ok((*user, key))
        };
        self.provider.wrap(&versions.iter().map(new).collect::<Result<Vec<_>, KeyError>>()?).await
    }

    /// The connections to the key store.
    pub fn pool(&self) -> &Pool {
        &self.pool
    }

    pub(crate) fn provider(&self) -> &Provider {
        &self.provider
    }

    /// Unwraps and caches keys. `current_at` is the time at which they were the current keys of their users, if they
    /// were.
    async fn unwrap_all(
        &self,
        wrapped: &[WrappedKey],
        current_at: Option<Instant>,
        take: impl FnMut(&WrappedKey, Unwrapped),
    ) -> Result<(), KeyError> {
        let opened = self.provider.unwrap(wrapped).await?;
        self.cache_all(wrapped, opened, current_at, take);
        Ok(())
    }

    fn cache_all(
        &self,
        wrapped: &[WrappedKey],
        opened: Vec<Result<CipherKey, Unopened>>,
        current_at: Option<Instant>,
        mut take: impl FnMut(&WrappedKey, Unwrapped),
    ) {
        let mut cache = self.cache.lock().unwrap_or_else(PoisonError::into_inner);
        cache.evict_expired(self.lifetime);
        for (key, opened) in wrapped.iter().zip(opened) {
            match &opened {
                Ok(open) => {
                    cache.insert(
                        key.user,
                        open,
                        current_at.is_some(),
                        current_at.unwrap_or_else(Instant::now),
                    );
                }
                Err(Unopened { reason, .. }) => {
                    tracing::warn!(user = key.user.get(), version = key.version, %reason, "a data key cannot be unwrapped");
                }
            }
            take(key, opened.map_err(|unopened| unopened.reason));
        }
    }
}

/// Data keys that have been unwrapped, so that many fields can be decrypted and encrypted while no other server may be called.
#[derive(Default)]
pub struct OpenKeys {
    current: DataKeys,
    versions: HashMap<(UserId, u32), Unwrapped>,
    /// What was asked for. A version that is not among `versions` is not in the key store.
    asked: BTreeSet<(UserId, u32)>,
}

impl fmt::Debug for OpenKeys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("OpenKeys").finish_non_exhaustive()
    }
}

impl OpenKeys {
    /// The current keys, for [`encrypt_fields`](crate::encrypt_fields).
    pub fn current(&self) -> &DataKeys {
        &self.current
    }

    /// The key that a field needs, if it was not asked for.
    pub fn lacks(&self, field: &Encrypted) -> Option<(UserId, u32)> {
        let key = (field.user, field.key_version()?);
        (!self.asked.contains(&key) && !self.versions.contains_key(&key)).then_some(key)
    }

    /// Decrypts a field.
    ///
    /// # Errors
    /// The reason: its key was deleted, or it was modified or moved to another row.
    pub fn decrypt(&self, field: &Encrypted) -> Result<SecretString, String> {
        decrypt(field, &self.versions)
    }

    /// The keys of both.
    #[must_use]
    pub fn with(mut self, other: Self) -> Self {
        self.current.extend(other.current);
        self.versions.extend(other.versions);
        self.asked.extend(other.asked);
        self
    }
}

fn decrypt(field: &Encrypted, keys: &HashMap<(UserId, u32), Unwrapped>) -> Result<SecretString, String> {
    let version = field.key_version().ok_or("it is not a ciphertext")?;
    let key = match keys.get(&(field.user, version)) {
        Some(Ok(key)) => key,
        Some(Err(reason)) => return Err(format!("its data key cannot be unwrapped: {reason}")),
        None => return Err(format!("the key store has no version {version} of its user's data key")),
    };
    let plain = decrypt_with(field, key)?;
    let text = std::str::from_utf8(&plain).map_err(|_| "its plaintext is not UTF-8")?;
    Ok(SecretString::from(text))
}

pub(crate) fn decrypt_with(field: &Encrypted, key: &CipherKey) -> Result<Zeroizing<Vec<u8>>, String> {
    let Encrypted { user, table, column, row, ciphertext } = field;
    let aad = AssociatedData::Field { table, column, row: *row, user: *user };
    key.open(ciphertext, aad).map_err(|error| format!("it {error}"))
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_known_as_the_current_one_until_its_lifetime_ends() {
        let (user, minute) = (UserId::new(1).unwrap(), Duration::from_secs(60));
        let [old, new] = [1, 2].map(|version| CipherKey::new(version, &mut [7; 32]));
        let mut cache = Cache::default();
        cache.insert(user, &new, true, Instant::now());
        cache.insert(user, &old, false, Instant::now());
        let current = |cache: &Cache, lifetime| cache.current(user, lifetime).map(|key| key.version());
        assert_eq!(current(&cache, minute), Some(2));
        assert_eq!(current(&cache, Duration::ZERO), None);
        // One that was read long ago may have been replaced since, even if its key was read again for a field.
        cache.insert(user, &new, true, Instant::now().checked_sub(minute).unwrap());
        cache.insert(user, &new, false, Instant::now());
        assert_eq!(current(&cache, minute), None);
        cache.evict_expired(minute);
        assert_eq!((cache.current.len(), cache.keys.len()), (0, 2));
    }
}
