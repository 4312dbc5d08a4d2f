//! AWS KMS as KEK provider. The KEK never leaves KMS.

use std::collections::{BTreeMap, BTreeSet};

use chrono::Utc;
use contract::{UserId, without_password};
use data_encoding::BASE64;
use futures::{StreamExt, TryStreamExt, stream};
use secrecy::{ExposeSecret, SecretString};
use serde::{Deserialize, Serialize};
use trust::CipherKey;
use ureq::Agent;
use zeroize::Zeroizing;

use crate::KeyError;
use crate::data_key::{Unwrapped, key_of};
use crate::http::{self, Answer};
use crate::key_store::WrappedKey;
use crate::provider::{Unopened, former_keys};
use crate::sigv4::{Signer, amz_date};
use config::KeySettings;

/// The maximum number of concurrent requests. KMS accepts one key per request.
const AT_ONCE: usize = 8;

/// A key in AWS KMS.
pub(crate) struct Kms {
    agent: Agent,
    url: String,
    host: String,
    region: String,
    key: String,
    /// The ARNs of former keys.
    former: BTreeSet<String>,
    access_key: String,
    secret_key: SecretString,
    session_token: Option<SecretString>,
}

impl std::fmt::Debug for Kms {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let url = without_password(&self.url);
        f.debug_struct("Kms").field("url", &url).field("key", &self.key).finish_non_exhaustive()
    }
}

