//! The same histories through a public CRDT library: what it keeps, ours keeps. docs/adr/0048 lists where they differ.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;
use support::{World, cases, json};
use sync::Json;
use yrs::updates::decoder::Decode;
use yrs::{Any, Array, ArrayRef, Doc, GetString, Map, MapRef, Out, ReadTxn, Text, TextRef, Transact, Update};

const MAP: &str = "plain";
const SET: &str = "set.tags";
const TEXT: &str = "text.note";

/// One thing that a session does, or a sync.
#[derive(Clone, Debug)]
enum Step {
    Set { session: usize, member: usize, value: u8 },
    Unset { session: usize, member: usize },
    Add { session: usize, item: u8 },
    Take { session: usize, at: usize },
    Insert { session: usize, at: usize },
    Delete { session: usize, at: usize },
    Sync { source: usize, target: usize },
}

fn steps(sessions: usize) -> impl Strategy<Value = Vec<Step>> {
    let step = (0..sessions, 1..sessions, 0..12_u8, 0..4_usize, 0..6_u8).prop_map(
        move |(session, further, kind, at, value)| match kind {
            0 | 1 => Step::Set { session, member: at, value },
            2 => Step::Unset { session, member: at },
            3 | 4 => Step::Add { session, item: value },
            5 => Step::Take { session, at },
            6 | 7 => Step::Insert { session, at },
            8 => Step::Delete { session, at },
            _ => Step::Sync { source: session, target: (session + further) % sessions },
        },
    );
    proptest::collection::vec(step, 1..40)
}

/// The replica of a session in the other library.
struct Peer {
    doc: Doc,
    map: MapRef,
    set: ArrayRef,
    text: TextRef,
}

impl Peer {
    fn new(client: u64) -> Self {
        let doc = Doc::with_client_id(client);
        let (map, set, text) =
            (doc.get_or_insert_map(MAP), doc.get_or_insert_array(SET), doc.get_or_insert_text(TEXT));
        Self { doc, map, set, text }
    }

    fn members(&self) -> BTreeMap<String, String> {
        let txn = self.doc.transact();
        let members = self.map.iter(&txn).map(|(name, value)| {
            let Out::Any(Any::String(value)) = value else { panic!("{value:?}") };
            (name.to_owned(), value.to_string())
        });
        members.collect()
    }

    fn items(&self) -> Vec<String> {
        let txn = self.doc.transact();
        self.set.iter(&txn).map(|item| item.to_string(&txn)).collect()
    }

    fn words(&self) -> Vec<String> {
        let text = self.text.get_string(&self.doc.transact());
        text.split_whitespace().map(str::to_owned).collect()
    }

    fn sync_into(&self, target: &Self) {
        let state = target.doc.transact().state_vector();
        let update = self.doc.transact().encode_diff_v1(&state);
        target.doc.transact_mut().apply_update(Update::decode_v1(&update).unwrap()).unwrap();
    }
}

/// Both, side by side.
struct Pair {
    world: World,
    peers: Vec<Peer>,
    /// The object and the set of each session, as far as its peer knows what the session has written.
    members: Vec<BTreeMap<String, Json>>,
    items: Vec<Vec<Json>>,
    /// Whether each write is taken in at once, as by a sync after each; otherwise what a session writes between two syncs is one.
    at_once: bool,
    /// Words are never repeated, so that each is one piece of information.
    words: usize,
    /// What ours has on record as lost, by member.
    lost: BTreeSet<(String, String)>,
}

impl Pair {
    fn new(sessions: usize, at_once: bool) -> Self {
        let peers = (0..sessions).map(|number| Peer::new(number as u64 + 1)).collect();
        Self {
            world: World::new(sessions),
            peers,
            members: vec![BTreeMap::new(); sessions],
            items: vec![Vec::new(); sessions],
            at_once,
            words: 0,
            lost: BTreeSet::new(),
        }
    }

    fn object(&self, session: usize) -> BTreeMap<String, Json> {
        match self.world.value(session, MAP) {
            Some(Json::Object(members)) => members,
            _ => BTreeMap::new(),
        }
    }

    fn items(&self, session: usize) -> Vec<Json> {
        match self.world.value(session, SET) {
            Some(Json::List(items)) => items,
            _ => Vec::new(),
        }
    }

    fn words(&self, session: usize) -> Vec<String> {
        let text = self.world.value(session, TEXT).and_then(|text| text.as_text().map(str::to_owned));
        text.unwrap_or_default().split_whitespace().map(str::to_owned).collect()
    }

