//! The collections by name, and the aliases that lead to them.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};

use uuid::Uuid;

use crate::collection::Collection;
use crate::error::{Problem, StartError};
use crate::home::{Catalogue, Entry, Home};
use crate::keeper;
use crate::settings::Settings;

/// One change of an alias.
#[derive(Debug)]
pub(crate) enum AliasChange {
    /// Leads to the collection from now on, whatever it led to before.
    Create {
        /// The alias.
        alias: String,
        /// The name of the collection.
        collection: String,
    },
    /// Has another name from now on.
    Rename {
        /// Its name so far.
        from: String,
        /// Its new name.
        to: String,
    },
    /// Is no more.
    Delete {
        /// The alias.
        alias: String,
    },
}

/// Every collection of a home folder.
#[derive(Debug)]
pub(crate) struct Catalog {
    home: Home,
    /// Held while the catalogue changes on disk.
    changes: Mutex<()>,
    state: RwLock<State>,
}

#[derive(Debug)]
struct State {
    catalogue: Catalogue,
    open: HashMap<String, Arc<Collection>>,
}

impl Catalog {
    /// Opens every collection of the home folder.
    pub(crate) fn open(home: Home) -> Result<Self, StartError> {
        let catalogue = home.read()?;
        home.remove_strays(&catalogue)?;
        let mut open = HashMap::new();
        for (name, entry) in &catalogue.collections {
            let folder = home.folder(entry);
            let loaded = Collection::load(&folder, entry.settings.clone()).and_then(|loaded| {
                let loaded = Arc::new(loaded);
                keeper::start(name, &loaded).map(|()| loaded)
            });
            let loaded = loaded.map_err(|source| StartError::Collection {
                name: name.clone(),
                folder,
                source: Box::new(source),
            })?;
            open.insert(name.clone(), loaded);
        }
        Ok(Self { home, changes: Mutex::new(()), state: RwLock::new(State { catalogue, open }) })
    }

    /// The collection of this name, or the one that the alias of this name leads to.
    pub(crate) fn find(&self, name: &str) -> Result<Arc<Collection>, Problem> {
        self.reading(|state| {
            let name = state.catalogue.aliases.get(name).map_or(name, String::as_str);
            state.open.get(name).cloned()
        })
        .ok_or_else(|| Problem::NoCollection(name.to_owned()))
    }

    /// The names of all collections.
    pub(crate) fn names(&self) -> Vec<String> {
        self.reading(|state| state.catalogue.collections.keys().cloned().collect())
    }

    /// All aliases, each with its collection.
    pub(crate) fn aliases(&self) -> Vec<(String, String)> {
        self.reading(|state| {
            state.catalogue.aliases.iter().map(|(alias, to)| (alias.clone(), to.clone())).collect()
        })
    }

    /// Makes an empty collection.
    pub(crate) fn create(&self, name: String, settings: Settings) -> Result<(), Problem> {
        let _changing = self.change();
        let mut catalogue = self.reading(|state| state.catalogue.clone());
        if catalogue.collections.contains_key(&name) {
            return Err(Problem::CollectionExists(name));
        }
        if catalogue.aliases.contains_key(&name) {
            return Err(Problem::BadInput(format!(
                "Can't create collection with name {name}. Alias with the same name already exists"
            )));
        }
        let entry = Entry { folder: Uuid::new_v4().simple().to_string(), settings: settings.clone() };
        let collection = Arc::new(Collection::create(&self.home.folder(&entry), settings)?);
        keeper::start(&name, &collection)?;
        catalogue.collections.insert(name.clone(), entry);
        if let Err(problem) = self.home.write(&catalogue) {
            collection.doom();
            return Err(problem);
        }
        self.writing(|state| {
            state.catalogue = catalogue;
            state.open.insert(name, collection);
        });
        Ok(())
    }

    /// Deletes the collection and the aliases that lead to it; false where there is none of this name.
    pub(crate) fn delete(&self, name: &str) -> Result<bool, Problem> {
        let _changing = self.change();
        let mut catalogue = self.reading(|state| state.catalogue.clone());
        if catalogue.collections.remove(name).is_none() {
            return Ok(false);
        }
        catalogue.aliases.retain(|_, to| to != name);
        self.home.write(&catalogue)?;
        let removed = self.writing(|state| {
            state.catalogue = catalogue;
            state.open.remove(name)
        });
        if let Some(collection) = removed {
            collection.doom();
        }
        Ok(true)
    }

    /// Makes all of the changes, or none.
    pub(crate) fn change_aliases(&self, changes: Vec<AliasChange>) -> Result<(), Problem> {
        let _changing = self.change();
        let mut catalogue = self.reading(|state| state.catalogue.clone());
        for change in changes {
            apply(&mut catalogue, change)?;
        }
        self.home.write(&catalogue)?;
        self.writing(|state| state.catalogue = catalogue);
        Ok(())
    }

    /// Makes every write so far durable.
    pub(crate) fn flush(&self) {
        let open: Vec<_> = self
            .reading(|state| state.open.iter().map(|(name, one)| (name.clone(), Arc::clone(one))).collect());
        for (name, collection) in open {
            if let Err(error) = collection.flush() {
                tracing::error!(collection = name, %error, "could not flush before the end");
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

fn apply(catalogue: &mut Catalogue, change: AliasChange) -> Result<(), Problem> {
    match change {
        AliasChange::Create { alias, collection } => {
            if !catalogue.collections.contains_key(&collection) {
                return Err(Problem::NoCollection(collection));
            }
            if catalogue.collections.contains_key(&alias) {
                return Err(Problem::CollectionExists(alias));
            }
            catalogue.aliases.insert(alias, collection);
        }
        AliasChange::Rename { from, to } => {
            let Some(collection) = catalogue.aliases.remove(&from) else {
                return Err(Problem::NoAlias(from));
            };
            catalogue.aliases.insert(to, collection);
        }
        AliasChange::Delete { alias } => {
            // As a Qdrant server does, an alias that is not there is as good as deleted.
            catalogue.aliases.remove(&alias);
        }
    }
    Ok(())
}
