//! When a removed key may be forgotten.

use crate::cell::Cell;
use crate::state::KeyState;
use crate::vector::{Session, Vector};

/// A session of the user that holds something of a key.
#[derive(Clone, Copy, Debug)]
pub struct Holder<'a> {
    /// The session.
    pub session: &'a Session,
    /// What it holds.
    pub cell: &'a Cell,
    /// Whether it has ended: it takes part in no sync any more.
    pub ended: bool,
}

/// Whether all sessions may forget that a key was removed, in one transaction.
///
/// Who must have seen the removal: every session that a sync ever gave the key, and that has not ended. If one of them still had
/// the value, its next sync would bring the key back. `holders` must therefore be all sessions of the user that hold the key.
pub fn forgettable(holders: &[Holder<'_>]) -> bool {
    let concerned: Vec<_> = holders
        .iter()
        .filter(|holder| !holder.ended)
        .filter_map(|holder| Some((holder, holder.cell.state.as_ref()?)))
        .collect();
    let mut all = Vector::default();
    concerned.iter().for_each(|(_, state)| all.join(state.vector()));
    let has_seen = |holder: &Holder<'_>, state: &KeyState| {
        holder.cell.value.is_none()
            && state.is_tombstone()
            && state.vector().has(holder.session, holder.cell.writes)
            && state.vector().covers(&all)
    };
    !concerned.is_empty() && concerned.into_iter().all(|(holder, state)| has_seen(holder, state))
}