    fn put(&mut self, session: usize, name: &str, value: &Json) {
        self.world.put(session, name, &value.to_string());
        if self.at_once {
            self.world.take_in(session, name);
            self.tell(session, name);
        }
    }

    /// Does in the other library what a session has changed of a key.
    fn tell(&mut self, session: usize, name: &str) {
        match name {
            MAP => self.tell_members(session),
            SET => self.tell_items(session),
            _ => {}
        }
    }

    fn tell_members(&mut self, session: usize) {
        let (new, peer) = (self.object(session), &self.peers[session]);
        let old = std::mem::replace(&mut self.members[session], new.clone());
        for name in old.keys().filter(|name| !new.contains_key(*name)) {
            peer.map.remove(&mut peer.doc.transact_mut(), name);
        }
        for (name, value) in new.iter().filter(|(name, value)| old.get(*name) != Some(*value)) {
            peer.map.insert(&mut peer.doc.transact_mut(), name.clone(), value.to_string());
        }
    }

    fn tell_items(&mut self, session: usize) {
        let (new, peer) = (self.items(session), &self.peers[session]);
        let old = std::mem::replace(&mut self.items[session], new.clone());
        for item in old.iter().filter(|item| !new.contains(item)) {
            while let Some(at) = peer.items().iter().position(|other| Some(other.as_str()) == item.as_text())
            {
                peer.set.remove(&mut peer.doc.transact_mut(), at as u32);
            }
        }
        for item in new.iter().filter(|item| !old.contains(item)) {
            peer.set.push_back(&mut peer.doc.transact_mut(), item.as_text().unwrap());
        }
    }

    fn step(&mut self, step: &Step) {
        match *step {
            Step::Set { session, member, value } => {
                let mut members = self.object(session);
                members.insert(format!("m{member}"), Json::integer(value.into()));
                self.put(session, MAP, &Json::Object(members));
            }
            Step::Unset { session, member } => {
                let mut members = self.object(session);
                members.remove(&format!("m{member}"));
                self.put(session, MAP, &Json::Object(members));
            }
            Step::Add { session, item } => {
                let (item, mut items) = (Json::Text(format!("i{item}")), self.items(session));
                if !items.contains(&item) {
                    items.push(item);
                    self.put(session, SET, &Json::List(items));
                }
            }
            Step::Take { session, at } => {
                let mut items = self.items(session);
                if !items.is_empty() {
                    items.remove(at % items.len());
                    self.put(session, SET, &Json::List(items));
                }
            }
            Step::Insert { session, at } => {
                self.words += 1;
                let (word, mut words) = (format!("w{}", self.words), self.words(session));
                let place = at % (words.len() + 1);
                words.insert(place, word.clone());
                self.put(session, TEXT, &Json::Text(words.join(" ")));
                let peer = &self.peers[session];
                let place = at % (peer.words().len() + 1);
                let before: usize = peer.words()[..place].iter().map(|word| word.len() + 1).sum();
                peer.text.insert(&mut peer.doc.transact_mut(), before as u32, &format!("{word} "));
            }
            Step::Delete { session, at } => {
                let mut words = self.words(session);
                if words.is_empty() {
                    return;
                }
                let word = words.remove(at % words.len());
                words.retain(|other| *other != word);
                self.put(session, TEXT, &Json::Text(words.join(" ")));
                let peer = &self.peers[session];
                if let Some(place) = peer.words().iter().position(|other| *other == word) {
                    let before: usize = peer.words()[..place].iter().map(|word| word.len() + 1).sum();
                    let length = word.len() as u32 + 1;
                    peer.text.remove_range(&mut peer.doc.transact_mut(), before as u32, length);
                }
            }
            Step::Sync { source, target } => self.sync(source, target),
        }
    }

    fn sync(&mut self, source: usize, target: usize) {
        let plan = self.world.plan(source, target);
        assert_eq!(plan.failures, []);
        // A sync that finds nothing new of a key takes in nothing of it.
        for write in &plan.writes {
            self.tell(source, write.key.name());
            self.tell(target, write.key.name());
        }
        self.world.apply(source, target, &plan);
        for conflict in plan.conflicts.iter().filter(|conflict| conflict.key.name() == MAP) {
            let lost = conflict
                .lost
                .iter()
                .filter_map(|lost| Some((path(&conflict.path), lost.value.as_ref()?.to_string())));
            self.lost.extend(lost);
        }
        self.peers[source].sync_into(&self.peers[target]);
        for write in &plan.writes {
            match write.key.name() {
                MAP => self.members[target] = self.object(target),
                SET => self.items[target] = self.items(target),
                _ => {}
            }
        }
    }

