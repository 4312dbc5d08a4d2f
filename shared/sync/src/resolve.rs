//! The value that a session sees of what was written concurrently.

use std::collections::{BTreeMap, BTreeSet};

use crate::conflict::{Candidate, Cause, Clash, Step, Unmergeable, path_text};
use crate::json::Json;
use crate::node::{Base, Count, Entry, Member, Node};
use crate::rules::{Limits, Merging, Rule};
use crate::text;
use crate::vector::{Session, Stamp};

/// Turns parts into a value. Only facts depend on the session that looks: it keeps its own.
pub(crate) struct Resolver<'a> {
    pub rule: &'a Rule,
    pub limits: &'a Limits,
    pub viewer: &'a str,
    /// How many cells the tables of its texts have taken.
    pub cells: usize,
    pub path: Vec<Step>,
    pub clashes: Vec<Clash>,
}

impl<'a> Resolver<'a> {
    pub fn new(rule: &'a Rule, limits: &'a Limits, viewer: &'a str) -> Self {
        Self { rule, limits, viewer, cells: 0, path: Vec::new(), clashes: Vec::new() }
    }

    pub fn value(&mut self, node: &Node) -> Result<Json, Unmergeable> {
        match node {
            Node::Object { members, .. } => {
                let mut object = BTreeMap::new();
                for (name, part) in members {
                    object.insert(name.clone(), self.part(Step::Member(name.clone()), part)?);
                }
                Ok(Json::Object(object))
            }
            Node::List { items, order, .. } => {
                let mut list = Vec::new();
                for id in ordered(items, order) {
                    if let Some(part) = items.get(&id) {
                        list.push(self.part(Step::Item(id), part)?);
                    }
                }
                Ok(Json::List(list))
            }
            Node::Register(entries) => self.register(entries),
            Node::Counter(counts) => self.counter(counts),
            Node::Set { members, .. } => Ok(set(members)),
        }
    }

    fn part(&mut self, step: Step, part: &Node) -> Result<Json, Unmergeable> {
        self.path.push(step);
        let value = self.value(part);
        self.path.pop();
        value
    }

    fn counter(&self, counts: &BTreeMap<Session, Count>) -> Result<Json, Unmergeable> {
        let sum = sum(counts);
        match sum.and_then(|sum| i64::try_from(sum).ok()) {
            Some(sum) => Ok(Json::integer(sum.into())),
            None => Err(Unmergeable::CounterOverflow {
                path: path_text(&self.path),
                sum: sum.map_or_else(|| "more than 128 bits".into(), |sum| sum.to_string()),
            }),
        }
    }

    /// The value of concurrent entries, and the conflict that it decides.
    fn register(&mut self, entries: &[Entry]) -> Result<Json, Unmergeable> {
        let values: BTreeSet<&Json> = entries.iter().map(|entry| &entry.value).collect();
        let (Some(first), Some(last)) = (entries.first(), entries.last()) else { return Ok(Json::Null) };
        if values.len() == 1 {
            return Ok(last.value.clone());
        }
        let (kept, all_stay) = match self.rule.merge {
            Merging::Preference => (last.value.clone(), false),
            Merging::Fact | Merging::Consensus => {
                let own = entries.iter().rev().find(|entry| *entry.stamp.session == *self.viewer);
                (own.unwrap_or(first).value.clone(), true)
            }
            Merging::Text => match self.text(entries)? {
                Some(text) => (Json::Text(text), true),
                None => (last.value.clone(), false),
            },
            Merging::List if !values.iter().any(|value| matches!(value, Json::List(_))) => {
                (last.value.clone(), false)
            }
            Merging::List | Merging::Counter | Merging::Set => {
                return Err(Unmergeable::NotOfType { path: path_text(&self.path), rule: self.rule.merge });
            }
        };
        let candidates: Vec<_> = entries
            .iter()
            .map(|entry| Candidate { stamp: entry.stamp.clone(), value: Some(entry.value.clone()) })
            .collect();
        let lost = candidates.iter().filter(|candidate| !all_stay && candidate.value.as_ref() != Some(&kept));
        self.clashes.push(Clash {
            path: self.path.clone(),
            cause: Cause::Edited,
            base: ancestor(entries).map(|base| base.value.clone()),
            kept: Some(kept.clone()),
            lost: lost.cloned().collect(),
            candidates,
        });
        Ok(kept)
    }

