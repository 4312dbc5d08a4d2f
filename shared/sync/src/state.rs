//! What syncs keep of a key: which writes are known, and those of them that nobody has replaced.
//!
//! A state is a join-semilattice: [`KeyState::join`] is associative, commutative and idempotent, because it is the union of two sets
//! of writes less what either knows to be replaced. The value is computed from a state and never fed back into it, so the rules
//! need none of these laws.

use serde::{Deserialize, Serialize};

use crate::conflict::{Candidate, Cause, Clash, Unmergeable};
use crate::json::Json;
use crate::key::{Attributes, Key, strictness};
use crate::merge::{Merger, Side, some_alive};
use crate::node::{FLAT, Node};
use crate::resolve::Resolver;
use crate::rules::{Rule, Rules};
use crate::vector::{Relation, Session, Stamp, Vector};

/// Attributes, and the write that set them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Held {
    #[serde(rename = "s")]
    pub stamp: Stamp,
    #[serde(rename = "a")]
    pub attributes: Attributes,
}

/// A write that no other has replaced, with all that its session saw of the key after it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Head {
    #[serde(rename = "s")]
    pub stamp: Stamp,
    /// What its session had seen, this write included.
    #[serde(rename = "n")]
    pub seen: Vector,
    #[serde(rename = "a")]
    pub attributes: Vec<Held>,
    /// Absent: it removed the key. Nothing of the value is kept then.
    #[serde(rename = "v", default, skip_serializing_if = "Option::is_none")]
    pub view: Option<Node>,
}

/// What syncs keep of a key beside its value. Written and read by `serde_json` only.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeyState {
    pub(crate) vector: Vector,
    pub(crate) heads: Vec<Head>,
    /// Erased for a privacy request: no value is kept or accepted any more.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub(crate) erased: bool,
}

/// What a state says.
#[derive(Clone, Debug)]
pub(crate) struct Shown {
    pub rule: Rule,
    pub attributes: Attributes,
    /// `None`: removed.
    pub value: Option<Json>,
    pub clashes: Vec<Clash>,
    pub node: Option<Node>,
    pub held: Vec<Held>,
}

impl KeyState {
    /// The version vector: for each session that wrote the key, how many of its writes are known.
    pub fn vector(&self) -> &Vector {
        &self.vector
    }

    /// How this state relates to another.
    pub fn relation(&self, other: &Self) -> Relation {
        self.vector.relation(&other.vector)
    }

    /// Whether the key has been erased.
    pub fn is_erased(&self) -> bool {
        self.erased
    }

    /// Whether the key is removed, and nobody has written it concurrently.
    pub fn is_tombstone(&self) -> bool {
        self.heads.iter().all(|head| head.view.is_none())
    }

    /// Erases the key: the value, its ancestors and whatever was written concurrently. Every join keeps it erased.
    pub fn erase(&mut self) {
        self.heads.clear();
        self.erased = true;
    }

    /// The state without any value: what may stay when the session removes the key, until the next sync takes the removal in.
    /// [`KeyState::absorb`] gives the same as if the values were still there.
    #[must_use]
    pub fn without_values(mut self) -> Self {
        self.heads.iter_mut().for_each(|head| head.view = None);
        self
    }

    /// Whether it holds values: those that are shown, their ancestors, and what was written concurrently.
    pub fn has_values(&self) -> bool {
        self.heads.iter().any(|head| head.view.is_some())
    }

    /// How many arrays and objects the JSON of a cell with this state nests, at most.
    pub(crate) fn nesting(&self) -> usize {
        // The cell, the state, its heads, and one of them.
        let views = self.heads.iter().filter_map(|head| head.view.as_ref());
        4 + views.map(Node::nesting).max().unwrap_or(FLAT)
    }

    /// The latest write that is known and not replaced.
    pub fn newest(&self) -> Option<&Stamp> {
        self.heads.iter().map(|head| &head.stamp).max()
    }

