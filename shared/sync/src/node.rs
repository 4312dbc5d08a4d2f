//! A value taken apart: which session wrote which part of it.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::json::Json;
use crate::rules::{Merging, Rule};
use crate::vector::{Session, Stamp, Vector};

/// A value that a part had before, as a possible ancestor of a merge.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub(crate) struct Base {
    /// The writes that it came from. The same ones give the same value.
    #[serde(rename = "s")]
    pub stamps: Vec<Stamp>,
    #[serde(rename = "v")]
    pub value: Json,
}

/// One write of a part that is not taken apart any further.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub(crate) struct Entry {
    #[serde(rename = "s")]
    pub stamp: Stamp,
    #[serde(rename = "v")]
    pub value: Json,
    /// What it replaced, the newest first.
    #[serde(rename = "b", default, skip_serializing_if = "Vec::is_empty")]
    pub bases: Vec<Base>,
}

/// What a session has added to a counter in all.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub(crate) struct Count {
    /// The last of its writes that added something.
    #[serde(rename = "n")]
    pub count: u64,
    /// As text: it may exceed what JSON readers keep exact.
    #[serde(rename = "d", with = "decimal")]
    pub sum: i128,
}

/// An item of a set.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub(crate) struct Member {
    #[serde(rename = "v")]
    pub value: Json,
    /// The writes that added it, each with the place that it had there.
    #[serde(rename = "a")]
    pub added: Vec<(Stamp, u64)>,
}

/// A part of a value.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub(crate) enum Node {
    /// An object. `made`: the writes that created it, so that an empty one is more than nothing.
    #[serde(rename = "o")]
    Object { made: Vec<Stamp>, members: BTreeMap<String, Node> },
    /// An array of objects by the text of their identifying member. The order is a part of its own.
    #[serde(rename = "l")]
    List { made: Vec<Stamp>, items: BTreeMap<String, Node>, order: Vec<Entry> },
    /// Anything else. Several entries were written concurrently.
    #[serde(rename = "r")]
    Register(Vec<Entry>),
    #[serde(rename = "c")]
    Counter(BTreeMap<Session, Count>),
    /// Sorted by value.
    #[serde(rename = "s")]
    Set { made: Vec<Stamp>, members: Vec<Member> },
}

/// The most arrays and objects that the JSON of a part nests that has no parts of its own.
pub(crate) const FLAT: usize = 8;

/// The kind of a node: nodes of different kinds have no parts in common.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Shape {
    Object,
    List,
    Register,
    Counter,
    Set,
}

impl Node {
    pub fn shape(&self) -> Shape {
        match self {
            Self::Object { .. } => Shape::Object,
            Self::List { .. } => Shape::List,
            Self::Register(_) => Shape::Register,
            Self::Counter(_) => Shape::Counter,
            Self::Set { .. } => Shape::Set,
        }
    }

    /// How many arrays and objects its JSON nests, at most. Values within are not counted: they are read as they are.
    pub fn nesting(&self) -> usize {
        let parts = match self {
            Self::Object { members, .. } => members,
            Self::List { items, .. } => items,
            Self::Register(_) | Self::Counter(_) | Self::Set { .. } => return FLAT,
        };
        3 + parts.values().map(Self::nesting).max().unwrap_or(FLAT)
    }

    /// A value that one write brings, all of it.
    pub fn fresh(value: &Json, stamp: &Stamp, rule: &Rule) -> Self {
        let made = || vec![stamp.clone()];
        match (value, rule.merge) {
            (_, Merging::Fact | Merging::Consensus) => Self::written(value.clone(), stamp, Vec::new()),
            (Json::Object(members), _) => {
                let parts =
                    members.iter().map(|(name, value)| (name.clone(), Self::fresh(value, stamp, rule)));
                Self::Object { made: made(), members: parts.collect() }
            }
            (Json::List(items), Merging::Set) => Self::Set { made: made(), members: members(items, stamp) },
            (Json::List(items), Merging::List) => match identified(items, rule) {
                Some(ids) => Self::List {
                    made: made(),
                    order: vec![Entry { stamp: stamp.clone(), value: order(&ids), bases: Vec::new() }],
                    items: ids.into_iter().map(|(id, item)| (id, Self::fresh(item, stamp, rule))).collect(),
                },
                None => Self::written(value.clone(), stamp, Vec::new()),
            },
            (Json::Number(_), Merging::Counter) => match value.as_integer() {
                Some(sum) => {
                    Self::Counter([(stamp.session.clone(), Count { count: stamp.count, sum })].into())
                }
                None => Self::written(value.clone(), stamp, Vec::new()),
            },
            _ => Self::written(value.clone(), stamp, Vec::new()),
        }
    }

    pub fn written(value: Json, stamp: &Stamp, bases: Vec<Base>) -> Self {
        Self::Register(vec![Entry { stamp: stamp.clone(), value, bases }])
    }

