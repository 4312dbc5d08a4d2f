//! What a session's own write changed of what it had seen.
//!
//! A put brings a whole value. Only the parts that differ from what the session saw are its own; all others stay whose they were, and
//! concurrent entries that it did not touch stay side by side.

use std::collections::BTreeMap;

use crate::conflict::Unmergeable;
use crate::json::Json;
use crate::node::{Base, Count, Entry, Member, Node, identified, members, order};
use crate::resolve::{Resolver, newest, ordered};
use crate::rules::{Merging, Rule};
use crate::vector::{Session, Stamp};

pub(crate) struct Overlay<'a> {
    pub stamp: &'a Stamp,
    pub rule: &'a Rule,
    pub resolver: Resolver<'a>,
}

impl Overlay<'_> {
    /// The parts of the new value over those that the session saw.
    pub fn over(&mut self, old: Option<&Node>, new: &Json) -> Result<Node, Unmergeable> {
        let Some(old) = old else { return Ok(Node::fresh(new, self.stamp, self.rule)) };
        match (old, new) {
            (Node::Object { made, members }, Json::Object(values)) if !self.rule.merge.is_atomic() => {
                let mut parts = BTreeMap::new();
                for (name, value) in values {
                    parts.insert(name.clone(), self.over(members.get(name), value)?);
                }
                Ok(Node::Object { made: made.clone(), members: parts })
            }
            (Node::List { made, items, order: old_order }, Json::List(values)) => {
                match identified(values, self.rule) {
                    Some(ids) => self.list(made, items, old_order, &ids),
                    None => self.replaced(old, new),
                }
            }
            (Node::Set { made, members: old }, Json::List(values)) => {
                Ok(Node::Set { made: made.clone(), members: self.set(old, values) })
            }
            (Node::Counter(counts), Json::Number(_)) => match self.counted(counts, new) {
                Some(counter) => Ok(counter),
                None => self.replaced(old, new),
            },
            _ => self.replaced(old, new),
        }
    }

    /// A part that is not looked into: it is the same value, or a new one.
    fn replaced(&mut self, old: &Node, new: &Json) -> Result<Node, Unmergeable> {
        let shown = self.resolver.value(old)?;
        let fresh = Node::fresh(new, self.stamp, self.rule);
        if shown == *new && old.shape() == fresh.shape() {
            return Ok(old.clone());
        }
        Ok(match fresh {
            Node::Register(_) => Node::written(new.clone(), self.stamp, self.bases(old, shown)),
            Node::Object { .. } | Node::List { .. } | Node::Counter(_) | Node::Set { .. } => fresh,
        })
    }

    /// The possible ancestors of a new entry: what it replaces, and what that replaced. When they are too many, the second
    /// oldest goes: a session that rewrites its own text many times keeps what others know.
    fn bases(&self, old: &Node, shown: Json) -> Vec<Base> {
        let (stamps, mut earlier) = match old {
            Node::Register(entries) => {
                let stamps = entries.iter().map(|entry| entry.stamp.clone()).collect();
                let earlier = match entries.as_slice() {
                    [one] => one.bases.clone(),
                    several => crate::resolve::ancestor(several).cloned().into_iter().collect(),
                };
                (stamps, earlier)
            }
            Node::Object { .. } | Node::List { .. } | Node::Counter(_) | Node::Set { .. } => {
                (newest(old).cloned().into_iter().collect(), Vec::new())
            }
        };
        let most = match self.rule.merge {
            Merging::Text => self.resolver.limits.text_bases,
            Merging::Counter
            | Merging::Set
            | Merging::Preference
            | Merging::List
            | Merging::Fact
            | Merging::Consensus => 1,
        };
        earlier.insert(0, Base { stamps, value: shown });
        while earlier.len() > most {
            earlier.remove(if most > 1 { earlier.len() - 2 } else { earlier.len() - 1 });
        }
        earlier
    }

    fn list(
        &mut self,
        made: &[Stamp],
        items: &BTreeMap<String, Node>,
        old_order: &[Entry],
        ids: &[(String, &Json)],
    ) -> Result<Node, Unmergeable> {
        let mut parts = BTreeMap::new();
        for (id, value) in ids {
            parts.insert(id.clone(), self.over(items.get(id), value)?);
        }
        let shown = ordered(items, old_order);
        let order = if shown.iter().eq(ids.iter().map(|(id, _)| id)) {
            old_order.to_vec()
        } else {
            // An item that another session keeps finds its place again by the order before.
            let stamps = old_order.iter().map(|entry| entry.stamp.clone()).collect();
            let base = Base { stamps, value: Json::List(shown.into_iter().map(Json::Text).collect()) };
            vec![Entry { stamp: self.stamp.clone(), value: order(ids), bases: vec![base] }]
        };
        Ok(Node::List { made: made.to_vec(), items: parts, order })
    }

    fn set(&self, old: &[Member], values: &[Json]) -> Vec<Member> {
        let known: BTreeMap<&Json, &Member> = old.iter().map(|member| (&member.value, member)).collect();
        let new = members(values, self.stamp).into_iter();
        new.map(|member| known.get(&member.value).map_or(member, |known| (*known).clone())).collect()
    }

    /// Leaves nothing but what the value shows: no ancestors, no concurrent entries, no order of removed items.
    pub fn strip(&mut self, node: Node) -> Result<Node, Unmergeable> {
        Ok(match node {
            Node::Object { made, members } => {
                let members = members.into_iter().map(|(name, part)| Ok((name, self.strip(part)?)));
                Node::Object { made, members: members.collect::<Result<_, Unmergeable>>()? }
            }
            Node::List { made, items, order } => {
                let ids = ordered(&items, &order).into_iter().map(Json::Text).collect();
                let order =
                    vec![Entry { stamp: self.stamp.clone(), value: Json::List(ids), bases: Vec::new() }];
                let items = items.into_iter().map(|(id, part)| Ok((id, self.strip(part)?)));
                Node::List { made, items: items.collect::<Result<_, Unmergeable>>()?, order }
            }
            Node::Register(entries) => match <[Entry; 1]>::try_from(entries) {
                Ok([entry]) => Node::Register(vec![Entry { bases: Vec::new(), ..entry }]),
                Err(entries) => {
                    let shown = self.resolver.value(&Node::Register(entries))?;
                    Node::written(shown, self.stamp, Vec::new())
                }
            },
            Node::Counter(_) | Node::Set { .. } => node,
        })
    }

    /// The session's own sum, with what it added now. `None` if that is no integer.
    fn counted(&self, counts: &BTreeMap<Session, Count>, new: &Json) -> Option<Node> {
        let shown = crate::resolve::sum(counts)?;
        let added = new.as_integer()?.checked_sub(shown)?;
        let mut counts = counts.clone();
        if added != 0 {
            let own = counts.entry(self.stamp.session.clone()).or_insert(Count { count: 0, sum: 0 });
            *own = Count { count: self.stamp.count, sum: own.sum.checked_add(added)? };
        }
        Some(Node::Counter(counts))
    }
}
