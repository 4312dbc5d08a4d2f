use contract::without_password;
use serde::{Deserialize, Serialize};

/// Archives of rows whose retention is over.
#[derive(Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ArchiveSettings {
    /// The folder or the S3 bucket of archives: `file:///path`, or `s3://bucket/prefix`. Absent: policies with the action
    /// `archive` are refused.
    pub url: Option<String>,
    /// A file with the signing key of manifests, `<name> private <64 hex digits>`.
    pub signing_key_file: Option<String>,
    /// A file with the accepted public keys, one `<name> public <64 hex digits>` per line. Default: the public key of
    /// `signing_key_file`.
    pub public_keys_file: Option<String>,
    /// For `s3://`: the region. Credentials are taken as the AWS tools do: from the environment, or from the machine.
    pub s3_region: Option<String>,
    /// For `s3://`: the URL of the endpoint. Default: the endpoint of the region.
    pub s3_url: Option<String>,
    /// The timeout for reading or writing a file, in milliseconds, 100 to 300000.
    pub timeout_ms: u64,
}

impl Default for ArchiveSettings {
    fn default() -> Self {
        Self {
            url: None,
            signing_key_file: None,
            public_keys_file: None,
            s3_region: None,
            s3_url: None,
            timeout_ms: 30_000,
        }
    }
}

impl std::fmt::Debug for ArchiveSettings {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ArchiveSettings")
            .field("url", &self.url.as_deref().map(without_password))
            .finish_non_exhaustive()
    }
}

impl ArchiveSettings {
    /// Checks the forms of the URLs.
    ///
    /// # Errors
    /// A sentence that names the first option that is wrong.
    pub fn check(&self) -> Result<(), String> {
        if self.url.as_ref().is_some_and(|url| !url.starts_with("file:///") && !url.starts_with("s3://")) {
            return Err("archive.url must begin with file:/// (a folder) or s3:// (a bucket), such as \
                 file:///var/lib/memfleet/archives"
                .to_owned());
        }
        if self.s3_url.as_ref().is_some_and(|url| !url.starts_with("https://") && !url.starts_with("http://"))
        {
            return Err("archive.s3_url must begin with https://, or http:// on this machine".to_owned());
        }
        Ok(())
    }
}
