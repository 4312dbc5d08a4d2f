//! The home folder with the manifest and the collections, and its lock.

use std::collections::BTreeMap;
use std::fs::{self, DirBuilder, File, OpenOptions, TryLockError};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::error::{Problem, StartError};
use crate::files;
use crate::settings::Settings;

const LOCK: &str = "lock";
const CATALOG: &str = "catalog.json";
const COLLECTIONS: &str = "collections";

/// The home folder, locked until drop.
#[derive(Debug)]
pub(crate) struct Storage {
    path: PathBuf,
    /// The kernel releases the lock when the process ends.
    _lock: File,
}

/// The contents of `catalog.json`: the collections by name, and the collection of each alias.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Manifest {
    pub(crate) collections: BTreeMap<String, Entry>,
    pub(crate) aliases: BTreeMap<String, String>,
}

/// A collection in the manifest.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Entry {
    /// The name of its folder. It differs from the name of the collection, which may be created again while the old
    /// folder is being removed.
    pub(crate) folder: String,
    pub(crate) settings: Settings,
}

impl Storage {
    /// Creates the folder if it is missing, and locks it.
    pub(crate) fn open(path: &Path) -> Result<Self, StartError> {
        let collections = path.join(COLLECTIONS);
        // Another user of the machine must not read the vectors.
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&collections)
            .map_err(|source| StartError::file("create the folder", &collections, source))?;
        let path =
            fs::canonicalize(path).map_err(|source| StartError::file("open the folder", path, source))?;
        let lock_path = path.join(LOCK);
        let lock = OpenOptions::new().create(true).truncate(false).write(true).open(&lock_path);
        let lock = lock.map_err(|source| StartError::file("open the lock", &lock_path, source))?;
        match lock.try_lock() {
            Ok(()) => Ok(Self { path, _lock: lock }),
            Err(TryLockError::WouldBlock) => Err(StartError::InUse { home: path }),
            Err(TryLockError::Error(source)) => Err(StartError::file("lock", &lock_path, source)),
        }
    }

    /// The folder of a collection.
    pub(crate) fn folder(&self, entry: &Entry) -> PathBuf {
        self.path.join(COLLECTIONS).join(&entry.folder)
    }

    /// Reads the manifest. It is empty in a new home folder.
    pub(crate) fn read(&self) -> Result<Manifest, StartError> {
        let path = self.path.join(CATALOG);
        let bytes = match fs::read(&path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Manifest::default()),
            Err(source) => return Err(StartError::file("read", &path, source)),
        };
        serde_json::from_slice(&bytes).map_err(|source| StartError::Catalog { path, source })
    }

    /// Replaces the manifest durably.
    pub(crate) fn write(&self, manifest: &Manifest) -> Result<(), Problem> {
        let path = self.path.join(CATALOG);
        let bytes = serde_json::to_vec_pretty(manifest).map_err(io::Error::other);
        bytes
            .and_then(|bytes| files::write_atomically(&path, &bytes))
            .map_err(|source| Problem::file("write", &path, source))
    }

    /// Removes the folders that the manifest does not contain, which a crash left behind.
    pub(crate) fn remove_orphans(&self, manifest: &Manifest) -> Result<(), StartError> {
        let collections = self.path.join(COLLECTIONS);
        let listed = |source| StartError::file("list", &collections, source);
        for found in fs::read_dir(&collections).map_err(listed)? {
            let path = found.map_err(listed)?.path();
            if !manifest.collections.values().any(|entry| self.folder(entry) == path) {
                tracing::info!(folder = %path.display(), "removing a folder that belongs to no collection");
                files::remove_folder(&path).map_err(|source| StartError::file("remove", &path, source))?;
            }
        }
        Ok(())
    }
}
