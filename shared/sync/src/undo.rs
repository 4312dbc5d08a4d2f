//! Taking a sync back.
//!
//! Merging counts no write for the target, so its numbers are never used twice when its cell goes back to what it was.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use crate::cell::Cell;
use crate::key::Key;
use crate::plan::{Memory, Write};
use crate::state::KeyState;
use crate::vector::Session;

/// What must be kept of a write so that it can be taken back.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Applied {
    /// The key.
    pub key: Key,
    /// The cell before; absent: there was none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub before: Option<Cell>,
    /// How often the target itself had written the key by then.
    pub writes: u64,
    /// The digest of the cell after.
    pub after: String,
}

impl Applied {
    /// What to keep of a write.
    ///
    /// # Errors
    /// Never: a cell is always JSON.
    pub fn of(write: &Write) -> Result<Self, serde_json::Error> {
        Ok(Self {
            key: write.key.clone(),
            before: write.before.clone(),
            writes: write.after.writes,
            after: write.after.digest()?,
        })
    }
}

/// A sync that came later and has not been taken back itself.
#[derive(Clone, Debug)]
pub struct Later {
    /// Its id.
    pub sync: String,
    /// Its source.
    pub source: Session,
    /// Its target.
    pub target: Session,
    /// The keys that it wrote.
    pub keys: BTreeSet<Key>,
}

/// What depends on a key that a sync wrote.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Dependent {
    /// The target's session has written it since.
    #[error("key {:?}: the session has written it since", .0.name())]
    Written(Key),
    /// A later sync wrote it.
    #[error("key {:?}: sync {sync} wrote it later; undo that first", .key.name())]
    Synced {
        /// The key.
        key: Key,
        /// The later sync.
        sync: String,
    },
    /// A later sync carried it on.
    #[error("key {:?}: sync {sync} carried it on to session {session:?}; undo that first", .key.name())]
    Carried {
        /// The key.
        key: Key,
        /// The later sync.
        sync: String,
        /// Where to.
        session: String,
    },
    /// It has been erased.
    #[error("key {:?}: it has been erased", .0.name())]
    Erased(Key),
    /// It is not as the sync left it, and none of the above.
    #[error("key {:?}: it has been changed since", .0.name())]
    Changed(Key),
}

/// What taking a sync back does.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Undo {
    /// Keys and what they go back to; `None`: the key was not there.
    pub restore: Vec<(Key, Option<Cell>)>,
    /// Why the other keys stay.
    pub dependents: Vec<Dependent>,
}

impl Undo {
    /// Plans to take a sync into `target` back.
    ///
    /// # Errors
    /// Never: a cell is always JSON.
    pub fn plan(
        target: &Session,
        applied: &[Applied],
        memory: &Memory,
        later: &[Later],
    ) -> Result<Self, serde_json::Error> {
        let mut undo = Self::default();
        for write in applied {
            match dependent(target, write, memory.get(&write.key), later)? {
                Some(dependent) => undo.dependents.push(dependent),
                None => undo.restore.push((write.key.clone(), write.before.clone())),
            }
        }
        Ok(undo)
    }

    /// Writes it into the memory of the target.
    pub fn apply(&self, memory: &mut Memory) {
        for (key, cell) in &self.restore {
            match cell {
                Some(cell) => memory.insert(key.clone(), cell.clone()),
                None => memory.remove(key),
            };
        }
    }
}

fn dependent(
    target: &Session,
    write: &Applied,
    cell: Option<&Cell>,
    later: &[Later],
) -> Result<Option<Dependent>, serde_json::Error> {
    let key = || write.key.clone();
    if cell.and_then(|cell| cell.state.as_ref()).is_some_and(KeyState::is_erased) {
        return Ok(Some(Dependent::Erased(key())));
    }
    let of_key = || later.iter().filter(|sync| sync.keys.contains(&write.key));
    if let Some(sync) = of_key().find(|sync| sync.source == *target) {
        let (sync, session) = (sync.sync.clone(), sync.target.to_string());
        return Ok(Some(Dependent::Carried { key: key(), sync, session }));
    }
    if let Some(sync) = of_key().find(|sync| sync.target == *target) {
        return Ok(Some(Dependent::Synced { key: key(), sync: sync.sync.clone() }));
    }
    Ok(match cell {
        Some(cell) if cell.writes != write.writes => Some(Dependent::Written(key())),
        Some(cell) if cell.digest()? == write.after => None,
        Some(_) | None => Some(Dependent::Changed(key())),
    })
}
