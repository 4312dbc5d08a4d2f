//! What several sessions wrote concurrently, part by part.
//!
//! The merge is a function of the set of writes: neither their order nor who merges has any influence, and nothing of it is kept.
//! That is why it need not be associative itself: the states are joined, and each is merged anew.

use std::collections::{BTreeMap, BTreeSet};

use crate::conflict::{Candidate, Cause, Clash, Step, Unmergeable, path_text};
use crate::node::{Count, Entry, Member, Node};
use crate::resolve::{newest, plain, sum};
use crate::rules::{Deletion, Rule};
use crate::vector::{Session, Stamp, Vector};

/// What one write left of a part.
#[derive(Clone, Copy)]
pub(crate) struct Side<'a> {
    /// What its session had seen, the write included.
    pub seen: &'a Vector,
    pub stamp: &'a Stamp,
    /// Absent: the part is not there, never was or was removed.
    pub node: Option<&'a Node>,
}

/// A side that has the part.
#[derive(Clone, Copy)]
struct Having<'a> {
    side: Side<'a>,
    node: &'a Node,
}

pub(crate) struct Merger<'a> {
    pub rule: &'a Rule,
    pub path: Vec<Step>,
    pub clashes: Vec<Clash>,
}

impl<'a> Merger<'a> {
    pub fn new(rule: &'a Rule) -> Self {
        Self { rule, path: Vec::new(), clashes: Vec::new() }
    }

    pub fn merge(&mut self, sides: &[Side<'_>]) -> Result<Option<Node>, Unmergeable> {
        let having: Vec<_> =
            sides.iter().filter_map(|side| side.node.map(|node| Having { side: *side, node })).collect();
        let lacking: Vec<_> = sides.iter().filter(|side| side.node.is_none()).copied().collect();
        // Who lacks a part and has seen all of it has removed it. A part with a write that was not seen stays, all of it:
        // half an address is no address.
        let staying: Vec<_> = having
            .into_iter()
            .filter(|having| !lacking.iter().any(|side| having.node.seen_by(side.seen)))
            .collect();
        if staying.is_empty() || !self.survives(&staying, &lacking) {
            return Ok(None);
        }
        let staying = self.of_one_shape(staying)?;
        let Some(first) = staying.first() else { return Ok(None) };
        if staying.iter().all(|having| having.node == first.node) {
            return Ok(Some(first.node.clone()));
        }
        Ok(Some(match first.node {
            Node::Object { .. } => self.object(&staying)?,
            Node::List { .. } => self.list(&staying)?,
            Node::Register(_) => Node::Register(entries(&staying, |node| match node {
                Node::Register(entries) => entries,
                Node::Object { .. } | Node::List { .. } | Node::Counter(_) | Node::Set { .. } => &[],
            })),
            Node::Counter(_) => self.counter(&staying),
            Node::Set { .. } => set(&staying),
        }))
    }

    /// Decides about what was removed by one and edited by another.
    fn survives(&mut self, staying: &[Having<'_>], lacking: &[Side<'_>]) -> bool {
        let whole = self.path.is_empty();
        let knew = |gone: &Side<'_>| {
            staying.iter().any(|having| {
                if whole { having.side.seen.meets(gone.seen) } else { having.node.known_to(gone.seen) }
            })
        };
        let removed: Vec<_> = lacking.iter().filter(|gone| knew(gone)).collect();
        let (Some(last_removal), Some(last_edit)) = (
            removed.iter().map(|side| side.stamp).max(),
            staying.iter().map(|having| having.side.stamp).max(),
        ) else {
            return true;
        };
        let edit_wins = match self.rule.deletion {
            Deletion::EditWins => true,
            Deletion::DeletionWins => false,
            Deletion::Newest => last_edit > last_removal,
        };
        let survives = edit_wins || !whole;
        let edits = staying
            .iter()
            .map(|having| Candidate { stamp: having.side.stamp.clone(), value: Some(plain(having.node)) });
        let removals = removed.iter().map(|side| Candidate { stamp: side.stamp.clone(), value: None });
        let (edits, removals): (Vec<_>, Vec<_>) = (edits.collect(), removals.collect());
        let mut candidates = [edits.clone(), removals.clone()].concat();
        candidates.sort_by(|a, b| a.stamp.cmp(&b.stamp));
        let kept = edits.last().filter(|_| survives).and_then(|edit| edit.value.clone());
        self.clashes.push(Clash {
            path: self.path.clone(),
            cause: Cause::Removed,
            candidates,
            base: None,
            kept,
            lost: if survives { removals } else { edits },
        });
        survives
    }

