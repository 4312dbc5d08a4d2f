//! Recorded dialogues whose slots two sessions fill between them: synced, both hold the state that the dialogue ends with.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;

use flate2::read::GzDecoder;
use serde_json::Value;
use support::{World, json};
use sync::{Cause, Json, Merging};

/// Outside the repository: the data set is not part of it.
const DATA: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../../shared/data/sgd/dialogues.jsonl.gz");

type Slots = BTreeMap<String, Json>;

/// The slots of each service as a turn leaves them, turn by turn.
fn frames(dialogue: &Value) -> Vec<(String, Slots)> {
    let turns = dialogue["turns"].as_array().unwrap().iter();
    let frames = turns.flat_map(|turn| turn["frames"].as_array().into_iter().flatten());
    let slots = |frame: &Value| {
        let values = frame["slot_values"].as_object().unwrap().iter();
        values.map(|(name, value)| (name.clone(), json(&value.to_string()))).collect()
    };
    frames.map(|frame| (format!("slots.{}", frame["service"].as_str().unwrap()), slots(frame))).collect()
}

fn slots(world: &World, session: usize, key: &str) -> Slots {
    match world.value(session, key) {
        Some(Json::Object(slots)) => slots,
        _ => Slots::new(),
    }
}

/// What came about while the dialogues were synced.
#[derive(Default)]
struct Seen {
    merged: usize,
    conflicts: usize,
}

impl Seen {
    fn sync(&mut self, world: &mut World, source: usize, target: usize) {
        let plan = world.sync(source, target);
        assert_eq!((&plan.failures, &plan.disputes, &plan.stays), (&vec![], &vec![], &vec![]));
        self.merged += plan.writes.iter().filter(|write| write.effect == sync::Effect::Merged).count();
        self.conflicts += plan.conflicts.len();
        for conflict in &plan.conflicts {
            assert_eq!((conflict.cause, conflict.rule), (Cause::Edited, Merging::Preference));
            // What lost is on record with who wrote it, and it is no longer what the target shows.
            assert!(conflict.lost.iter().all(|lost| lost.value.is_some() && lost.value != conflict.kept));
            assert!(!conflict.lost.is_empty());
        }
    }

    /// The sessions take turns, two frames each, and write only the slots that a frame changes. They sync now and then.
    ///
    /// What a session puts of a key between two syncs is one write, with the time of the last put. So each put is carried before
    /// the session's next one of the key; the other session may have written meanwhile.
    fn dialogue(&mut self, number: usize, dialogue: &Value) {
        let mut world = World::new(2);
        let mut last: BTreeMap<String, Slots> = BTreeMap::new();
        let mut written: [BTreeSet<String>; 2] = Default::default();
        for (at, (key, new)) in frames(dialogue).into_iter().enumerate() {
            let session = (at / 2 + number) % 2;
            let old = last.entry(key.clone()).or_default();
            let changed: Slots =
                new.iter().filter(|(name, value)| old.get(*name) != Some(*value)).map(own).collect();
            assert!(old.keys().all(|name| new.contains_key(name)), "no slot is ever taken back");
            *old = new;
            let shown = slots(&world, session, &key);
            // Who puts what it holds already, writes nothing. So it has to know that another has changed it.
            if changed.iter().any(|(name, value)| shown.get(name) == Some(value)) {
                self.sync(&mut world, 1 - session, session);
            }
            if !changed.is_empty() {
                if !written[session].insert(key.clone()) {
                    self.sync(&mut world, session, 1 - session);
                    written[session] = BTreeSet::from([key.clone()]);
                }
                let mut put = slots(&world, session, &key);
                put.extend(changed);
                world.put(session, &key, &Json::Object(put).to_string());
            }
            if (at + number) % 5 == 4 {
                self.sync(&mut world, session, 1 - session);
                written[session].clear();
            }
        }
        self.sync(&mut world, 0, 1);
        self.sync(&mut world, 1, 0);
        for (key, expected) in &last {
            for session in [0, 1] {
                assert_eq!(&slots(&world, session, key), expected, "{}, {key}", dialogue["dialogue_id"]);
            }
            assert_eq!(world.state(0, key), world.state(1, key));
        }
    }
}

fn own((name, value): (&String, &Json)) -> (String, Json) {
    (name.clone(), value.clone())
}

#[test]
fn two_sessions_that_fill_the_slots_of_a_dialogue_end_with_its_state() {
    let Ok(file) = File::open(DATA) else {
        let reason = format!("skipped: {} is not there", Path::new(DATA).display());
        writeln!(std::io::stderr(), "{reason}").unwrap();
        return;
    };
    let mut seen = Seen::default();
    let mut count = 0;
    for (number, line) in BufReader::new(GzDecoder::new(file)).lines().enumerate() {
        seen.dialogue(number, &serde_json::from_str(&line.unwrap()).unwrap());
        count = number + 1;
    }
    assert!(count > 1_000, "{count} dialogues");
    // The sessions did write at once, other slots and the same ones.
    assert!(seen.merged > count / 2 && seen.conflicts > count / 20, "{} {}", seen.merged, seen.conflicts);
}
