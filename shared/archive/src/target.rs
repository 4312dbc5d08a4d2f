//! Where archives are: a folder, or an S3-compatible store.

use std::future::Future;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use chrono::{DateTime, Utc};
use config::ArchiveSettings;
use futures::StreamExt;
use object_store::local::LocalFileSystem;
use object_store::{Error, ObjectStore, ObjectStoreExt, path};
use tokio::time::timeout;
use trust::{PrivateKey, PublicKey};

use crate::error::ArchiveError;

/// The most files that are listed.
const MAX_LISTED: usize = 1_000_000;

/// The place of all archives.
#[derive(Clone, Debug)]
pub struct Target {
    store: Arc<dyn ObjectStore>,
    /// The folder in a bucket; empty if there is none.
    prefix: String,
    timeout: Duration,
}

/// A file at the target.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// Its path in the target.
    pub path: String,
    /// Its length.
    pub bytes: u64,
    /// When it was written.
    pub modified: DateTime<Utc>,
}

/// The keys of manifests.
#[derive(Debug)]
pub struct Keys;

impl Keys {
    /// The key that signs.
    ///
    /// # Errors
    /// [`ArchiveError`] if `archive.signing_key_file` is not set or holds no private key.
    pub fn signing(settings: &ArchiveSettings) -> Result<PrivateKey, ArchiveError> {
        let file = settings.signing_key_file.as_deref().ok_or_else(|| {
            ArchiveError::Settings(
                "archive.signing_key_file is not set; archives are signed with it (`memfleet audit key generate` creates a key)"
                    .to_owned(),
            )
        })?;
        PrivateKey::read(Path::new(file))
            .map_err(|problem| ArchiveError::Key { option: "archive.signing_key_file", problem })
    }

    /// The keys whose signatures are accepted.
    ///
    /// # Errors
    /// [`ArchiveError`] if neither option is set, or the file holds no keys.
    pub fn public(settings: &ArchiveSettings) -> Result<Vec<PublicKey>, ArchiveError> {
        match &settings.public_keys_file {
            Some(file) => PublicKey::read_all(Path::new(file))
                .map_err(|problem| ArchiveError::Key { option: "archive.public_keys_file", problem }),
            None if settings.signing_key_file.is_some() => Ok(vec![Self::signing(settings)?.public()]),
            None => Err(ArchiveError::Settings(
                "archive.public_keys_file is not set; archives are verified with the public keys in it"
                    .to_owned(),
            )),
        }
    }
}

impl Target {
    /// The target of `archive.url`. A folder must exist: another one than the one that is meant could be on the wrong disk.
    ///
    /// # Errors
    /// [`ArchiveError::Settings`] if there is none, or it cannot be used.
    pub fn open(settings: &ArchiveSettings) -> Result<Self, ArchiveError> {
        let timeout = Duration::from_millis(settings.timeout_ms);
        let failed = |problem: String| Err(ArchiveError::Settings(problem));
        let Some(url) = settings.url.as_deref() else {
            return failed(
                "archive.url is not set; it names the folder or the S3 bucket of archives, such as file:///var/lib/memfleet/archives"
                    .to_owned(),
            );
        };
        if let Some(folder) = url.strip_prefix("file://") {
            let folder = percent_encoding::percent_decode_str(folder).decode_utf8_lossy().into_owned();
            return match LocalFileSystem::new_with_prefix(&folder) {
                Ok(_) if !Path::new(&folder).is_dir() => {
                    failed(format!("archive.url names the folder {folder}, which is no folder"))
                }
                Ok(store) => Ok(Self::with_store(Arc::new(store.with_fsync(true)), timeout)),
                Err(error) => {
                    failed(format!("archive.url names the folder {folder}, which cannot be used: {error}"))
                }
            };
        }
        match url.strip_prefix("s3://") {
            Some(rest) => {
                let (bucket, prefix) = rest.split_once('/').unwrap_or((rest, ""));
                let store = s3(settings, bucket, timeout)?;
                Ok(Self { store, prefix: prefix.trim_matches('/').to_owned(), timeout })
            }
            None => failed("archive.url must begin with file:/// or s3://".to_owned()),
        }
    }

    /// Archives in this store.
    pub fn with_store(store: Arc<dyn ObjectStore>, timeout: Duration) -> Self {
        Self { store, prefix: String::new(), timeout }
    }

    fn place(&self, file: &str) -> Result<path::Path, ArchiveError> {
        let full = if self.prefix.is_empty() { file.to_owned() } else { format!("{}/{file}", self.prefix) };
        path::Path::parse(full).map_err(|error| failure("use", file, &error.to_string()))
    }

