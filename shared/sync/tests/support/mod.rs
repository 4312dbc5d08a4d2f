//! Sessions of one user, and random histories of them.
#![allow(dead_code, reason = "each test program uses a part of it")]
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::BTreeMap;

use chrono::{DateTime, Duration, Utc};
use contract::AccessLevel;
use proptest::prelude::*;
use proptest::test_runner::FileFailurePersistence;
use sync::{Attributes, Cell, Filter, Json, Key, KeyState, Memory, Plan, Rules, Scope, Session, Sync};

/// So many cases, and before them those that have failed once. Their seeds are in a file beside the test's, in the repository:
/// `laws.proptest-regressions`. A seed is good for as long as its generator stays the same, so what a shrunk failure showed is a test
/// with a name, too, in `merge.rs`, `plan.rs` or `bounds.rs`.
pub fn cases(cases: u32) -> ProptestConfig {
    let failed = FileFailurePersistence::WithSource("proptest-regressions");
    ProptestConfig { cases, failure_persistence: Some(Box::new(failed)), ..ProptestConfig::default() }
}

/// A key for each rule.
pub const KEYS: [&str; 6] = ["count.visits", "set.tags", "plain", "list.tasks", "text.note", "fact.diet"];

pub fn json(text: &str) -> Json {
    Json::parse(text).unwrap()
}

pub fn key(name: &str) -> Key {
    Key::Context(name.into())
}

pub fn shared() -> Attributes {
    Attributes { access_level: AccessLevel::Shared, ..Attributes::default() }
}

/// One thing that happens.
#[derive(Clone, Debug)]
pub enum Event {
    /// A session changes a key a little, by a number that says how.
    Edit { session: usize, key: usize, how: u64 },
    /// A session removes a key.
    Remove { session: usize, key: usize },
    /// One session is synced into another.
    Sync { source: usize, target: usize },
}

/// Events of `sessions` sessions.
pub fn history(sessions: usize, length: usize) -> impl Strategy<Value = Vec<Event>> {
    let edit = (0..sessions, 0..KEYS.len(), any::<u64>()).prop_map(|(session, key, how)| Event::Edit {
        session,
        key,
        how,
    });
    let remove = (0..sessions, 0..KEYS.len()).prop_map(|(session, key)| Event::Remove { session, key });
    let sync = (0..sessions, 1..sessions)
        .prop_map(move |(source, further)| Event::Sync { source, target: (source + further) % sessions });
    proptest::collection::vec(prop_oneof![6 => edit, 1 => remove, 4 => sync], 1..length)
}

/// Two to four sessions, and what happens to them.
pub fn any_history(length: usize) -> impl Strategy<Value = (usize, Vec<Event>)> {
    (2..=4_usize).prop_flat_map(move |sessions| (Just(sessions), history(sessions, length)))
}

/// Sessions, and a clock that every write advances.
#[derive(Clone)]
pub struct World {
    pub rules: Rules,
    pub names: Vec<Session>,
    pub memories: BTreeMap<Session, Memory>,
    pub now: DateTime<Utc>,
}

impl World {
    pub fn new(sessions: usize) -> Self {
        let names: Vec<Session> = (0..sessions).map(|number| format!("s{number}").into()).collect();
        Self {
            rules: Rules::current().unwrap(),
            memories: names.iter().map(|name| (name.clone(), Memory::new())).collect(),
            names,
            now: DateTime::from_timestamp(1_700_000_000, 0).unwrap(),
        }
    }

    pub fn memory(&mut self, session: usize) -> &mut Memory {
        let name = self.names[session].clone();
        self.memories.get_mut(&name).unwrap()
    }

    pub fn cell(&self, session: usize, name: &str) -> Option<&Cell> {
        self.memories[&self.names[session]].get(&key(name))
    }

    pub fn value(&self, session: usize, name: &str) -> Option<Json> {
        self.cell(session, name).and_then(|cell| cell.value.clone())
    }

    pub fn state(&self, session: usize, name: &str) -> KeyState {
        self.cell(session, name).and_then(|cell| cell.state.clone()).unwrap_or_default()
    }

    /// A session writes a context, or removes it.
    pub fn write_as(&mut self, session: usize, name: &str, value: Option<Json>, attributes: Attributes) {
        self.write_key(session, key(name), value, attributes);
    }

    /// A session writes a key, or removes it.
    pub fn write_key(&mut self, session: usize, key: Key, value: Option<Json>, attributes: Attributes) {
        self.now += Duration::milliseconds(1);
        let now = self.now;
        let memory = self.memory(session);
        match memory.get_mut(&key) {
            Some(cell) => cell.write(value, attributes, now),
            None => {
                let cell = Cell { value, ..Cell::new(Json::Null, attributes, now) };
                memory.insert(key, cell);
            }
        }
    }

    pub fn put(&mut self, session: usize, name: &str, value: &str) {
        self.write_as(session, name, Some(json(value)), shared());
    }

    pub fn remove(&mut self, session: usize, name: &str) {
        self.write_as(session, name, None, shared());
    }

    /// Takes in what the session has written, as a sync does that carries the key.
    pub fn take_in(&mut self, session: usize, name: &str) {
        let (of, rules) = (self.names[session].clone(), self.rules.clone());
        if let Some(cell) = self.memory(session).get_mut(&key(name)) {
            cell.state = Some(cell.state.clone().unwrap_or_default().absorb(&of, cell, &key(name), &rules));
        }
    }

