//! The open collections by name, and their aliases.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};

use uuid::Uuid;

use crate::collection::Collection;
use crate::error::{Problem, StartError};
use crate::maintenance;
use crate::settings::Settings;
use crate::storage::{Entry, Manifest, Storage};

/// One change of an alias.
#[derive(Debug)]
pub(crate) enum AliasChange {
    /// Points an alias to a collection, replacing an existing alias.
    Create {
        /// The alias.
        alias: String,
        /// The name of the collection.
        collection: String,
    },
    /// Renames an alias.
    Rename {
        /// The old name.
        from: String,
        /// The new name.
        to: String,
    },
    /// Deletes an alias.
    Delete {
        /// The alias.
        alias: String,
    },
}

/// All collections of a home folder.
#[derive(Debug)]
pub(crate) struct Catalog {
    storage: Storage,
    /// Held while the manifest is changed.
    changes: Mutex<()>,
    state: RwLock<State>,
}

#[derive(Debug)]
struct State {
    manifest: Manifest,
    open: HashMap<String, Arc<Collection>>,
}

impl Catalog {
    /// Opens every collection of the home folder.
    pub(crate) fn open(storage: Storage) -> Result<Self, StartError> {
        let manifest = storage.read()?;
        storage.remove_orphans(&manifest)?;
        let mut open = HashMap::new();
        for (name, entry) in &manifest.collections {
            let folder = storage.folder(entry);
            let loaded = Collection::load(&folder, entry.settings.clone()).and_then(|loaded| {
                let loaded = Arc::new(loaded);
                maintenance::start(name, &loaded).map(|()| loaded)
            });
            let loaded = loaded.map_err(|source| StartError::Collection {
                name: name.clone(),
                folder,
                source: Box::new(source),
            })?;
            open.insert(name.clone(), loaded);
        }
        Ok(Self { storage, changes: Mutex::new(()), state: RwLock::new(State { manifest, open }) })
    }

    /// The collection of this name, or the collection that the alias of this name points to.
    pub(crate) fn find(&self, name: &str) -> Result<Arc<Collection>, Problem> {
        self.reading(|state| {
            let name = state.manifest.aliases.get(name).map_or(name, String::as_str);
            state.open.get(name).cloned()
        })
        .ok_or_else(|| Problem::NoCollection(name.to_owned()))
    }

    /// The names of all collections.
    pub(crate) fn names(&self) -> Vec<String> {
        self.reading(|state| state.manifest.collections.keys().cloned().collect())
    }

    /// All aliases, each with its collection.
    pub(crate) fn aliases(&self) -> Vec<(String, String)> {
        self.reading(|state| {
            state.manifest.aliases.iter().map(|(alias, to)| (alias.clone(), to.clone())).collect()
        })
    }

    /// Creates an empty collection.
    pub(crate) fn create(&self, name: String, settings: Settings) -> Result<(), Problem> {
        let _changing = self.change();
        let mut manifest = self.reading(|state| state.manifest.clone());
        if manifest.collections.contains_key(&name) {
            return Err(Problem::CollectionExists(name));
        }
        if manifest.aliases.contains_key(&name) {
            return Err(Problem::BadInput(format!(
                "Can't create collection with name {name}. Alias with the same name already exists"
            )));
        }
        let entry = Entry { folder: Uuid::new_v4().simple().to_string(), settings: settings.clone() };
        let collection = Arc::new(Collection::create(&self.storage.folder(&entry), settings)?);
        maintenance::start(&name, &collection)?;
        manifest.collections.insert(name.clone(), entry);
        if let Err(problem) = self.storage.write(&manifest) {
            collection.mark_deleted();
            return Err(problem);
        }
        self.writing(|state| {
            state.manifest = manifest;
            state.open.insert(name, collection);
        });
        Ok(())
    }

    /// Deletes a collection and its aliases. False if there is no collection of this name.
    pub(crate) fn delete(&self, name: &str) -> Result<bool, Problem> {
        let _changing = self.change();
        let mut manifest = self.reading(|state| state.manifest.clone());
        if manifest.collections.remove(name).is_none() {
            return Ok(false);
        }
        manifest.aliases.retain(|_, to| to != name);
        self.storage.write(&manifest)?;
        let removed = self.writing(|state| {
            state.manifest = manifest;
            state.open.remove(name)
        });
        if let Some(collection) = removed {
            collection.mark_deleted();
        }
        Ok(true)
    }

    /// Applies all of the changes, or none.
    pub(crate) fn change_aliases(&self, changes: Vec<AliasChange>) -> Result<(), Problem> {
        let _changing = self.change();
        let mut manifest = self.reading(|state| state.manifest.clone());
        for change in changes {
            apply(&mut manifest, change)?;
        }
        self.storage.write(&manifest)?;
        self.writing(|state| state.manifest = manifest);
        Ok(())
    }

    /// Makes every write so far durable.
    pub(crate) fn flush(&self) {
        let open: Vec<_> = self
            .reading(|state| state.open.iter().map(|(name, one)| (name.clone(), Arc::clone(one))).collect());
        for (name, collection) in open {
            if let Err(error) = collection.flush() {
                tracing::error!(collection = name, %error, "could not flush the collection before stopping");
            }
        }
    }

    fn change(&self) -> MutexGuard<'_, ()> {
        self.changes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn reading<T>(&self, read: impl FnOnce(&State) -> T) -> T {
        read(&self.state.read().unwrap_or_else(PoisonError::into_inner))
    }

    fn writing<T>(&self, write: impl FnOnce(&mut State) -> T) -> T {
        write(&mut self.state.write().unwrap_or_else(PoisonError::into_inner))
    }
}

fn apply(manifest: &mut Manifest, change: AliasChange) -> Result<(), Problem> {
    match change {
        AliasChange::Create { alias, collection } => {
            if !manifest.collections.contains_key(&collection) {
                return Err(Problem::NoCollection(collection));
            }
            if manifest.collections.contains_key(&alias) {
                return Err(Problem::CollectionExists(alias));
            }
            manifest.aliases.insert(alias, collection);
        }
        AliasChange::Rename { from, to } => {
            let Some(collection) = manifest.aliases.remove(&from) else {
                return Err(Problem::NoAlias(from));
            };
            manifest.aliases.insert(to, collection);
        }
        AliasChange::Delete { alias } => {
            // As in a Qdrant server, deleting an alias that does not exist succeeds.
            manifest.aliases.remove(&alias);
        }
    }
    Ok(())
}