    async fn within<T>(
        &self,
        action: &'static str,
        file: &str,
        work: impl Future<Output = Result<T, Error>>,
    ) -> Result<T, ArchiveError> {
        match timeout(self.timeout, work).await {
            Ok(Ok(done)) => Ok(done),
            Ok(Err(Error::NotFound { .. })) => Err(ArchiveError::Missing(file.to_owned())),
            Ok(Err(error)) => Err(failure(action, file, &error.to_string())),
            Err(_) => Err(failure(action, file, "no answer in time (archive.timeout_ms)")),
        }
    }

    pub(crate) async fn put(&self, file: &str, content: Vec<u8>) -> Result<(), ArchiveError> {
        let place = self.place(file)?;
        self.within("write", file, self.store.put(&place, content.into())).await.map(|_| ())
    }

    /// The content of a file that has at most so many bytes.
    pub(crate) async fn get(&self, file: &str, most: u64) -> Result<Bytes, ArchiveError> {
        let place = self.place(file)?;
        let read = async {
            let found = self.store.get(&place).await?;
            let bytes = found.meta.size;
            if bytes > most { Ok(Err(bytes)) } else { found.bytes().await.map(Ok) }
        };
        self.within("read", file, read).await?.map_err(|bytes| {
            ArchiveError::changed(file, format!("it has {bytes} bytes, more than any archive ({most})"))
        })
    }

    /// All files, in the order of their paths.
    ///
    /// # Errors
    /// [`ArchiveError::Target`] if the target cannot be listed, or has more than a million of them.
    pub async fn list(&self) -> Result<Vec<Found>, ArchiveError> {
        let prefix = if self.prefix.is_empty() { None } else { Some(self.place("")?) };
        let skip = if self.prefix.is_empty() { 0 } else { self.prefix.len() + 1 };
        let mut listed = self.store.list(prefix.as_ref());
        let mut found = Vec::new();
        loop {
            let next = async { Ok(listed.next().await) };
            match self.within("list", "files", next).await? {
                None => break,
                Some(Ok(meta)) => found.push(Found {
                    path: meta.location.as_ref().get(skip..).unwrap_or_default().to_owned(),
                    bytes: meta.size,
                    modified: meta.last_modified,
                }),
                Some(Err(error)) => return Err(failure("list", "files", &error.to_string())),
            }
            if found.len() > MAX_LISTED {
                return Err(failure("list", "files", "it has more than a million of them"));
            }
        }
        found.sort_by(|one, two| one.path.cmp(&two.path));
        Ok(found)
    }

    /// Deletes a file that no archive has.
    ///
    /// # Errors
    /// [`ArchiveError`] if it is not there or cannot be deleted.
    pub async fn delete(&self, file: &str) -> Result<(), ArchiveError> {
        let place = self.place(file)?;
        self.within("delete", file, self.store.delete(&place)).await
    }
}

fn failure(action: &'static str, file: &str, problem: &str) -> ArchiveError {
    ArchiveError::Target { action, path: file.to_owned(), problem: problem.to_owned() }
}

#[cfg(not(feature = "s3"))]
fn s3(_: &ArchiveSettings, _: &str, _: Duration) -> Result<Arc<dyn ObjectStore>, ArchiveError> {
    Err(ArchiveError::Settings(
        "archive.url names an S3 bucket, and this build is without the feature s3; build with `--features s3`, or use a folder"
            .to_owned(),
    ))
}

#[cfg(feature = "s3")]
fn s3(
    settings: &ArchiveSettings,
    bucket: &str,
    timeout: Duration,
) -> Result<Arc<dyn ObjectStore>, ArchiveError> {
    use object_store::aws::AmazonS3Builder;
    use object_store::{ClientOptions, RetryConfig};
    // Another part of the program may have chosen it already.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let local = ["http://127.0.0.1", "http://localhost", "http://[::1]"];
    let is_local =
        settings.s3_url.as_ref().is_some_and(|url| local.iter().any(|start| url.starts_with(start)));
    let retry = RetryConfig { max_retries: 3, retry_timeout: timeout, ..RetryConfig::default() };
    let mut builder = AmazonS3Builder::from_env()
        .with_bucket_name(bucket)
        .with_client_options(ClientOptions::new().with_timeout(timeout).with_allow_http(is_local))
        .with_retry(retry);
    if let Some(region) = &settings.s3_region {
        builder = builder.with_region(region);
    }
    if let Some(url) = &settings.s3_url {
        builder = builder.with_endpoint(url);
    }
    let store = builder.build().map_err(|error| {
        ArchiveError::Settings(format!(
            "archive.url names the S3 bucket {bucket}, which cannot be used: {error}"
        ))
    })?;
    Ok(Arc::new(store))
}
