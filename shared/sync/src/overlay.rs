//! What a session's own write changed of what it had seen.
//!
//! A put brings a whole value. Only the parts that differ from what the session saw are its own; all others stay whose they were, and
//! concurrent entries that it did not touch stay side by side.

use std::collections::BTreeMap;

use crate::json::Json;
use crate::node::{Base, Count, Entry, Member, Node, identified, members, order};
use crate::resolve::{newest, ordered};
use crate::rules::{Merging, Rule};
use crate::vector::{Session, Stamp};

/// A part, and what the session saw of it, so that it is computed only once.
#[derive(Clone, Copy)]
pub(crate) struct Seen<'a> {
    pub node: &'a Node,
    pub value: &'a Json,
}

impl<'a> Seen<'a> {
    pub fn of(node: Option<&'a Node>, value: Option<&'a Json>) -> Option<Self> {
        Some(Self { node: node?, value: value? })
    }
}

pub(crate) struct Overlay<'a> {
    pub stamp: &'a Stamp,
    pub rule: &'a Rule,
    /// Most possible ancestors that a text keeps.
    pub text_bases: usize,
}

impl Overlay<'_> {
    /// The parts of the new value over those that the session saw.
    pub fn over(&self, seen: Option<Seen<'_>>, new: &Json) -> Node {
        let Some(seen) = seen else { return Node::fresh(new, self.stamp, self.rule) };
        match (seen.node, seen.value, new) {
            (Node::Object { made, members }, Json::Object(shown), Json::Object(values))
                if !self.rule.merge.is_atomic() =>
            {
                let part = |(name, value): (&String, &Json)| {
                    let seen = Seen::of(members.get(name), shown.get(name));
                    (name.clone(), self.over(seen, value))
                };
                Node::Object { made: made.clone(), members: values.iter().map(part).collect() }
            }
            (Node::List { made, items, order }, Json::List(shown), Json::List(values)) => {
                match identified(values, self.rule) {
                    Some(ids) => self.list(made, items, order, shown, &ids),
                    None => self.replaced(seen, new),
                }
            }
            (Node::Set { made, members: old }, _, Json::List(values)) => {
                Node::Set { made: made.clone(), members: self.set(old, values) }
            }
            (Node::Counter(counts), _, Json::Number(_)) => match self.counted(counts, new) {
                Some(counter) => counter,
                None => self.replaced(seen, new),
            },
            _ => self.replaced(seen, new),
        }
    }

    /// A part that is not looked into: it is the same value, or a new one.
    fn replaced(&self, seen: Seen<'_>, new: &Json) -> Node {
        let Seen { node: old, value: shown } = seen;
        let fresh = Node::fresh(new, self.stamp, self.rule);
        if shown == new && old.shape() == fresh.shape() {
            return old.clone();
        }
        match fresh {
            Node::Register(_) => Node::written(new.clone(), self.stamp, self.bases(old, shown.clone())),
            Node::Object { .. } | Node::List { .. } | Node::Counter(_) | Node::Set { .. } => fresh,
        }
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
            Merging::Text => self.text_bases,
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
        &self,
        made: &[Stamp],
        items: &BTreeMap<String, Node>,
        old_order: &[Entry],
        values: &[Json],
        ids: &[(String, &Json)],
    ) -> Node {
        let shown = ordered(items, old_order);
        let of_id: BTreeMap<&str, &Json> = shown.iter().map(String::as_str).zip(values).collect();
        let part = |(id, value): &(String, &Json)| {
            let seen = Seen::of(items.get(id), of_id.get(id.as_str()).copied());
            (id.clone(), self.over(seen, value))
        };
        let parts = ids.iter().map(part).collect();
        let order = if shown.iter().eq(ids.iter().map(|(id, _)| id)) {
            old_order.to_vec()
        } else {
            // An item that another session keeps finds its place again by the order before.
            let stamps = old_order.iter().map(|entry| entry.stamp.clone()).collect();
            let base = Base { stamps, value: Json::List(shown.into_iter().map(Json::Text).collect()) };
            vec![Entry { stamp: self.stamp.clone(), value: order(ids), bases: vec![base] }]
        };
        Node::List { made: made.to_vec(), items: parts, order }
    }

    fn set(&self, old: &[Member], values: &[Json]) -> Vec<Member> {
        let known: BTreeMap<&Json, &Member> = old.iter().map(|member| (&member.value, member)).collect();
        let new = members(values, self.stamp).into_iter();
        new.map(|member| known.get(&member.value).map_or(member, |known| (*known).clone())).collect()
    }

    /// Leaves nothing but what the value shows: no ancestors, no concurrent entries, no order of removed items.
    pub fn strip(&self, node: Node, value: &Json) -> Node {
        match (node, value) {
            (Node::Object { made, members }, Json::Object(values)) => {
                let part = |(name, part): (String, Node)| {
                    let part = self.strip(part, values.get(&name)?);
                    Some((name, part))
                };
                Node::Object { made, members: members.into_iter().filter_map(part).collect() }
            }
            (Node::List { made, mut items, order }, Json::List(values)) => {
                let ids = ordered(&items, &order);
                let part = |(id, value): (&String, &Json)| {
                    items.remove(id).map(|part| (id.clone(), self.strip(part, value)))
                };
                let items = ids.iter().zip(values).filter_map(part).collect();
                let ids = Json::List(ids.into_iter().map(Json::Text).collect());
                let order = vec![Entry { stamp: self.stamp.clone(), value: ids, bases: Vec::new() }];
                Node::List { made, items, order }
            }
            (Node::Register(entries), value) => match <[Entry; 1]>::try_from(entries) {
                Ok([entry]) => Node::Register(vec![Entry { bases: Vec::new(), ..entry }]),
                Err(_) => Node::written(value.clone(), self.stamp, Vec::new()),
            },
            (node @ (Node::Counter(_) | Node::Set { .. }), _) => node,
            // Parts are those of their value. If they were not, none of them would be what it shows.
            (Node::Object { .. } | Node::List { .. }, value) => Node::fresh(value, self.stamp, self.rule),
        }
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
