//! Where archives are: a folder, or an S3-compatible store.

use std::future::Future;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use chrono::{DateTime, Utc};
use config::ArchiveSettings;
use futures::StreamExt;
use object_store::local::LocalFileSystem;
use object_store::{Error, ObjectStore, ObjectStoreExt, path};
use tokio::task::spawn_blocking;
use tokio::time::timeout;
use trust::{PrivateKey, PublicKey};
use uuid::Uuid;

use crate::error::ArchiveError;
use crate::folder::{Folder, is_of_archive};
use crate::transfer::MANIFEST;

/// The most files and folders that are listed.
pub(crate) const MAX_LISTED: usize = 1_000_000;

/// The place of all archives, or of all receipts.
#[derive(Clone, Debug)]
pub struct Target {
    pub(crate) store: Arc<dyn ObjectStore>,
    /// The folder in a bucket; empty if there is none.
    pub(crate) prefix: String,
    /// The folder, if the target is one. It is written to by the store.
    pub(crate) folder: Option<Folder>,
    timeout: Duration,
}

/// What a target has.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Listing {
    /// The files of archives, in the order of their paths.
    pub files: Vec<Found>,
    /// Links in a folder, in the order of their paths. No archive has any, and they are not followed.
    pub links: Vec<String>,
    /// What could not be read, and why: nobody can tell what is there.
    pub unreadable: Vec<String>,
}