    /// Sides that have no parts in common: the latest stays, unless the rule asks for a type.
    fn of_one_shape<'b>(&mut self, staying: Vec<Having<'b>>) -> Result<Vec<Having<'b>>, Unmergeable> {
        let mixed =
            |sides: &[Having<'_>]| sides.windows(2).any(|pair| pair[0].node.shape() != pair[1].node.shape());
        if !mixed(&staying) {
            return Ok(staying);
        }
        let replaced = |having: &Having<'_>| {
            staying.iter().any(|other| {
                other.node.shape() != having.node.shape() && having.node.seen_by(other.side.seen)
            })
        };
        let current: Vec<_> = staying.iter().filter(|having| !replaced(having)).copied().collect();
        let current = if current.is_empty() { staying } else { current };
        if !mixed(&current) {
            return Ok(current);
        }
        if self.rule.merge.is_typed() {
            return Err(Unmergeable::NotOfType { path: path_text(&self.path), rule: self.rule.merge });
        }
        let time = |having: &Having<'b>| newest(having.node).unwrap_or(having.side.stamp).clone();
        let winner = current.iter().max_by_key(|having| time(having)).copied();
        let Some(winner) = winner else { return Ok(current) };
        let shape = winner.node.shape();
        let candidate = |having: &Having<'_>| Candidate {
            stamp: newest(having.node).unwrap_or(having.side.stamp).clone(),
            value: Some(plain(having.node)),
        };
        let mut candidates: Vec<_> = current.iter().map(candidate).collect();
        candidates.sort_by(|a, b| a.stamp.cmp(&b.stamp));
        self.clashes.push(Clash {
            path: self.path.clone(),
            cause: Cause::Shape,
            candidates,
            base: None,
            kept: Some(plain(winner.node)),
            lost: current.iter().filter(|having| having.node.shape() != shape).map(candidate).collect(),
        });
        Ok(current.into_iter().filter(|having| having.node.shape() == shape).collect())
    }

    /// One part of each side.
    fn part(
        &mut self,
        step: Step,
        staying: &[Having<'_>],
        part: impl Fn(&Node) -> Option<&Node>,
    ) -> Result<Option<Node>, Unmergeable> {
        let sides: Vec<_> =
            staying.iter().map(|having| Side { node: part(having.node), ..having.side }).collect();
        self.path.push(step);
        let merged = self.merge(&sides);
        self.path.pop();
        merged
    }

    fn object(&mut self, staying: &[Having<'_>]) -> Result<Node, Unmergeable> {
        let members = |node: &Node| match node {
            Node::Object { members, .. } => members.keys().cloned().collect(),
            Node::List { .. } | Node::Register(_) | Node::Counter(_) | Node::Set { .. } => Vec::new(),
        };
        let names: BTreeSet<String> = staying.iter().flat_map(|having| members(having.node)).collect();
        let mut merged = BTreeMap::new();
        for name in names {
            let part = self.part(Step::Member(name.clone()), staying, |node| match node {
                Node::Object { members, .. } => members.get(&name),
                Node::List { .. } | Node::Register(_) | Node::Counter(_) | Node::Set { .. } => None,
            })?;
            if let Some(part) = part {
                merged.insert(name, part);
            }
        }
        Ok(Node::Object { made: made(staying), members: merged })
    }

    fn list(&mut self, staying: &[Having<'_>]) -> Result<Node, Unmergeable> {
        let ids = |node: &Node| match node {
            Node::List { items, .. } => items.keys().cloned().collect(),
            Node::Object { .. } | Node::Register(_) | Node::Counter(_) | Node::Set { .. } => Vec::new(),
        };
        let ids: BTreeSet<String> = staying.iter().flat_map(|having| ids(having.node)).collect();
        let mut merged = BTreeMap::new();
        for id in ids {
            let part = self.part(Step::Item(id.clone()), staying, |node| match node {
                Node::List { items, .. } => items.get(&id),
                Node::Object { .. } | Node::Register(_) | Node::Counter(_) | Node::Set { .. } => None,
            })?;
            if let Some(part) = part {
                merged.insert(id, part);
            }
        }
        let order = entries(staying, |node| match node {
            Node::List { order, .. } => order,
            Node::Object { .. } | Node::Register(_) | Node::Counter(_) | Node::Set { .. } => &[],
        });
        Ok(Node::List { made: made(staying), items: merged, order })
    }

    /// Each session's own sum: the latest that anybody knows.
    fn counter(&mut self, staying: &[Having<'_>]) -> Node {
        let all: Vec<_> = staying.iter().map(|having| (having.side, counts(having.node))).collect();
        let mut merged: BTreeMap<Session, Count> = BTreeMap::new();
        let mut every: BTreeMap<Session, Count> = BTreeMap::new();
        for (session, count) in all.iter().flat_map(|(_, counts)| counts.iter()) {
            let dropped = |(side, counts): &(Side<'_>, &BTreeMap<Session, Count>)| {
                !counts.contains_key(session) && side.seen.has(session, count.count)
            };
            let latest = |counts: &mut BTreeMap<Session, Count>| {
                let entry = counts.entry(session.clone()).or_insert_with(|| count.clone());
                *entry = entry.clone().max(count.clone());
            };
            latest(&mut every);
            if !all.iter().any(dropped) {
                latest(&mut merged);
            }
        }
        let merged = if merged.is_empty() { every } else { merged };
        if all.iter().any(|(_, counts)| **counts == merged) {
            return Node::Counter(merged);
        }
        let mut candidates: Vec<_> = staying
            .iter()
            .map(|having| Candidate { stamp: having.side.stamp.clone(), value: Some(plain(having.node)) })
            .collect();
        candidates.sort_by(|a, b| a.stamp.cmp(&b.stamp));
        self.clashes.push(Clash {
            path: self.path.clone(),
            cause: Cause::Edited,
            candidates,
            base: sum(&common(&all)).map(crate::Json::integer),
            kept: sum(&merged).map(crate::Json::integer),
            lost: Vec::new(),
        });
        Node::Counter(merged)
    }
}

fn counts(node: &Node) -> &BTreeMap<Session, Count> {
    static NONE: BTreeMap<Session, Count> = BTreeMap::new();
    match node {
        Node::Counter(counts) => counts,
        Node::Object { .. } | Node::List { .. } | Node::Register(_) | Node::Set { .. } => &NONE,
    }
}

/// What all sides of a counter have in common.
fn common(all: &[(Side<'_>, &BTreeMap<Session, Count>)]) -> BTreeMap<Session, Count> {
    let Some(((_, first), rest)) = all.split_first() else { return BTreeMap::new() };
    let least = |(session, count): (&Session, &Count)| {
        let least = rest.iter().try_fold(count, |least, (_, counts)| Some(least.min(counts.get(session)?)));
        Some((session.clone(), least?.clone()))
    };
    first.iter().filter_map(least).collect()
}

/// The writes that nobody has seen and dropped. Each is kept once, in the order of time.
fn alive<T: Clone>(sides: &[(Side<'_>, &[T])], stamp: impl Fn(&T) -> &Stamp) -> Vec<T> {
    let known: Vec<BTreeSet<&Stamp>> =
        sides.iter().map(|(_, all)| all.iter().map(&stamp).collect()).collect();
    let dropped = |item: &T| {
        let stamp = stamp(item);
        let by = |(at, (side, _)): (usize, &(Side<'_>, &[T]))| {
            side.seen.has(&stamp.session, stamp.count) && !known[at].contains(stamp)
        };
        sides.iter().enumerate().any(by)
    };
    let all = sides.iter().flat_map(|(_, all)| all.iter());
    in_time(all.filter(|item| !dropped(item)).cloned().collect(), &stamp)
}

fn in_time<T>(mut items: Vec<T>, stamp: impl Fn(&T) -> &Stamp) -> Vec<T> {
    items.sort_by(|a, b| stamp(a).cmp(stamp(b)));
    items.dedup_by(|a, b| stamp(a) == stamp(b));
    items
}

/// As [`alive`], for what cannot be empty: who sees that each side has dropped what the other has, keeps all of it.
pub(crate) fn some_alive<T: Clone>(sides: &[(Side<'_>, &[T])], stamp: impl Fn(&T) -> &Stamp) -> Vec<T> {
    let alive = alive(sides, &stamp);
    if alive.is_empty() {
        return in_time(sides.iter().flat_map(|(_, all)| all.iter().cloned()).collect(), &stamp);
    }
    alive
}

fn entries(staying: &[Having<'_>], of: impl Fn(&Node) -> &[Entry]) -> Vec<Entry> {
    let sides: Vec<_> = staying.iter().map(|having| (having.side, of(having.node))).collect();
    some_alive(&sides, |entry| &entry.stamp)
}

fn made(staying: &[Having<'_>]) -> Vec<Stamp> {
    let of = |having: &Having<'_>| match having.node {
        Node::Object { made, .. } | Node::List { made, .. } | Node::Set { made, .. } => made.clone(),
        Node::Register(_) | Node::Counter(_) => Vec::new(),
    };
    let all: Vec<Vec<Stamp>> = staying.iter().map(of).collect();
    let sides: Vec<_> =
        staying.iter().zip(&all).map(|(having, made)| (having.side, made.as_slice())).collect();
    some_alive(&sides, |stamp| stamp)
}

/// Observed-remove: an item stays as long as somebody added it whom its removal did not know of.
fn set(staying: &[Having<'_>]) -> Node {
    let members = |node: &Node| match node {
        Node::Set { members, .. } => members.clone(),
        Node::Object { .. } | Node::List { .. } | Node::Register(_) | Node::Counter(_) => Vec::new(),
    };
    let all: Vec<(Side<'_>, BTreeMap<_, _>)> = staying
        .iter()
        .map(|having| {
            let members = members(having.node).into_iter();
            (having.side, members.map(|member| (member.value, member.added)).collect())
        })
        .collect();
    let values: BTreeSet<_> = all.iter().flat_map(|(_, members)| members.keys()).collect();
    let member = |value: &crate::Json| {
        let sides: Vec<_> = all
            .iter()
            .map(|(side, members)| (*side, members.get(value).map_or(&[][..], Vec::as_slice)))
            .collect();
        let added = alive(&sides, |(stamp, _)| stamp);
        (!added.is_empty()).then(|| Member { value: value.clone(), added })
    };
    Node::Set { made: made(staying), members: values.into_iter().filter_map(member).collect() }
}
