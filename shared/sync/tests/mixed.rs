//! What holds for histories in which keys are private, public, sensitive, of agents in any tier, or expire, and syncs have filters.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use std::collections::BTreeMap;

use chrono::DateTime;
use contract::{AccessLevel, MemoryTier};
use proptest::prelude::*;
use support::{World, cases, edited, key, shared};
use sync::{Applied, Attributes, Cell, Filter, Json, Key, KeyState, Memory, Plan, Scope, Undo};

/// One thing that happens.
#[derive(Clone, Copy, Debug)]
enum Happening {
    /// A session changes a key a little, by a number that says how.
    Write { session: usize, slot: usize, how: u64 },
    /// A session removes a key.
    Remove { session: usize, slot: usize },
    /// One session is synced into another, under a filter, with the scope for private keys or without.
    Sync { source: usize, target: usize, filter: usize, private: bool },
}

const SLOTS: usize = 8;
const EXPIRING: &str = "old";
const SENSITIVE: &str = "pin";

/// What sessions write: keys, each with attributes that stay the same.
fn slots() -> [(Key, Attributes); SLOTS] {
    let level = |access_level| Attributes { access_level, ..Attributes::default() };
    let agent = |tier, name: &str| Key::Agent { agent: "planner".into(), tier, name: name.into() };
    let of_agent = Attributes { context_type: None, ..Attributes::default() };
    // With the eighth write of a world, so that it crosses at first and stays later.
    let soon = DateTime::from_timestamp(1_700_000_000, 8_000_000);
    [
        (key("count.visits"), shared()),
        (key("plain"), level(AccessLevel::Public)),
        (key("mine"), level(AccessLevel::Private)),
        (key(SENSITIVE), Attributes { sensitive: true, ..shared() }),
        (key(EXPIRING), Attributes { expires_at: soon, ..shared() }),
        (agent(MemoryTier::Private, "plan"), of_agent.clone()),
        (agent(MemoryTier::Shared, "set.tags"), of_agent.clone()),
        (agent(MemoryTier::Consensus, "answer"), of_agent),
    ]
}

const FILTERS: usize = 5;

fn filters() -> [Filter; FILTERS] {
    let all = Filter::default;
    [
        all(),
        Filter { keys: ["mine", "plan", EXPIRING].map(str::to_owned).into(), ..all() },
        Filter { prefixes: ["count.", "p"].map(str::to_owned).into(), ..all() },
        Filter { access_levels: vec![AccessLevel::Shared, AccessLevel::Private], ..all() },
        Filter { tiers: vec![MemoryTier::Shared, MemoryTier::Private], ..all() },
    ]
}

/// Two to four sessions, and what happens to them.
fn any_history(length: usize) -> impl Strategy<Value = (usize, Vec<Happening>)> {
    (2..=4_usize).prop_flat_map(move |sessions| {
        let write = (0..sessions, 0..SLOTS, any::<u64>()).prop_map(|(session, slot, how)| Happening::Write {
            session,
            slot,
            how,
        });
        let remove = (0..sessions, 0..SLOTS).prop_map(|(session, slot)| Happening::Remove { session, slot });
        let sync = any_sync(sessions);
        let history = proptest::collection::vec(prop_oneof![6 => write, 1 => remove, 4 => sync], 1..length);
        (Just(sessions), history)
    })
}

fn any_sync(sessions: usize) -> impl Strategy<Value = Happening> {
    let pair =
        (0..sessions, 1..sessions).prop_map(move |(source, further)| (source, (source + further) % sessions));
    (pair, 0..FILTERS, any::<bool>()).prop_map(|((source, target), filter, private)| Happening::Sync {
        source,
        target,
        filter,
        private,
    })
}

fn happen(world: &mut World, happening: Happening) -> Option<Plan> {
    match happening {
        Happening::Write { session, slot, how } => {
            let (key, attributes) = slots()[slot].clone();
            let old = world.memory(session).get(&key).and_then(|cell| cell.value.clone());
            let value = edited(key.name(), old, how);
            world.write_key(session, key, Some(value), attributes);
            None
        }
        Happening::Remove { session, slot } => {
            let (key, attributes) = slots()[slot].clone();
            if world.memory(session).get(&key).is_some_and(|cell| cell.value.is_some()) {
                world.write_key(session, key, None, attributes);
            }
            None
        }
        Happening::Sync { source, target, filter, private } => {
            let plan = world.plan_as(source, target, &filters()[filter], Scope { private });
            world.apply(source, target, &plan);
            Some(plan)
        }
    }
}

fn happened((sessions, history): (usize, Vec<Happening>)) -> World {
    let mut world = World::new(sessions);
    for happening in history {
        happen(&mut world, happening);
    }
    world
}

fn is_private(key: &Key, attributes: &Attributes) -> bool {
    match key {
        Key::Context(_) => attributes.access_level == AccessLevel::Private,
        Key::Agent { tier, .. } => *tier == MemoryTier::Private,
    }
}

/// Syncs all pairs, private keys with the others, until nothing is written any more.
fn settle(world: &mut World) {
    let sessions = world.names.len();
    for _ in 0..=2 * sessions {
        let mut written = 0;
        for (source, further) in
            (0..sessions).flat_map(|source| (1..sessions).map(move |further| (source, further)))
        {
            let sync =
                Happening::Sync { source, target: (source + further) % sessions, filter: 0, private: true };
            written += happen(world, sync).map_or(0, |plan| plan.writes.len());
        }
        if written == 0 {
            return;
        }
    }
    panic!("the sessions do not come to rest");
}

