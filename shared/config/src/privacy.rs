use std::time::Duration;

use contract::without_password;
use serde::{Deserialize, Serialize};

/// The erasure of persons.
#[derive(Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct PrivacySettings {
    /// A file with the key that signs receipts, and the statements of what was erased from the audit trail: `<name> private <64 hex
    /// digits>`. Whoever has it can excuse the removal of events.
    pub receipt_key_file: Option<String>,
    /// A file with the accepted public keys, one `<name> public <64 hex digits>` per line. Default: the public key of
    /// `receipt_key_file`.
    pub public_keys_file: Option<String>,
    /// The folder or the S3 bucket of receipts: `file:///path`, or `s3://bucket/prefix` with the region, the endpoint and the timeout of
    /// the section `archive`.
    pub receipt_url: Option<String>,
    /// The folder of exports that services request, which exists: each has a folder of its own in it, named by its request. Without it, these requests
    /// wait.
    pub export_folder: Option<String>,
    /// How often erasures that are due are looked for, in seconds, 1 to 3600.
    pub every_s: u64,
    /// How many messages are deleted from the streams at a time, 1 to 256.
    pub streams_parallel: usize,
}

impl Default for PrivacySettings {
    fn default() -> Self {
        Self {
            receipt_key_file: None,
            public_keys_file: None,
            receipt_url: None,
            export_folder: None,
            every_s: 5,
            streams_parallel: 16,
        }
    }
}

impl std::fmt::Debug for PrivacySettings {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PrivacySettings")
            .field("receipt_url", &self.receipt_url.as_deref().map(without_password))
            .finish_non_exhaustive()
    }
}

impl PrivacySettings {
    /// See `every_s`.
    pub fn every(&self) -> Duration {
        Duration::from_secs(self.every_s)
    }

    /// Checks the form of the URL and of the folder.
    ///
    /// # Errors
    /// A sentence that names the option that is wrong.
    pub fn check(&self) -> Result<(), String> {
        if self
            .receipt_url
            .as_ref()
            .is_some_and(|url| !url.starts_with("file:///") && !url.starts_with("s3://"))
        {
            return Err(
                "privacy.receipt_url must begin with file:/// (a folder) or s3:// (a bucket), such as \
                 file:///var/lib/memfleet/receipts"
                    .to_owned(),
            );
        }
        if self.export_folder.as_ref().is_some_and(|folder| !folder.starts_with('/')) {
            return Err("privacy.export_folder must be an absolute path, such as /var/lib/memfleet/exports"
                .to_owned());
        }
        Ok(())
    }
}