    /// Whether every write of this part, or of a part of it, passes.
    fn every(&self, test: &mut dyn FnMut(&Session, u64) -> bool) -> bool {
        let stamps = |stamps: &[Stamp], test: &mut dyn FnMut(&Session, u64) -> bool| {
            stamps.iter().all(|stamp| test(&stamp.session, stamp.count))
        };
        match self {
            Self::Object { made, members } => {
                stamps(made, test) && members.values().all(|part| part.every(test))
            }
            Self::List { made, items, order } => {
                stamps(made, test)
                    && order.iter().all(|entry| test(&entry.stamp.session, entry.stamp.count))
                    && items.values().all(|part| part.every(test))
            }
            Self::Register(entries) => {
                entries.iter().all(|entry| test(&entry.stamp.session, entry.stamp.count))
            }
            Self::Counter(counts) => counts.iter().all(|(session, count)| test(session, count.count)),
            Self::Set { made, members } => {
                stamps(made, test)
                    && members
                        .iter()
                        .flat_map(|member| &member.added)
                        .all(|(stamp, _)| test(&stamp.session, stamp.count))
            }
        }
    }

    /// Whether all of its writes have been seen.
    pub fn seen_by(&self, seen: &Vector) -> bool {
        self.every(&mut |session, count| seen.has(session, count))
    }

    /// Whether a write of it, or one that it replaced, has been seen.
    pub fn known_to(&self, seen: &Vector) -> bool {
        let replaced = match self {
            Self::Register(entries) => entries
                .iter()
                .flat_map(|entry| &entry.bases)
                .flat_map(|base| &base.stamps)
                .any(|stamp| seen.has(&stamp.session, stamp.count)),
            Self::Object { .. } | Self::List { .. } | Self::Counter(_) | Self::Set { .. } => false,
        };
        replaced || !self.every(&mut |session, count| !seen.has(session, count))
    }
}

/// The items of a set, without repetition, each with its first place.
pub(crate) fn members(items: &[Json], stamp: &Stamp) -> Vec<Member> {
    let mut members = BTreeMap::new();
    for (place, item) in (0..).zip(items) {
        members.entry(item).or_insert(place);
    }
    let member =
        |(value, place): (&Json, u64)| Member { value: value.clone(), added: vec![(stamp.clone(), place)] };
    members.into_iter().map(member).collect()
}

/// The items of a list with the text of their identifying member; `None` if one has none, or two have the same.
pub(crate) fn identified<'a>(items: &'a [Json], rule: &Rule) -> Option<Vec<(String, &'a Json)>> {
    let name = rule.id.as_ref()?;
    let id = |item: &Json| match item {
        Json::Object(members) => match members.get(name)? {
            id @ (Json::Text(_) | Json::Number(_)) => Some(id.to_string()),
            Json::Null | Json::Bool(_) | Json::List(_) | Json::Object(_) => None,
        },
        Json::Null | Json::Bool(_) | Json::Number(_) | Json::Text(_) | Json::List(_) => None,
    };
    let ids: Option<Vec<_>> = items.iter().map(|item| Some((id(item)?, item))).collect();
    let ids = ids?;
    let different: std::collections::BTreeSet<&str> = ids.iter().map(|(id, _)| id.as_str()).collect();
    (different.len() == ids.len()).then_some(ids)
}

/// The order of a list as a value.
pub(crate) fn order(ids: &[(String, &Json)]) -> Json {
    Json::List(ids.iter().map(|(id, _)| Json::Text(id.clone())).collect())
}

mod decimal {
    use serde::de::Error;
    use serde::{Deserialize, Deserializer, Serializer};

    pub fn serialize<S: Serializer>(value: &i128, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(value)
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<i128, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(D::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stamp(count: u64) -> Stamp {
        Stamp { time: count, session: "a".into(), count }
    }

    fn seen(count: u64) -> Vector {
        let mut seen = Vector::default();
        seen.raise(&"a".into(), count);
        seen
    }

    #[test]
    fn a_part_is_seen_with_all_of_its_writes_and_known_with_one() {
        let member = Member { value: Json::Bool(true), added: vec![(stamp(2), 0)] };
        let set = Node::Set { made: vec![stamp(1)], members: vec![member] };
        let entry = Entry { stamp: stamp(2), value: Json::Bool(true), bases: Vec::new() };
        let register = Node::Register(vec![entry.clone()]);
        let items: BTreeMap<String, Node> = [("i".to_owned(), register)].into();
        let list = Node::List { made: vec![stamp(1)], items: items.clone(), order: vec![entry] };
        let object = Node::Object { made: vec![stamp(1)], members: items };
        for part in [set, list, object] {
            assert_eq!([0, 1, 2].map(|count| part.seen_by(&seen(count))), [false, false, true], "{part:?}");
            assert_eq!([0, 1, 2].map(|count| part.known_to(&seen(count))), [false, true, true], "{part:?}");
        }
    }
}