impl Listing {
    /// The folders of archives that are complete, as their manifest is there, which is written last; and the ids that the folders are named by.
    pub fn complete(&self) -> Vec<(String, Uuid)> {
        let of = |file: &Found| {
            let location = file.path.strip_suffix(MANIFEST)?.strip_suffix('/')?;
            let (_, id) = location.rsplit_once('/')?;
            Some((location.to_owned(), Uuid::try_parse(id).ok()?))
        };
        self.files.iter().filter_map(of).collect()
    }
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
        let Some(url) = settings.url.as_deref() else {
            return Err(ArchiveError::Settings(
                "archive.url is not set; it names the folder or the S3 bucket of archives, such as file:///var/lib/memfleet/archives"
                    .to_owned(),
            ));
        };
        Self::open_url("archive.url", url, settings)
    }

    /// The target of the URL in another option, with the timeout and what is set for S3 of archives.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub fn open_url(option: &str, url: &str, settings: &ArchiveSettings) -> Result<Self, ArchiveError> {
        let timeout = Duration::from_millis(settings.timeout_ms);
        let failed = |problem: String| Err(ArchiveError::Settings(problem));
        if let Some(folder) = url.strip_prefix("file://") {
            let folder = percent_encoding::percent_decode_str(folder).decode_utf8_lossy().into_owned();
            let opened = LocalFileSystem::new_with_prefix(&folder)
                .map_err(|error| error.to_string())
                .and_then(|store| {
                    let opened = Folder::open(&folder).map_err(|error| error.to_string())?;
                    Ok((store.with_fsync(true), opened))
                });
            return match opened {
                Ok(_) if !Path::new(&folder).is_dir() => {
                    failed(format!("{option} names the folder {folder}, which is no folder"))
                }
                Ok((store, opened)) => {
                    Ok(Self { folder: Some(opened), ..Self::with_store(Arc::new(store), timeout) })
                }
                Err(error) => {
                    failed(format!("{option} names the folder {folder}, which cannot be used: {error}"))
                }
            };
        }
        match url.strip_prefix("s3://") {
            Some(rest) => {
                let (bucket, prefix) = rest.split_once('/').unwrap_or((rest, ""));
                let store = s3(settings, option, bucket, timeout)?;
                Ok(Self { store, prefix: prefix.trim_matches('/').to_owned(), folder: None, timeout })
            }
            None => failed(format!("{option} must begin with file:/// or s3://")),
        }
    }

    /// Archives in this store.
    pub fn with_store(store: Arc<dyn ObjectStore>, timeout: Duration) -> Self {
        Self { store, prefix: String::new(), folder: None, timeout }
    }

    pub(crate) fn place(&self, file: &str) -> Result<path::Path, ArchiveError> {
        let full = if self.prefix.is_empty() { file.to_owned() } else { format!("{}/{file}", self.prefix) };
        path::Path::parse(full).map_err(|error| failure("use", file, &error.to_string()))
    }

    pub(crate) async fn within<T>(
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

    /// As [`within`](Self::within), for work on a folder.
    pub(crate) async fn on_disk<T: Send + 'static>(
        &self,
        action: &'static str,
        file: &str,
        work: impl FnOnce() -> io::Result<T> + Send + 'static,
    ) -> Result<T, ArchiveError> {
        match timeout(self.timeout, spawn_blocking(work)).await {
            Ok(Ok(Ok(done))) => Ok(done),
            Ok(Ok(Err(error))) if error.kind() == io::ErrorKind::NotFound => {
                Err(ArchiveError::Missing(file.to_owned()))
            }
            Ok(Ok(Err(error))) => Err(failure(action, file, &error.to_string())),
            Ok(Err(error)) => Err(failure(action, file, &error.to_string())),
            Err(_) => Err(failure(action, file, "no answer in time (archive.timeout_ms)")),
        }
    }

    pub(crate) async fn put(&self, file: &str, content: Vec<u8>) -> Result<(), ArchiveError> {
        let place = self.place(file)?;
        if let Some(folder) = self.folder.clone() {
            let path = file.to_owned();
            self.on_disk("write", file, move || folder.place(&path)).await?;
        }
        self.within("write", file, self.store.put(&place, content.into())).await.map(|_| ())
    }

    /// The content of a file that has at most so many bytes.
    pub(crate) async fn get(&self, file: &str, most: u64) -> Result<Bytes, ArchiveError> {
        let place = self.place(file)?;
        let read = if let Some(folder) = self.folder.clone() {
            let path = file.to_owned();
            let read = self.on_disk("read", file, move || folder.read(&path, most)).await?;
            read.map(Bytes::from)
        } else {
            let read = async {
                let found = self.store.get(&place).await?;
                let bytes = found.meta.size;
                if bytes > most { Ok(Err(bytes)) } else { found.bytes().await.map(Ok) }
            };
            self.within("read", file, read).await?
        };
        read.map_err(|bytes| {
            ArchiveError::changed(file, format!("it has {bytes} bytes, more than any archive ({most})"))
        })
    }

    /// All files that are named as those of archives are. Other files, and what links name, are not of archives.
    ///
    /// # Errors
    /// [`ArchiveError::Target`] if the target cannot be listed, or has more than a million files.
    pub async fn list(&self) -> Result<Listing, ArchiveError> {
        let mut listing = match &self.folder {
            Some(folder) => self.list_folder(folder).await?,
            None => self.list_store().await?,
        };
        listing.files.sort_by(|one, two| one.path.cmp(&two.path));
        listing.links.sort_unstable();
        Ok(listing)
    }

    async fn list_folder(&self, folder: &Folder) -> Result<Listing, ArchiveError> {
        let mut listing = Listing::default();
        let mut pending = vec![String::new()];
        let mut left = MAX_LISTED;
        while let Some(path) = pending.pop() {
            let folder = folder.clone();
            let is_root = path.is_empty();
            let inner = path.clone();
            let level = match self.on_disk("list", &path, move || folder.level(&inner, left)).await {
                // Deleted meanwhile.
                Err(ArchiveError::Missing(_)) if !is_root => continue,
                Err(error) if !is_root => {
                    listing.unreadable.push(error.to_string());
                    continue;
                }
                level => level?,
            };
            left = left.saturating_sub(level.seen);
            pending.extend(level.folders);
            listing.files.extend(level.files);
            listing.links.extend(level.links);
            listing.unreadable.extend(level.unreadable);
        }
        Ok(listing)
    }

    async fn list_store(&self) -> Result<Listing, ArchiveError> {
        let prefix = if self.prefix.is_empty() { None } else { Some(self.place("")?) };
        let skip = if self.prefix.is_empty() { 0 } else { self.prefix.len() + 1 };
        let mut listed = self.store.list(prefix.as_ref());
        let mut listing = Listing::default();
        for _ in 0..=MAX_LISTED {
            let next = async { Ok(listed.next().await) };
            match self.within("list", "files", next).await? {
                None => return Ok(listing),
                Some(Ok(meta)) => {
                    let path = meta.location.as_ref().get(skip..).unwrap_or_default();
                    if is_of_archive(path) {
                        let (bytes, modified) = (meta.size, meta.last_modified);
                        listing.files.push(Found { path: path.to_owned(), bytes, modified });
                    }
                }
                Some(Err(error)) => return Err(failure("list", "files", &error.to_string())),
            }
        }
        Err(failure("list", "files", "it has more than a million of them"))
    }

    /// Deletes a file of an archive that nothing names. In a folder, a link is not deleted, nor what it names.
    ///
    /// # Errors
    /// [`ArchiveError`] if it is not there, cannot be deleted, or is no file of an archive.
    pub async fn delete(&self, file: &str) -> Result<(), ArchiveError> {
        if !is_of_archive(file) {
            return Err(failure("delete", file, "it is not named as files of archives are"));
        }
        let place = self.place(file)?;
        if let Some(folder) = self.folder.clone() {
            let path = file.to_owned();
            return self.on_disk("delete", file, move || folder.delete(&path)).await;
        }
        self.within("delete", file, self.store.delete(&place)).await
    }
}

pub(crate) fn failure(action: &'static str, file: &str, problem: &str) -> ArchiveError {
    ArchiveError::Target { action, path: file.to_owned(), problem: problem.to_owned() }
}

#[cfg(not(feature = "s3"))]
fn s3(_: &ArchiveSettings, option: &str, _: &str, _: Duration) -> Result<Arc<dyn ObjectStore>, ArchiveError> {
    Err(ArchiveError::Settings(format!(
        "{option} names an S3 bucket, and this build is without the feature s3; build with `--features s3`, or use a folder"
    )))
}

#[cfg(feature = "s3")]
fn s3(
    settings: &ArchiveSettings,
    option: &str,
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
            "{option} names the S3 bucket {bucket}, which cannot be used: {error}"
        ))
    })?;
    Ok(Arc::new(store))
}
