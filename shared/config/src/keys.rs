use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// The key store and the KEK provider.
#[derive(Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct KeySettings {
    /// The URL of the key store, `postgres://user:password@host:port/database`. It must not be the main database.
    pub url: String,
    /// The URL for workers, where `{role}` is replaced by the database role of the worker. Default: `url`.
    pub worker_url: Option<String>,
    /// The KEK provider that wraps new data keys. Keys that other providers wrapped can be unwrapped as long as those
    /// providers are configured.
    pub provider: ProviderName,
    /// For `ring`: a file with KEKs, one `kek.<version> <64 hex digits>` per line.
    pub ring_file: Option<String>,
    /// For `vault`: the URL, such as `https://vault.example.com:8200`.
    pub vault_url: Option<String>,
    /// For `vault`: a file with the token. It is read for every request.
    pub vault_token_file: Option<String>,
    /// For `vault`: the mount path of the transit engine.
    pub vault_mount: String,
    /// For `vault`: the name of the transit key.
    pub vault_key: String,
    /// For `vault`: former transit keys whose data keys are still unwrapped, as `<mount>/<key>`, separated by commas.
    pub vault_former_keys: Option<String>,
    /// For `vault`: a PEM file with the CA certificates. Default: the public CAs.
    pub vault_ca_file: Option<String>,
    /// For `aws-kms`: the id, alias or ARN of the key. Credentials are taken from AWS_ACCESS_KEY_ID,
    /// AWS_SECRET_ACCESS_KEY and AWS_SESSION_TOKEN.
    pub kms_key: Option<String>,
    /// For `aws-kms`: the ARNs of former keys whose data keys are still unwrapped, separated by commas.
    pub kms_former_keys: Option<String>,
    /// For `aws-kms`: the region.
    pub kms_region: Option<String>,
    /// For `aws-kms`: the URL of the endpoint. Default: the endpoint of the region.
    pub kms_url: Option<String>,
    /// How long a process caches a data key, in seconds, 1 to 3600.
    pub cache_s: u64,
}

/// A KEK provider.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ProviderName {
    /// A key ring file.
    #[default]
    Ring,
    /// The transit engine of HashiCorp Vault or OpenBao.
    Vault,
    /// AWS KMS.
    AwsKms,
}

impl Default for KeySettings {
    fn default() -> Self {
        Self {
            url: "postgres://127.0.0.1:5432/memfleet_keys".to_owned(),
            worker_url: None,
            provider: ProviderName::Ring,
            ring_file: None,
            vault_url: None,
            vault_token_file: None,
            vault_mount: "transit".to_owned(),
            vault_key: "memfleet".to_owned(),
            vault_former_keys: None,
            vault_ca_file: None,
            kms_key: None,
            kms_former_keys: None,
            kms_region: None,
            kms_url: None,
            cache_s: 60,
        }
    }
}

impl fmt::Debug for KeySettings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KeySettings").field("provider", &self.provider).finish_non_exhaustive()
    }
}

impl KeySettings {
    /// The URL of the key store for a worker with this database role.
    pub fn url_of(&self, role: &str) -> String {
        self.worker_url.as_ref().map_or_else(|| self.url.clone(), |url| url.replace("{role}", role))
    }

    /// See `cache_s`.
    pub fn cache(&self) -> Duration {
        Duration::from_secs(self.cache_s)
    }
}