    /// All writes that either knows, less those that either knows to be replaced.
    pub fn join(&self, other: &Self) -> Self {
        let mut vector = self.vector.clone();
        vector.join(&other.vector);
        if self.erased || other.erased {
            return Self { vector, heads: Vec::new(), erased: true };
        }
        let mut heads: Vec<Head> = Vec::new();
        for (here, there) in [(self, other), (other, self)] {
            let known = |head: &&Head| {
                !there.vector.has(&head.stamp.session, head.stamp.count) || there.head(&head.stamp).is_some()
            };
            heads.extend(here.heads.iter().filter(known).cloned());
        }
        // One write has one content, but for one that was taken apart under two rule files: then every session keeps the same.
        heads.sort_by(|a, b| a.stamp.cmp(&b.stamp).then_with(|| a.cmp_content(b)));
        heads.dedup_by(|a, b| a.is_write(&b.stamp));
        Self { vector, heads, erased: false }
    }

    fn head(&self, stamp: &Stamp) -> Option<&Head> {
        self.heads.iter().find(|head| head.is_write(stamp))
    }

    /// The value that a session sees; `None`: removed.
    ///
    /// # Errors
    /// If what was written concurrently cannot be merged.
    pub fn value(&self, key: &Key, viewer: &Session, rules: &Rules) -> Result<Option<Json>, Unmergeable> {
        Ok(self.shown(key, viewer, rules, &mut 0)?.value)
    }

    /// All that the state says to a session. How many cells of tables its texts take is added to `cells`, also if it says nothing.
    pub(crate) fn shown(
        &self,
        key: &Key,
        viewer: &str,
        rules: &Rules,
        cells: &mut usize,
    ) -> Result<Shown, Unmergeable> {
        let sides: Vec<_> = self
            .heads
            .iter()
            .map(|head| Side { seen: &head.seen, stamp: &head.stamp, node: head.view.as_ref() })
            .collect();
        let held: Vec<_> =
            sides.iter().zip(&self.heads).map(|(side, head)| (*side, head.attributes.as_slice())).collect();
        let held = some_alive(&held, |held| &held.stamp);
        let (attributes, clash) = attributes(&held, &self.heads);
        let rule = rules.rule(key, &attributes);
        let (node, mut clashes) = match sides.as_slice() {
            [one] => (one.node.cloned(), Vec::new()),
            several => {
                let mut merger = Merger::new(rule);
                (merger.merge(several)?, merger.clashes)
            }
        };
        let mut resolver = Resolver::new(rule, &rules.limits, viewer);
        let value = node.as_ref().map(|node| resolver.value(node)).transpose();
        *cells = cells.saturating_add(resolver.cells);
        let value = value?;
        clashes.append(&mut resolver.clashes);
        clashes.extend(clash);
        Ok(Shown { rule: rule.clone(), attributes, value, clashes, node, held })
    }
}

impl Head {
    fn is_write(&self, stamp: &Stamp) -> bool {
        self.stamp.session == stamp.session && self.stamp.count == stamp.count
    }

    fn cmp_content(&self, other: &Self) -> std::cmp::Ordering {
        let text = |head: &Self| serde_json::to_string(head).unwrap_or_default();
        if self == other { std::cmp::Ordering::Equal } else { text(self).cmp(&text(other)) }
    }
}

/// Attributes that were set concurrently: the latest, but the strictest of what protects the value. Whoever puts a value states
/// its protection, also if it is as before, so that of every head with a value counts.
pub(crate) fn attributes(held: &[Held], heads: &[Head]) -> (Attributes, Option<Clash>) {
    let Some(last) = held.last() else { return (Attributes::default(), None) };
    let mut kept = last.attributes.clone();
    let stated = heads.iter().filter(|head| head.view.is_some()).flat_map(|head| &head.attributes);
    for Held { attributes, .. } in held.iter().chain(stated) {
        if strictness(attributes.access_level) < strictness(kept.access_level) {
            kept.access_level = attributes.access_level;
        }
        kept.sensitive |= attributes.sensitive;
    }
    if held.iter().all(|held| held.attributes == kept) {
        return (kept, None);
    }
    let text = |attributes: &Attributes| {
        serde_json::to_string(attributes).ok().and_then(|text| Json::parse(&text).ok())
    };
    let candidates: Vec<_> = held
        .iter()
        .map(|held| Candidate { stamp: held.stamp.clone(), value: text(&held.attributes) })
        .collect();
    let clash = Clash {
        path: Vec::new(),
        cause: Cause::Attributes,
        base: None,
        lost: candidates.iter().filter(|candidate| candidate.value != text(&kept)).cloned().collect(),
        kept: text(&kept),
        candidates,
    };
    (kept, Some(clash))
}