    pub fn plan_as(&self, source: usize, target: usize, filter: &Filter, scope: Scope) -> Plan {
        let (source, target) = (&self.names[source], &self.names[target]);
        let sync = Sync { source, target, filter, scope, now: self.now, rules: &self.rules };
        sync.plan(&self.memories[source], &self.memories[target])
    }

    pub fn plan(&self, source: usize, target: usize) -> Plan {
        self.plan_as(source, target, &Filter::default(), Scope::default())
    }

    pub fn apply(&mut self, source: usize, target: usize, plan: &Plan) {
        let mut memory = std::mem::take(self.memory(source));
        plan.apply(&mut memory, self.memory(target));
        *self.memory(source) = memory;
    }

    pub fn sync(&mut self, source: usize, target: usize) -> Plan {
        let plan = self.plan(source, target);
        self.apply(source, target, &plan);
        plan
    }

    pub fn happen(&mut self, event: &Event) -> Option<Plan> {
        match event {
            Event::Edit { session, key, how } => {
                let old = self.value(*session, KEYS[*key]);
                self.write_as(*session, KEYS[*key], Some(edited(KEYS[*key], old, *how)), shared());
                None
            }
            Event::Remove { session, key } => {
                if self.value(*session, KEYS[*key]).is_some() {
                    self.remove(*session, KEYS[*key]);
                }
                None
            }
            Event::Sync { source, target } => Some(self.sync(*source, *target)),
        }
    }

    pub fn all(&mut self, events: &[Event]) {
        for event in events {
            self.happen(event);
        }
    }

    /// Syncs all pairs until nothing is written any more. Returns the number of rounds.
    pub fn settle(&mut self) -> usize {
        let count = self.names.len();
        for round in 0..=2 * count {
            let mut written = 0;
            for (source, target) in
                (0..count).flat_map(|source| (0..count).map(move |target| (source, target)))
            {
                if source != target {
                    written += self.sync(source, target).writes.len();
                }
            }
            if written == 0 {
                return round;
            }
        }
        panic!("the sessions do not come to rest");
    }
}

/// A value a little different from the old one, as the rule of the key expects it.
pub fn edited(name: &str, old: Option<Json>, how: u64) -> Json {
    let (kind, pick, amount) = (how % 4, how / 4 % 4, how / 16 % 8);
    match name {
        "count.visits" => {
            let old = old.and_then(|old| old.as_integer()).unwrap_or(0);
            Json::integer(old + i128::from(amount) - 3)
        }
        "set.tags" => {
            let mut items = list(old);
            let item = json(&format!("\"t{amount}\""));
            if kind == 0 {
                items.retain(|other| *other != item);
            } else if !items.contains(&item) {
                items.push(item);
            }
            Json::List(items)
        }
        "list.tasks" => {
            let mut items = list(old);
            let id = json(&format!("\"i{pick}\""));
            let at = items.iter().position(|item| object(Some(item.clone())).get("id") == Some(&id));
            let new = Json::Object([("id".into(), id), ("done".into(), Json::integer(amount.into()))].into());
            match (kind, at) {
                (0, Some(at)) => drop(items.remove(at)),
                (1, Some(at)) => items[at] = new,
                (2, Some(at)) => {
                    let mut members = object(Some(items[at].clone()));
                    members.insert("note".into(), Json::integer(amount.into()));
                    items[at] = Json::Object(members);
                }
                (_, Some(at)) => {
                    let item = items.remove(at);
                    items.insert(0, item);
                }
                (_, None) => items.insert(amount as usize % (items.len() + 1), new),
            }
            Json::List(items)
        }
        "text.note" => {
            let old = old.and_then(|old| old.as_text().map(str::to_owned)).unwrap_or_default();
            let mut words: Vec<String> =
                old.split(' ').filter(|word| !word.is_empty()).map(str::to_owned).collect();
            if kind == 0 && !words.is_empty() {
                words.remove(pick as usize % words.len());
            } else {
                words.insert(amount as usize % (words.len() + 1), format!("w{}", how % 1_000_003));
            }
            Json::Text(words.join(" "))
        }
        "fact.diet" => json(&format!("\"{}\"", ["vegan", "kosher", "halal", "none"][pick as usize])),
        _ => {
            let mut members = object(old);
            let name = ["a", "b", "c", "d"][pick as usize];
            match kind {
                0 => drop(members.remove(name)),
                1 => drop(members.insert(name.into(), Json::integer(amount.into()))),
                2 => {
                    let mut inner = object(members.remove(name));
                    inner.insert(format!("m{}", amount % 3), Json::integer((how / 128 % 5).into()));
                    members.insert(name.into(), Json::Object(inner));
                }
                _ => {
                    let value = ["[1]", "[1,2]", "{}", "null"][amount as usize % 4];
                    members.insert(name.into(), json(value));
                }
            }
            Json::Object(members)
        }
    }
}

fn list(value: Option<Json>) -> Vec<Json> {
    match value {
        Some(Json::List(items)) => items,
        _ => Vec::new(),
    }
}

fn object(value: Option<Json>) -> BTreeMap<String, Json> {
    match value {
        Some(Json::Object(members)) => members,
        _ => BTreeMap::new(),
    }
}
