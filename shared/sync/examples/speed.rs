//! How long the arithmetic of a sync takes: `cargo run --release -p sync --example speed`.

use std::time::Instant;

use chrono::{DateTime, Utc};
use contract::AccessLevel;
use sync::{Attributes, Cell, Filter, Json, Key, Memory, Rules, Scope, Session, Sync};

const KEYS: usize = 100;
const ROUNDS: u32 = 200;

fn value(round: u32, side: &str) -> Json {
    let member = |name: &str, value: String| (name.to_owned(), Json::Text(value));
    let members = (0..8).map(|at| member(&format!("member{at}"), format!("value {at}")));
    let own = member(side, format!("round {round}"));
    Json::Object(members.chain([own]).collect())
}

fn write(memory: &mut Memory, round: u32, side: &str, at: DateTime<Utc>) {
    let attributes = Attributes { access_level: AccessLevel::Shared, ..Attributes::default() };
    for number in 0..KEYS {
        let key = Key::Context(format!("key{number}"));
        match memory.get_mut(&key) {
            Some(cell) => cell.write(Some(value(round, side)), attributes.clone(), at),
            None => drop(memory.insert(key, Cell::new(value(round, side), attributes.clone(), at))),
        }
    }
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let (rules, filter) = (Rules::current()?, Filter::default());
    let (a, b): (Session, Session) = ("session-a".into(), "session-b".into());
    let now = DateTime::from_timestamp(1_700_000_000, 0).unwrap_or_default();
    let sync = |source, target| Sync {
        source,
        target,
        filter: &filter,
        scope: Scope::default(),
        now,
        rules: &rules,
    };
    let (there, back) = (sync(&a, &b), sync(&b, &a));
    let mut spent = [std::time::Duration::ZERO; 5];
    let mut bytes = 0;
    for round in 0..ROUNDS {
        let (mut source, mut target) = (Memory::new(), Memory::new());
        let mut step = |at: usize, sync: &Sync<'_>, source: &mut Memory, target: &mut Memory| {
            let start = Instant::now();
            let plan = sync.plan(source, target);
            spent[at] += start.elapsed();
            plan.apply(source, target);
            plan.writes.len()
        };
        write(&mut source, round, "a", now);
        assert_eq!(step(0, &there, &mut source, &mut target), KEYS);
        write(&mut source, round + 1, "a", now);
        assert_eq!(step(1, &there, &mut source, &mut target), KEYS);
        write(&mut source, round + 2, "a", now);
        write(&mut target, round + 2, "b", now);
        assert_eq!(step(2, &there, &mut source, &mut target), KEYS);
        assert_eq!(step(3, &back, &mut target, &mut source), KEYS);
        assert_eq!(step(4, &there, &mut source, &mut target), 0);
        let state = |cell: &Cell| serde_json::to_string(&cell.state).map(|text| text.len());
        bytes = target.values().map(state).sum::<Result<usize, _>>()? / KEYS;
    }
    for (what, spent) in ["created", "fast-forward", "merged", "back", "unchanged"].iter().zip(spent) {
        println!("{what}: {:.1} µs a key", spent.as_secs_f64() * 1e6 / f64::from(ROUNDS) / KEYS as f64);
    }
    println!("state after a merge: {bytes} bytes; value: {} bytes", value(0, "a").to_string().len());
    Ok(())
}
