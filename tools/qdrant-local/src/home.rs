//! The folder that holds everything, and the lock that keeps it for one process.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions, TryLockError};
use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::error::{Problem, StartError};
use crate::files;
use crate::settings::Settings;

const LOCK: &str = "lock";
const CATALOG: &str = "catalog.json";
const COLLECTIONS: &str = "collections";

/// The home folder, locked for as long as this lives.
#[derive(Debug)]
pub(crate) struct Home {
    path: PathBuf,
    /// The kernel gives the lock back when the process ends, however it ends.
    _lock: File,
}

/// What the catalogue file says: the collections by name, and which alias leads to which of them.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Catalogue {
    pub(crate) collections: BTreeMap<String, Entry>,
    pub(crate) aliases: BTreeMap<String, String>,
}

/// One collection in the catalogue.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Entry {
    /// The name of its folder: never that of the collection, which may be made anew while the old one still goes.
    pub(crate) folder: String,
    pub(crate) settings: Settings,
}

impl Home {
    /// Makes the folder where it is missing, and locks it.
    pub(crate) fn open(path: &Path) -> Result<Self, StartError> {
        let collections = path.join(COLLECTIONS);
        fs::create_dir_all(&collections)
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

    /// Where the collection of this catalogue entry lies.
    pub(crate) fn folder(&self, entry: &Entry) -> PathBuf {
        self.path.join(COLLECTIONS).join(&entry.folder)
    }

    /// What the catalogue file says, or an empty catalogue in a new home.
    pub(crate) fn read(&self) -> Result<Catalogue, StartError> {
        let path = self.path.join(CATALOG);
        let bytes = match fs::read(&path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Catalogue::default()),
            Err(source) => return Err(StartError::file("read", &path, source)),
        };
        serde_json::from_slice(&bytes).map_err(|source| StartError::Catalog { path, source })
    }

    /// Makes this the catalogue, durably.
    pub(crate) fn write(&self, catalogue: &Catalogue) -> Result<(), Problem> {
        let path = self.path.join(CATALOG);
        let bytes = serde_json::to_vec_pretty(catalogue).map_err(io::Error::other);
        bytes
            .and_then(|bytes| files::write_atomically(&path, &bytes))
            .map_err(|source| Problem::file("write", &path, source))
    }

    /// Removes the folders that no catalogue entry names: a crash came between them and the catalogue.
    pub(crate) fn remove_strays(&self, catalogue: &Catalogue) -> Result<(), StartError> {
        let collections = self.path.join(COLLECTIONS);
        let listed = |source| StartError::file("list", &collections, source);
        for found in fs::read_dir(&collections).map_err(listed)? {
            let path = found.map_err(listed)?.path();
            if !catalogue.collections.values().any(|entry| self.folder(entry) == path) {
                tracing::info!(folder = %path.display(), "removing a folder that belongs to no collection");
                files::remove_folder(&path).map_err(|source| StartError::file("remove", &path, source))?;
            }
        }
        Ok(())
    }
}
