//! What a session itself has written since the last sync, taken into the state of the key.

use crate::cell::Cell;
use crate::clock::tick;
use crate::json::Json;
use crate::key::{Key, strictness};
use crate::node::Node;
use crate::overlay::{Overlay, Seen};
use crate::rules::Rules;
use crate::state::{Head, Held, KeyState, Shown, attributes};
use crate::vector::{Session, Stamp};

impl KeyState {
    /// Takes in what the session itself has written since the last sync. Without such a write, the state stays as it is.
    #[must_use]
    pub fn absorb(&self, session: &Session, cell: &Cell, key: &Key, rules: &Rules) -> Self {
        self.absorb_counted(session, cell, key, rules, &mut 0)
    }

    /// The same. How many cells of tables the texts of what it had seen take is added to `cells`.
    pub(crate) fn absorb_counted(
        &self,
        session: &Session,
        cell: &Cell,
        key: &Key,
        rules: &Rules,
        cells: &mut usize,
    ) -> Self {
        if self.erased || self.vector.has(session, cell.writes) {
            return self.clone();
        }
        let seen = self.newest().map_or(0, |stamp| stamp.time);
        let stamp = Stamp { time: tick(cell.written_at, seen), session: session.clone(), count: cell.writes };
        let mut vector = self.vector.clone();
        vector.raise(session, cell.writes);
        // Under other rules than those that let it in, a state may not be mergeable. Then the write replaces all of it.
        let shown = self.shown(key, session, rules, cells).ok();
        // Attributes that the put leaves as they are stay those of who set them, if that says all of them.
        let is_kept = |shown: &Shown| {
            cell.value.is_none()
                || (shown.attributes == cell.attributes && attributes(&shown.held, &[]).0 == cell.attributes)
        };
        let held =
            shown.as_ref().filter(|shown| is_kept(shown)).map_or(Vec::new(), |shown| shown.held.clone());
        let head = Head {
            view: cell.value.as_ref().map(|value| view(value, cell, shown.as_ref(), &stamp, key, rules)),
            attributes: if held.is_empty() {
                vec![Held { stamp: stamp.clone(), attributes: cell.attributes.clone() }]
            } else {
                held
            },
            seen: vector.clone(),
            stamp,
        };
        Self { vector, heads: vec![head], erased: false }
    }
}

/// The parts of what a session put, as far as they are its own.
fn view(value: &Json, cell: &Cell, shown: Option<&Shown>, stamp: &Stamp, key: &Key, rules: &Rules) -> Node {
    // The rule that the new attributes ask for takes the value apart from now on.
    let rule = rules.rule(key, &cell.attributes);
    let Some(shown) = shown.filter(|shown| shown.rule == *rule) else {
        return Node::fresh(value, stamp, rule);
    };
    let overlay = Overlay { stamp, rule, text_bases: rules.limits.text_bases };
    let view = overlay.over(Seen::of(shown.node.as_ref(), shown.value.as_ref()), value);
    // Ancestors and concurrent entries are not shown in the value. From a time when it could not leave its session, or was
    // encrypted, they must not follow it.
    let wider = strictness(cell.attributes.access_level) > strictness(shown.attributes.access_level)
        || (shown.attributes.sensitive && !cell.attributes.sensitive);
    if wider { overlay.strip(view, value) } else { view }
}
