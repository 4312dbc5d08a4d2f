use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// Where data keys are, and who wraps them.
#[derive(Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct KeySettings {
    /// The key store: `postgres://user:password@host:port/database`. Never the main database.
    pub url: String,
    /// How workers reach it, if not by `url`: `{role}` stands for the database role of the worker.
    pub worker_url: Option<String>,
    /// Who wraps data keys from now on. Those that others have wrapped can still be opened, as long as these are
    /// configured.
    pub provider: ProviderName,
    /// For `ring`: a file with key-encryption keys, `kek.<version> <64 hex digits>` a line.
    pub ring_file: Option<String>,
    /// For `vault`: where it is, such as `https://vault.example.com:8200`.
    pub vault_url: Option<String>,
    /// For `vault`: a file with the token, read anew each time.
    pub vault_token_file: Option<String>,
    /// For `vault`: where the transit engine is mounted.
    pub vault_mount: String,
    /// For `vault`: the name of the key.
    pub vault_key: String,
    /// For `vault`: a file with the certificates of who signed its own, in PEM, if not one of those that everybody knows.
    pub vault_ca_file: Option<String>,
    /// For `aws-kms`: the id, alias or ARN of the key. Credentials are taken from AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY
    /// and AWS_SESSION_TOKEN.
    pub kms_key: Option<String>,
    /// For `aws-kms`: the region.
    pub kms_region: Option<String>,
    /// For `aws-kms`: where it is, if not at the region's own address.
    pub kms_url: Option<String>,
    /// How long a replica uses a data key before it asks the key store again, in seconds, 1 to 3600.
    pub cache_s: u64,
}

/// Who wraps data keys.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ProviderName {
    /// A file.
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
            vault_ca_file: None,
            kms_key: None,
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
    /// How a worker of this role reaches the key store.
    pub fn url_of(&self, role: &str) -> String {
        self.worker_url.as_ref().map_or_else(|| self.url.clone(), |url| url.replace("{role}", role))
    }

    /// See `cache_s`.
    pub fn cache(&self) -> Duration {
        Duration::from_secs(self.cache_s)
    }
}
