//! Data keys as a replica uses them: asked for a batch at a time, and kept for a while.

use std::collections::{BTreeSet, HashMap};
use std::fmt;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use contract::UserId;
use secrecy::SecretString;
use store::{Pool, PoolOptions};
use trust::{Bound, CipherKey};
use zeroize::Zeroizing;

use crate::field::Encrypted;
use crate::key_store::{self, WrappedKey};
use crate::provider::{Provider, Unwrapped};
use crate::{KeyError, SCHEMA};
use config::KeySettings;

/// The keys that encrypt for the users of a batch. A user whose key cannot be opened has the reason in its place, and keeps
/// nobody else waiting.
pub type DataKeys = HashMap<UserId, Unwrapped>;

/// How many keys a replica keeps. More of them at a time are asked for anew.
const KEPT: usize = 20_000;
/// Connections to the key store. A replica asks for a batch's keys at once.
const CONNECTIONS: usize = 2;

/// The data keys of users. The first secret of a user makes the user's key.
pub struct Keys {
    pool: Pool,
    provider: Provider,
    life: Duration,
    kept: Mutex<Kept>,
}

impl fmt::Debug for Keys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Keys").finish_non_exhaustive()
    }
}

/// What a replica remembers, each with when it was learnt.
#[derive(Default)]
struct Kept {
    keys: HashMap<(UserId, u32), (CipherKey, Instant)>,
    current: HashMap<UserId, (u32, Instant)>,
}

impl Kept {
    fn current(&self, user: UserId, life: Duration) -> Option<CipherKey> {
        let (version, since) = self.current.get(&user)?;
        if since.elapsed() < life { self.key(user, *version, life) } else { None }
    }

    fn key(&self, user: UserId, version: u32, life: Duration) -> Option<CipherKey> {
        let (key, since) = self.keys.get(&(user, version))?;
        (since.elapsed() < life).then(|| key.clone())
    }

    /// Keeps what the key store had at a moment.
    fn keep(&mut self, user: UserId, key: &CipherKey, is_current: bool, at: Instant) {
        if self.keys.len() >= KEPT {
            self.keys.clear();
            self.current.clear();
        }
        self.keys.insert((user, key.version()), (key.clone(), at));
        if is_current {
            self.current.insert(user, (key.version(), at));
        }
    }

    /// Lets go of what is too old to be used, so that no key stays in memory for longer than it is good.
    fn sweep(&mut self, life: Duration) {
        self.keys.retain(|_, (_, since)| since.elapsed() < life);
        self.current.retain(|_, (_, since)| since.elapsed() < life);
    }
}