    /// What becomes of a text depends on nothing but its own entries: if others of the key could take the cells that it needs, a put
    /// that removes one of them would change what the others show. So a key whose texts take too many fails instead.
    fn text(&mut self, entries: &[Entry]) -> Result<Option<String>, Unmergeable> {
        let (most, of_key) = (self.limits.text_cells, self.limits.key_cells);
        let texts: Option<Vec<&str>> = entries.iter().map(|entry| entry.value.as_text()).collect();
        let Some(texts) = texts else { return Ok(None) };
        let base = ancestor(entries).and_then(|base| base.value.as_text());
        let mut left = most;
        let merged = text::merge(base, &texts, &mut left);
        self.cells += most - left;
        if self.cells > of_key {
            let what = "the number of cells that its texts are compared in".into();
            return Err(Unmergeable::Limit { what, value: self.cells, limit: of_key });
        }
        Ok(Some(merged))
    }
}

/// The newest value that all entries replaced.
pub(crate) fn ancestor(entries: &[Entry]) -> Option<&Base> {
    let (first, rest) = entries.split_first()?;
    let common = first
        .bases
        .iter()
        .filter(|base| rest.iter().all(|entry| entry.bases.iter().any(|other| other.stamps == base.stamps)));
    common.max_by(|a, b| a.stamps.iter().max().cmp(&b.stamps.iter().max()))
}

pub(crate) fn sum(counts: &BTreeMap<Session, Count>) -> Option<i128> {
    counts.values().try_fold(0_i128, |sum, count| sum.checked_add(count.sum))
}

/// The items of a set in the order in which they were added.
pub(crate) fn set(members: &[Member]) -> Json {
    let mut sorted: Vec<_> =
        members.iter().map(|member| (member.added.iter().min(), &member.value)).collect();
    sorted.sort();
    Json::List(sorted.into_iter().map(|(_, value)| value.clone()).collect())
}

/// The items of a list: in the order of the latest write, and what it did not know after the item that it followed elsewhere.
pub(crate) fn ordered<'a>(items: &'a BTreeMap<String, Node>, order: &'a [Entry]) -> Vec<String> {
    let ids = |order: &'a Json| -> Vec<&'a str> {
        match order {
            Json::List(ids) => {
                ids.iter().filter_map(Json::as_text).filter(|id| items.contains_key(*id)).collect()
            }
            Json::Null | Json::Bool(_) | Json::Number(_) | Json::Text(_) | Json::Object(_) => Vec::new(),
        }
    };
    let latest = move || order.iter().rev();
    let earlier = latest().flat_map(|entry| &entry.bases).map(|base| &base.value);
    let mut orders = latest().map(|entry| &entry.value).chain(earlier);
    let mut merged = orders.next().map(ids).unwrap_or_default();
    let mut known: BTreeSet<&str> = merged.iter().copied().collect();
    for order in orders {
        let mut follows: BTreeMap<Option<&str>, Vec<&str>> = BTreeMap::new();
        let mut last = None;
        for id in ids(order) {
            if known.contains(id) {
                last = Some(id);
            } else {
                follows.entry(last).or_default().push(id);
            }
        }
        // An order that adds nothing costs no more than reading it.
        if follows.is_empty() {
            continue;
        }
        known.extend(follows.values().flatten().copied());
        let mut longer = follows.remove(&None).unwrap_or_default();
        for id in merged {
            longer.push(id);
            longer.extend(follows.remove(&Some(id)).unwrap_or_default());
        }
        merged = longer;
    }
    merged.extend(items.keys().map(String::as_str).filter(|id| !known.contains(id)));
    merged.into_iter().map(str::to_owned).collect()
}

/// A value for the record: of concurrent entries the latest.
pub(crate) fn plain(node: &Node) -> Json {
    match node {
        Node::Object { members, .. } => {
            Json::Object(members.iter().map(|(name, part)| (name.clone(), plain(part))).collect())
        }
        Node::List { items, order, .. } => {
            let ids = ordered(items, order);
            Json::List(ids.iter().filter_map(|id| items.get(id)).map(plain).collect())
        }
        Node::Register(entries) => entries.last().map_or(Json::Null, |entry| entry.value.clone()),
        Node::Counter(counts) => sum(counts).map_or(Json::Null, Json::integer),
        Node::Set { members, .. } => set(members),
    }
}

/// The latest write of a part; none for a counter, which has no times.
pub(crate) fn newest(node: &Node) -> Option<&Stamp> {
    match node {
        Node::Object { made, members } => made.iter().chain(members.values().filter_map(newest)).max(),
        Node::List { made, items, order } => {
            let order = order.iter().map(|entry| &entry.stamp);
            made.iter().chain(order).chain(items.values().filter_map(newest)).max()
        }
        Node::Register(entries) => entries.iter().map(|entry| &entry.stamp).max(),
        Node::Counter(_) => None,
        Node::Set { made, members } => {
            let added = members.iter().flat_map(|member| &member.added).map(|(stamp, _)| stamp);
            made.iter().chain(added).max()
        }
    }
}
