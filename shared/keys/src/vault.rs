//! The transit engine of HashiCorp Vault or OpenBao as KEK provider. The KEK never leaves Vault.

use std::collections::{BTreeMap, BTreeSet};

use contract::UserId;
use data_encoding::BASE64;
use serde::{Deserialize, Serialize};
use trust::{AssociatedData, CipherKey};
use ureq::Agent;
use zeroize::Zeroizing;

use crate::KeyError;
use crate::data_key::{Unwrapped, key_of};
use crate::http::{self, Answer};
use crate::key_store::WrappedKey;
use crate::provider::{Unopened, former_keys};
use config::KeySettings;

/// A key in a transit engine.
pub(crate) struct Vault {
    agent: Agent,
    /// The URL, such as `https://vault.example.com:8200`.
    server: String,
    mount: String,
    key: String,
    /// Former transit keys, as `<mount>/<key>`.
    former: BTreeSet<String>,
    token_file: String,
}

impl std::fmt::Debug for Vault {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Vault").field("server", &self.server).field("key", &self.key).finish_non_exhaustive()
    }
}

/// A data key to wrap.
#[derive(Serialize)]
struct EncryptItem {
    plaintext: Zeroizing<String>,
    associated_data: String,
}

/// A data key to unwrap.
#[derive(Serialize)]
struct DecryptItem {
    ciphertext: String,
    associated_data: String,
}

#[derive(Serialize)]
struct Batch<T> {
    batch_input: Vec<T>,
}

#[derive(Deserialize)]
struct Reply<T> {
    data: T,
}

#[derive(Deserialize)]
struct Results {
    batch_results: Vec<Outcome>,
}

#[derive(Deserialize)]
struct Outcome {
    #[serde(default)]
    ciphertext: Option<String>,
    #[serde(default)]
    plaintext: Option<Zeroizing<String>>,
    #[serde(default)]
    error: Option<String>,
}

#[derive(Deserialize)]
struct KeyState {
    latest_version: u64,
}

impl Vault {
    pub(crate) fn open(settings: &KeySettings) -> Result<Option<Self>, KeyError> {
        let Some(url) = &settings.vault_url else { return Ok(None) };
        let token_file = settings.vault_token_file.clone().ok_or_else(|| {
            KeyError::Settings("keys.vault_url is set, but keys.vault_token_file is not".to_owned())
        })?;
        http::check_url("vault_url", url)?;
        let mount = settings.vault_mount.trim_matches('/').to_owned();
        Ok(Some(Self {
            agent: http::agent(settings.vault_ca_file.as_deref())?,
            server: url.trim_end_matches('/').to_owned(),
            mount,
            key: settings.vault_key.clone(),
            former: former_keys(settings.vault_former_keys.as_deref()).collect(),
            token_file,
        }))
    }

    /// The id of a KEK: `vault:<mount>/<key>.<version>`.
    fn name(&self, version: &str) -> String {
        format!("vault:{}/{}.{version}", self.mount, self.key)
    }

    pub(crate) async fn current(&self) -> Result<String, KeyError> {
        let answer = self.ask(&format!("{}/keys/{}", self.mount, self.key), None).await?;
        let state: KeyState = read(&answer)?;
        Ok(self.name(&state.latest_version.to_string()))
    }

    pub(crate) async fn wrap(&self, keys: &[(UserId, CipherKey)]) -> Result<Vec<WrappedKey>, KeyError> {
        let plain = |(user, key): &(UserId, CipherKey)| EncryptItem {
            plaintext: Zeroizing::new(BASE64.encode(key.expose())),
            associated_data: associated(*user, key.version()),
        };
        let batch = Batch { batch_input: keys.iter().map(plain).collect() };
        let answer = self.ask(&format!("{}/encrypt/{}", self.mount, self.key), Some(text(&batch)?)).await?;
        let results = self.results(&answer, keys.len())?;
        keys.iter()
            .zip(results)
            .map(|((user, key), outcome)| {
                let wrapped = outcome.ciphertext.ok_or_else(|| {
                    KeyError::Provider(format!(
                        "Vault cannot wrap a data key: {}",
                        outcome.error.unwrap_or_default()
                    ))
                })?;
                // The ciphertext starts with its key version: `vault:v3:…`.
                let version =
                    wrapped.split(':').nth(1).and_then(|part| part.strip_prefix('v')).unwrap_or_default();
                let (kek, user) = (self.name(version), *user);
                Ok(WrappedKey { user, version: key.version(), kek, wrapped: wrapped.into_bytes() })
            })
            .collect()
    }