fn state(memory: &Memory, key: &Key) -> KeyState {
    memory.get(key).and_then(|cell| cell.state.clone()).unwrap_or_default()
}

fn value(memory: &Memory, key: &Key) -> Option<Json> {
    memory.get(key).and_then(|cell| cell.value.clone())
}

proptest! {
    #![proptest_config(cases(100))]

    #[test]
    fn what_is_written_was_asked_for_and_may_cross((sessions, history) in any_history(40)) {
        let (mut world, filters) = (World::new(sessions), filters());
        for happening in history {
            let before = world.clone();
            let plan = happen(&mut world, happening);
            let (Some(plan), Happening::Sync { source, filter, private, .. }) = (plan, happening) else { continue };
            let (filter, memory) = (&filters[filter], &before.memories[&before.names[source]]);
            for write in &plan.writes {
                let cell = &memory[&write.key];
                let expires_at = cell.attributes.expires_at.filter(|_| cell.value.is_some());
                prop_assert!(filter.matches(&write.key, cell), "{:?}", write.key);
                prop_assert!(private || !is_private(&write.key, &cell.attributes), "{:?}", write.key);
                prop_assert!(expires_at.is_none_or(|at| at > before.now), "{:?}", write.key);
            }
            let asked = memory.iter().filter(|(key, cell)| filter.matches(key, cell)).count();
            let seen = plan.writes.len() + plan.unchanged + plan.stays.len() + plan.failures.len();
            prop_assert_eq!((seen, plan.left), (asked, 0));
        }
    }

    #[test]
    fn without_the_scope_a_private_key_is_what_its_own_session_wrote((sessions, history) in any_history(40)) {
        let mut world = World::new(sessions);
        let mut own: BTreeMap<(usize, usize), Option<Json>> = BTreeMap::new();
        for happening in history {
            match happening {
                Happening::Sync { source, target, filter, .. } => {
                    happen(&mut world, Happening::Sync { source, target, filter, private: false });
                }
                Happening::Write { session, slot, .. } | Happening::Remove { session, slot } => {
                    happen(&mut world, happening);
                    own.insert((session, slot), value(world.memory(session), &slots()[slot].0));
                }
            }
        }
        for (slot, (key, attributes)) in slots().into_iter().enumerate() {
            for session in (0..sessions).filter(|_| is_private(&key, &attributes)) {
                let memory = &world.memories[&world.names[session]];
                prop_assert_eq!(value(memory, &key), own.get(&(session, slot)).cloned().flatten());
                prop_assert_eq!(state(memory, &key), KeyState::default(), "{:?} was synced", key);
            }
        }
    }

    #[test]
    fn what_is_sensitive_stays_so_and_is_on_record_as_such((sessions, history) in any_history(40)) {
        let mut world = World::new(sessions);
        for happening in history {
            let Some(plan) = happen(&mut world, happening) else { continue };
            let is_marked = |conflict: &sync::Conflict| conflict.sensitive || conflict.key != key(SENSITIVE);
            prop_assert!(plan.conflicts.iter().all(is_marked), "{:#?}", plan.conflicts);
            let written = plan.writes.iter().filter(|write| write.key == key(SENSITIVE));
            for after in written.map(|write| &write.after).filter(|after| after.value.is_some()) {
                prop_assert!(after.attributes.sensitive);
            }
        }
    }

    #[test]
    fn a_sync_that_is_repeated_writes_nothing((sessions, history) in any_history(40)) {
        let mut world = World::new(sessions);
        for happening in history {
            if happen(&mut world, happening).is_some() {
                let again = happen(&mut world, happening).unwrap();
                prop_assert!(again.is_empty() && again.kept.is_empty() && again.conflicts.is_empty(), "{again:#?}");
                prop_assert!(again.disputes.is_empty());
            }
        }
    }

    #[test]
    fn sessions_that_have_seen_the_same_hold_the_same(history in any_history(40)) {
        let mut world = happened(history);
        settle(&mut world);
        let first = &world.memories[&world.names[0]];
        for (key, _) in slots().into_iter().filter(|(key, _)| key.name() != EXPIRING) {
            // Each session keeps its own of what is never merged.
            let is_atomic = matches!(key, Key::Agent { tier: MemoryTier::Consensus, .. });
            for memory in world.memories.values() {
                prop_assert_eq!(state(memory, &key), state(first, &key), "{:?}", key);
                prop_assert!(is_atomic || value(memory, &key) == value(first, &key), "{key:?}");
            }
        }
    }

    #[test]
    fn what_a_sync_did_is_taken_back(
        (history, sync) in any_history(40).prop_flat_map(|history| {
            let sync = any_sync(history.0);
            (Just(history), sync)
        }),
    ) {
        let mut world = happened(history);
        let Happening::Sync { target, .. } = sync else { unreachable!("{sync:?}") };
        let before = world.memory(target).clone();
        let plan = happen(&mut world, sync).unwrap();
        let after = world.memory(target).clone();
        let applied: Vec<Applied> = plan.writes.iter().map(|write| Applied::of(write).unwrap()).collect();
        let undo = Undo::plan(&world.names[target], &applied, &after, &[]).unwrap();
        prop_assert_eq!(&undo.dependents, &[]);
        undo.apply(world.memory(target));
        let seen = |memory: &Memory| -> BTreeMap<_, _> {
            memory.iter().map(|(key, cell)| (key.clone(), Cell { state: None, ..cell.clone() })).collect()
        };
        prop_assert_eq!(seen(world.memory(target)), seen(&before));
        // And done again, it does the same again.
        happen(&mut world, sync);
        prop_assert_eq!(world.memory(target), &after);
    }
}