impl Keys {
    /// The keys that the configuration describes, for a database role. It connects when a key is first asked for.
    ///
    /// # Errors
    /// [`KeyError::Settings`] if the provider cannot be used, [`KeyError::Store`] for a URL that is none.
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
        };
        Ok(Self {
            pool: store::open_pool(&settings.url_of(role), &options)?,
            provider: Provider::open(settings)?,
            life: settings.cache(),
            kept: Mutex::default(),
        })
    }

    /// Whether the key store has its schema and the provider a key, for a worker that starts.
    ///
    /// # Errors
    /// What is missing, and what to do about it.
    pub async fn check(&self) -> Result<(), String> {
        let mut connection = store::acquire(&self.pool)
            .await
            .map_err(|error| format!("the key store: {error}; is it running, and is keys.url right?"))?;
        let missing = SCHEMA.missing(&mut connection).await.map_err(|fault| fault.to_string())?;
        if let Some(name) = missing.first() {
            return Err(format!(
                "the key store lacks the migration {name}; `memfleet keys migrate` brings it up to date"
            ));
        }
        self.provider.current().await.map(drop).map_err(|error| error.to_string())
    }

    /// The keys that encrypt for these users now, at most 10,000 of them. A user without one is given one.
    ///
    /// # Errors
    /// [`KeyError`] if the key store or the provider is away, or lacks a key-encryption key: then nobody's is known.
    pub async fn current(&self, users: &BTreeSet<UserId>) -> Result<DataKeys, KeyError> {
        let mut found = self.existing(users).await?;
        let new: BTreeSet<UserId> = users.iter().filter(|user| !found.contains_key(user)).copied().collect();
        if !new.is_empty() {
            let (asked_at, made) = (Instant::now(), self.make(&new, 1).await?);
            let mut connection = store::acquire(&self.pool).await?;
            // Of two replicas with one new user, one is the quicker; both go on with its key.
            key_store::add(&mut connection, &made).await?;
            let wrapped = key_store::current(&mut connection, &new).await?;
            drop(connection);
            self.open_all(&wrapped, Some(asked_at), |key, opened| drop(found.insert(key.user, opened)))
                .await?;
        }
        Ok(found)
    }

    /// The keys that encrypt for those of these users who have one.
    pub(crate) async fn existing(&self, users: &BTreeSet<UserId>) -> Result<DataKeys, KeyError> {
        let mut found = DataKeys::with_capacity(users.len());
        let mut wanted = BTreeSet::new();
        {
            let kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
            for &user in users {
                match kept.current(user, self.life) {
                    Some(key) => drop(found.insert(user, Ok(key))),
                    None => drop(wanted.insert(user)),
                }
            }
        }
        if !wanted.is_empty() {
            let asked_at = Instant::now();
            let wrapped = key_store::current(&mut *store::acquire(&self.pool).await?, &wanted).await?;
            self.open_all(&wrapped, Some(asked_at), |key, opened| drop(found.insert(key.user, opened)))
                .await?;
        }
        Ok(found)
    }

    /// Keys that have encrypted something, by user and version.
    ///
    /// # Errors
    /// As [`Keys::current`].
    pub(crate) async fn of_versions(
        &self,
        keys: impl IntoIterator<Item = (UserId, u32)>,
    ) -> Result<HashMap<(UserId, u32), Unwrapped>, KeyError> {
        let (mut found, mut wanted) = (HashMap::new(), BTreeSet::new());
        {
            let kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
            for (user, version) in keys {
                match kept.key(user, version, self.life) {
                    Some(key) => drop(found.insert((user, version), Ok(key))),
                    None => drop(wanted.insert((user, version))),
                }
            }
        }
        if !wanted.is_empty() {
            let wrapped = key_store::of_versions(&mut *store::acquire(&self.pool).await?, &wanted).await?;
            let take = |key: &WrappedKey, opened| drop(found.insert((key.user, key.version), opened));
            self.open_all(&wrapped, None, take).await?;
        }
        Ok(found)
    }

    /// Decrypts fields, in order.
    ///
    /// # Errors
    /// As [`Keys::current`]. A field that cannot be decrypted has the reason in its place: its key is gone, or it was
    /// changed or moved.
    pub async fn reveal(&self, fields: &[Encrypted]) -> Result<Vec<Result<SecretString, String>>, KeyError> {
        let keys = self
            .of_versions(fields.iter().filter_map(|field| Some((field.user, field.key_version()?))))
            .await?;
        Ok(fields.iter().map(|field| reveal(field, &keys)).collect())
    }

    /// New keys for users, wrapped and not yet in the key store.
    pub(crate) async fn make(
        &self,
        users: &BTreeSet<UserId>,
        version: u32,
    ) -> Result<Vec<WrappedKey>, KeyError> {
        let new = |user: &UserId| {
            let key = CipherKey::generate(version).map_err(|error| KeyError::Provider(error.to_string()))?;
            Ok((*user, key))
        };
        self.provider.wrap(&users.iter().map(new).collect::<Result<Vec<_>, KeyError>>()?).await
    }

    pub(crate) fn pool(&self) -> &Pool {
        &self.pool
    }

    pub(crate) fn provider(&self) -> &Provider {
        &self.provider
    }

    /// Opens keys and keeps them. Those that were the current ones at a moment are kept as such, from that moment on.
    async fn open_all(
        &self,
        wrapped: &[WrappedKey],
        current_at: Option<Instant>,
        mut take: impl FnMut(&WrappedKey, Unwrapped),
    ) -> Result<(), KeyError> {
        let opened = self.provider.unwrap(wrapped).await?;
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        kept.sweep(self.life);
        for (key, opened) in wrapped.iter().zip(opened) {
            match &opened {
                Ok(open) => {
                    kept.keep(key.user, open, current_at.is_some(), current_at.unwrap_or_else(Instant::now));
                }
                Err(reason) => {
                    tracing::warn!(user = key.user.get(), version = key.version, %reason, "a data key cannot be opened");
                }
            }
            take(key, opened);
        }
        Ok(())
    }
}

fn reveal(field: &Encrypted, keys: &HashMap<(UserId, u32), Unwrapped>) -> Result<SecretString, String> {
    let version = field.key_version().ok_or("it is no ciphertext")?;
    let key = match keys.get(&(field.user, version)) {
        Some(Ok(key)) => key,
        Some(Err(reason)) => return Err(format!("its data key cannot be opened: {reason}")),
        None => return Err(format!("the key store has no version {version} of its user's data key")),
    };
    let plain = open(field, key)?;
    let text = std::str::from_utf8(&plain).map_err(|_| "it holds no text")?;
    Ok(SecretString::from(text))
}

pub(crate) fn open(field: &Encrypted, key: &CipherKey) -> Result<Zeroizing<Vec<u8>>, String> {
    let Encrypted { user, table, column, row, ciphertext } = field;
    let bound = Bound::Field { table, column, row: *row, user: *user };
    key.open(ciphertext, bound).map_err(|error| format!("it {error}"))
}