/// The encryption context of a data key. KMS unwraps the key with the same context only, and logs it in CloudTrail.
type EncryptionContext = BTreeMap<&'static str, String>;

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct Encrypt<'a> {
    key_id: &'a str,
    plaintext: Zeroizing<String>,
    encryption_context: EncryptionContext,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Encrypted {
    ciphertext_blob: String,
    /// The ARN of the key, also if the request named an alias.
    key_id: String,
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct DescribeKey<'a> {
    key_id: &'a str,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Described {
    key_metadata: Metadata,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Metadata {
    arn: String,
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct Decrypt<'a> {
    key_id: &'a str,
    ciphertext_blob: String,
    encryption_context: EncryptionContext,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Decrypted {
    plaintext: Zeroizing<String>,
}

#[derive(Deserialize)]
struct ErrorBody {
    #[serde(rename = "__type")]
    name: String,
}

impl Kms {
    pub(crate) fn open(settings: &KeySettings) -> Result<Option<Self>, KeyError> {
        let Some(key) = settings.kms_key.clone() else { return Ok(None) };
        let variable = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
        let required = |name: &str| {
            variable(name).ok_or_else(|| {
                KeyError::Settings(format!("keys.kms_key is set, but the environment variable {name} is not"))
            })
        };
        let region = settings.kms_region.clone().ok_or_else(|| {
            KeyError::Settings("keys.kms_key is set, but keys.kms_region is not".to_owned())
        })?;
        let url = match &settings.kms_url {
            Some(url) => url.trim_end_matches('/').to_owned(),
            None => format!("https://kms.{region}.amazonaws.com"),
        };
        http::check_url("kms_url", &url)?;
        let host = url.split_once("://").map_or(url.as_str(), |(_, host)| host).to_owned();
        Ok(Some(Self {
            agent: http::agent(None)?,
            host,
            url,
            region,
            key,
            former: former_keys(settings.kms_former_keys.as_deref()).collect(),
            access_key: required("AWS_ACCESS_KEY_ID")?,
            secret_key: required("AWS_SECRET_ACCESS_KEY")?.into(),
            session_token: variable("AWS_SESSION_TOKEN").map(SecretString::from),
        }))
    }

    /// `aws-kms:<ARN>`, because an alias may name another key later. KMS does not reveal which version of the key it
    /// uses.
    pub(crate) async fn current(&self) -> Result<String, KeyError> {
        let answer = self.ask("DescribeKey", &DescribeKey { key_id: &self.key }).await?;
        match serde_json::from_slice::<Described>(&answer.body) {
            Ok(described) if answer.status == 200 => Ok(format!("aws-kms:{}", described.key_metadata.arn)),
            Ok(_) | Err(_) => Err(error_of(&answer)),
        }
    }

    pub(crate) async fn wrap(&self, keys: &[(UserId, CipherKey)]) -> Result<Vec<WrappedKey>, KeyError> {
        let wrap = async |user: UserId, key: CipherKey| {
            let request = Encrypt {
                key_id: &self.key,
                plaintext: Zeroizing::new(BASE64.encode(key.expose())),
                encryption_context: context(user, key.version()),
            };
            let answer = self.ask("Encrypt", &request).await?;
            let encrypted: Encrypted = match serde_json::from_slice(&answer.body) {
                Ok(encrypted) if answer.status == 200 => encrypted,
                Ok(_) | Err(_) => return Err(error_of(&answer)),
            };
            let wrapped = BASE64
                .decode(encrypted.ciphertext_blob.as_bytes())
                .map_err(|_| KeyError::Provider("the response of KMS is not base64".to_owned()))?;
            let kek = format!("aws-kms:{}", encrypted.key_id);
            Ok(WrappedKey { user, version: key.version(), kek, wrapped })
        };
        let requests: Vec<_> = keys.iter().map(|(user, key)| wrap(*user, key.clone())).collect();
        stream::iter(requests).buffered(AT_ONCE).try_collect().await
    }

    /// Unwraps keys, each with the key that wrapped it: the configured one, which must be available, or a former one. Whoever
    /// stores a data key writes the name of its key: one of another account would be known to its owner.
    pub(crate) async fn unwrap(
        &self,
        keys: &[&WrappedKey],
    ) -> Result<Vec<Result<CipherKey, Unopened>>, KeyError> {
        let current = &self.current().await?;
        let requests: Vec<_> = keys.iter().map(|key| self.unwrap_known((*key).clone(), current)).collect();
        stream::iter(requests).buffered(AT_ONCE).try_collect().await
    }

    async fn unwrap_known(
        &self,
        key: WrappedKey,
        current: &str,
    ) -> Result<Result<CipherKey, Unopened>, KeyError> {
        let is_current = key.kek == current;
        let arn = key.kek.strip_prefix("aws-kms:").unwrap_or_default();
        if !is_current && !self.former.contains(arn) {
            let reason = format!("its key {arn:?} of KMS is not configured; see keys.kms_former_keys");
            return Ok(Err(Unopened::never(reason)));
        }
        match self.unwrap_one(key).await {
            Ok(opened) => Ok(opened.map_err(Unopened::never)),
            Err(error) if is_current => Err(error),
            Err(error) => Ok(Err(Unopened::outage(&error))),
        }
    }

    async fn unwrap_one(&self, key: WrappedKey) -> Result<Unwrapped, KeyError> {
        // With the key id, KMS rejects a blob that another key has wrapped.
        let request = Decrypt {
            key_id: key.kek.strip_prefix("aws-kms:").unwrap_or_default(),
            ciphertext_blob: BASE64.encode(&key.wrapped),
            encryption_context: context(key.user, key.version),
        };
        let answer = self.ask("Decrypt", &request).await?;
        if answer.status == 200 {
            let decrypted: Decrypted = serde_json::from_slice(&answer.body).map_err(|_| error_of(&answer))?;
            let bytes = BASE64
                .decode(decrypted.plaintext.as_bytes())
                .map_err(|_| KeyError::Provider("the response of KMS is not base64".to_owned()))?;
            return Ok(key_of(key.version, &Zeroizing::new(bytes)));
        }
        // These errors are about the blob; any other, such as a disabled key, is for the operator to correct.
        let of_blob = ["InvalidCiphertextException", "IncorrectKeyException"];
        match serde_json::from_slice::<ErrorBody>(&answer.body) {
            Ok(error) if of_blob.iter().any(|name| error.name.ends_with(name)) => {
                Ok(Err(format!("KMS cannot unwrap it: {}", error.name)))
            }
            Ok(_) | Err(_) => Err(error_of(&answer)),
        }
    }

    async fn ask<T: Serialize>(&self, action: &str, request: &T) -> Result<Answer, KeyError> {
        let body = serde_json::to_vec(request)
            .map(Zeroizing::new)
            .map_err(|error| KeyError::Provider(error.to_string()))?;
        let (now, target) = (Utc::now(), format!("TrentService.{action}"));
        let date = amz_date(now);
        let mut headers: Vec<(&str, &str)> =
            vec![("content-type", "application/x-amz-json-1.1"), ("host", &self.host), ("x-amz-date", &date)];
        if let Some(token) = &self.session_token {
            headers.push(("x-amz-security-token", token.expose_secret()));
        }
        headers.push(("x-amz-target", &target));
        let signer = Signer {
            access_key: &self.access_key,
            secret_key: &self.secret_key,
            region: &self.region,
            service: "kms",
        };
        let authorization = signer.authorization("POST", &headers, &body, now);
        let mut sent: Vec<(String, String)> = headers
            .iter()
            .filter(|(name, _)| *name != "host")
            .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
            .collect();
        sent.push(("authorization".to_owned(), authorization));
        http::ask(&self.agent, format!("{}/", self.url), sent, Some(body)).await
    }
}

fn context(user: UserId, version: u32) -> EncryptionContext {
    BTreeMap::from([
        ("memfleet-key", "data-key".to_owned()),
        ("user-id", user.to_string()),
        ("version", version.to_string()),
    ])
}

fn error_of(answer: &Answer) -> KeyError {
    KeyError::Provider(format!("KMS responded with {}", http::problem(answer)))
}