    /// Unwraps keys, each with the transit key that wrapped it: the configured one, which must be available, or a former one.
    /// Whoever stores a data key writes the name of its transit key, so that nothing else of Vault is requested with it.
    pub(crate) async fn unwrap(
        &self,
        keys: &[&WrappedKey],
    ) -> Result<Vec<Result<CipherKey, Unopened>>, KeyError> {
        let mut by_key: BTreeMap<&str, Vec<usize>> = BTreeMap::new();
        for (at, key) in keys.iter().enumerate() {
            by_key.entry(key_path(&key.kek)).or_default().push(at);
        }
        let unanswered = || Err(Unopened::never("Vault returned no result".to_owned()));
        let mut found: Vec<Result<CipherKey, Unopened>> = keys.iter().map(|_| unanswered()).collect();
        for (path, indexes) in by_key {
            let (mount, name) = path.rsplit_once('/').unwrap_or((&self.mount, path));
            let is_current = (mount, name) == (self.mount.as_str(), self.key.as_str());
            if !is_current && !self.former.contains(path) {
                let reason =
                    format!("its transit key {path:?} is not configured; see keys.vault_former_keys");
                indexes.into_iter().for_each(|at| found[at] = Err(Unopened::never(reason.clone())));
                continue;
            }
            let wrapped: Vec<&WrappedKey> = indexes.iter().map(|&at| keys[at]).collect();
            let opened = match self.unwrap_with(mount, name, &wrapped).await {
                Ok(opened) => opened,
                Err(error) if is_current => return Err(error),
                Err(error) => wrapped.iter().map(|_| Err(Unopened::outage(&error))).collect(),
            };
            for (at, key) in indexes.into_iter().zip(opened) {
                found[at] = key;
            }
        }
        Ok(found)
    }

    async fn unwrap_with(
        &self,
        mount: &str,
        name: &str,
        keys: &[&WrappedKey],
    ) -> Result<Vec<Result<CipherKey, Unopened>>, KeyError> {
        let cipher = |key: &&WrappedKey| DecryptItem {
            // Bytes that are not UTF-8 were not wrapped by Vault, which rejects them.
            ciphertext: String::from_utf8_lossy(&key.wrapped).into_owned(),
            associated_data: associated(key.user, key.version),
        };
        let batch = Batch { batch_input: keys.iter().map(cipher).collect() };
        let answer = self.ask(&format!("{mount}/decrypt/{name}"), Some(text(&batch)?)).await?;
        let results = self.results(&answer, keys.len())?;
        let opened =
            |(key, outcome): (&&WrappedKey, Outcome)| unwrapped(key, outcome).map_err(Unopened::never);
        Ok(keys.iter().zip(results).map(opened).collect())
    }

    async fn ask(&self, path: &str, body: Option<Zeroizing<Vec<u8>>>) -> Result<Answer, KeyError> {
        // Read for every request, because a Vault agent may renew the token.
        let token = std::fs::read_to_string(&self.token_file)
            .map(Zeroizing::new)
            .map_err(|error| KeyError::Provider(format!("{} cannot be read: {error}", self.token_file)))?;
        let headers = vec![
            ("X-Vault-Token".to_owned(), token.trim().to_owned()),
            ("X-Vault-Request".to_owned(), "true".to_owned()),
            ("Content-Type".to_owned(), "application/json".to_owned()),
        ];
        http::ask(&self.agent, format!("{}/v1/{path}", self.server), headers, body).await
    }

    /// The results of a batch. If some items fail, Vault responds with 400 and still returns a result for each item.
    fn results(&self, answer: &Answer, wanted: usize) -> Result<Vec<Outcome>, KeyError> {
        let reply = serde_json::from_slice::<Reply<Results>>(&answer.body).ok();
        match reply.map(|reply| reply.data.batch_results) {
            Some(results) if results.len() == wanted && matches!(answer.status, 200 | 400) => Ok(results),
            Some(_) | None => Err(error_of(answer)),
        }
    }
}

fn read<T: for<'a> Deserialize<'a>>(answer: &Answer) -> Result<T, KeyError> {
    match serde_json::from_slice::<Reply<T>>(&answer.body) {
        Ok(reply) if answer.status == 200 => Ok(reply.data),
        Ok(_) | Err(_) => Err(error_of(answer)),
    }
}

fn error_of(answer: &Answer) -> KeyError {
    KeyError::Provider(format!("Vault responded with {}", http::problem(answer)))
}

fn text<T: Serialize>(batch: &T) -> Result<Zeroizing<Vec<u8>>, KeyError> {
    serde_json::to_vec(batch).map(Zeroizing::new).map_err(|error| KeyError::Provider(error.to_string()))
}

/// `<mount>/<key>` of `vault:<mount>/<key>.<version>`.
fn key_path(kek: &str) -> &str {
    let named = kek.strip_prefix("vault:").unwrap_or(kek);
    named.rsplit_once('.').map_or(named, |(path, _)| path)
}

fn associated(user: UserId, version: u32) -> String {
    BASE64.encode(&AssociatedData::DataKey { user, version }.to_bytes())
}

fn unwrapped(key: &WrappedKey, outcome: Outcome) -> Unwrapped {
    let plain = match (outcome.plaintext, outcome.error) {
        (Some(plain), None) => plain,
        (_, error) => return Err(format!("Vault cannot unwrap it: {}", error.unwrap_or_default())),
    };
    let bytes =
        BASE64.decode(plain.as_bytes()).map_err(|_| "the response of Vault is not base64".to_owned())?;
    key_of(key.version, &Zeroizing::new(bytes))
}