    fn settle(&mut self) {
        let sessions = self.peers.len();
        for _ in 0..sessions {
            for (source, target) in (0..sessions).flat_map(|a| (0..sessions).map(move |b| (a, b))) {
                if source != target {
                    self.sync(source, target);
                }
            }
        }
    }

    /// What the other library kept is there, or, where a rule had to choose, on record.
    fn compare(&self) {
        for (session, peer) in self.peers.iter().enumerate() {
            let ours = self.object(session);
            for (name, value) in peer.members() {
                let kept = ours.get(&name).is_some_and(|ours| *ours == json(&value));
                let lost = self.lost.contains(&(format!("/{name}"), value.clone()));
                assert!(ours.contains_key(&name), "member {name} in session {session}: {ours:?}");
                assert!(kept || lost, "{name} = {value} in session {session}: {ours:?}");
            }
            let ours: BTreeSet<String> =
                self.items(session).iter().filter_map(Json::as_text).map(str::to_owned).collect();
            let theirs: BTreeSet<String> = peer.items().into_iter().collect();
            assert_eq!(ours, theirs, "the set of session {session}");
            let ours: BTreeSet<String> = self.words(session).into_iter().collect();
            let theirs: BTreeSet<String> = peer.words().into_iter().collect();
            assert!(ours.is_superset(&theirs), "session {session}: {ours:?} {theirs:?}");
        }
    }
}

fn path(path: &[sync::Step]) -> String {
    path.iter().map(ToString::to_string).collect()
}

proptest! {
    #![proptest_config(cases(150))]

    #[test]
    fn nothing_that_a_public_library_keeps_is_lost(
        (sessions, steps) in (2..=4_usize).prop_flat_map(|sessions| (Just(sessions), steps(sessions))),
        at_once in any::<bool>(),
    ) {
        let mut pair = Pair::new(sessions, at_once);
        for step in &steps {
            pair.step(step);
        }
        pair.settle();
        pair.compare();
    }
}

/// The same writes one by one: session 1 puts back an item that it took out, and session 0, which knows of neither, takes it out.
#[test]
fn an_item_that_is_put_back_is_a_new_one_if_its_removal_was_taken_in() {
    for at_once in [true, false] {
        let mut pair = Pair::new(2, at_once);
        pair.step(&Step::Add { session: 1, item: 2 });
        pair.sync(1, 0);
        pair.step(&Step::Take { session: 1, at: 0 });
        pair.step(&Step::Add { session: 1, item: 2 });
        pair.step(&Step::Take { session: 0, at: 0 });
        pair.settle();
        pair.compare();
        let expected = if at_once { vec![json("\"i2\"")] } else { vec![] };
        assert_eq!((pair.items(0), pair.items(1)), (expected.clone(), expected), "at once: {at_once}");
    }
}

/// The library keeps one of two concurrent values of a member; ours keeps the other one as well, on record.
#[test]
fn of_two_values_the_library_keeps_one_and_ours_both() {
    let mut pair = Pair::new(2, false);
    pair.step(&Step::Set { session: 0, member: 0, value: 1 });
    pair.step(&Step::Set { session: 1, member: 0, value: 2 });
    pair.settle();
    pair.compare();
    assert_eq!(pair.peers[0].members().len(), 1);
    assert_eq!(pair.object(0)["m0"], json("2"));
    assert_eq!(pair.lost, BTreeSet::from([("/m0".to_owned(), "1".to_owned())]));
}

/// Objects that two sessions put at the same member are united here; the library keeps one of them.
#[test]
fn objects_created_concurrently_are_united() {
    let mut pair = Pair::new(2, false);
    for (session, name) in [(0, "a"), (1, "b")] {
        pair.world.put(session, MAP, &format!("{{\"m\":{{\"{name}\":1}}}}"));
        let peer = &pair.peers[session];
        let mut txn = peer.doc.transact_mut();
        peer.map.insert(&mut txn, "m", yrs::MapPrelim::from([(name.to_owned(), 1.0)]));
    }
    pair.members = vec![pair.object(0), pair.object(1)];
    pair.settle();
    assert_eq!(pair.world.value(0, MAP), Some(json(r#"{"m":{"a":1,"b":1}}"#)));
    let peer = &pair.peers[0];
    let txn = peer.doc.transact();
    let Some(Out::YMap(inner)) = peer.map.get(&txn, "m") else { panic!("no map") };
    assert_eq!(inner.len(&txn), 1);
}
