//! What holds for all histories. `support::cases` says where failures are kept.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;
use support::{Event, KEYS, World, any_history, cases, history, key};
use sync::{
    Applied, Cell, Filter, Holder, Json, KeyState, Memory, Relation, Scope, Sync, Undo, forgettable, round,
};

/// All states of a key that came about.
fn states(world: &World, name: &str) -> Vec<KeyState> {
    (0..world.names.len()).map(|session| world.state(session, name)).collect()
}

/// The facts of a session are its own; everything else is the same everywhere.
fn assert_converged(world: &World) {
    for name in KEYS {
        let first = world.state(0, name);
        for session in 1..world.names.len() {
            assert_eq!(world.state(session, name), first, "{name} in session {session}");
            if !name.starts_with("fact.") {
                assert_eq!(world.value(session, name), world.value(0, name), "{name} in session {session}");
            }
        }
    }
}

/// A session's own writes since its last sync, taken in.
fn absorbed(world: &World, memory: &Memory, session: usize) -> Memory {
    let take_in = |(key, cell): (&sync::Key, &Cell)| {
        let state = cell.state.clone().unwrap_or_default();
        let state = state.absorb(&world.names[session], cell, key, &world.rules);
        (key.clone(), Cell { state: Some(state), ..cell.clone() })
    };
    memory.iter().map(take_in).collect()
}

proptest! {
    #![proptest_config(cases(100))]

    #[test]
    fn the_join_is_commutative_associative_and_idempotent((sessions, events) in any_history(30), erased in any::<bool>()) {
        let mut world = World::new(sessions);
        world.all(&events);
        for name in KEYS {
            let mut states = states(&world, name);
            if erased {
                states[0].erase();
            }
            states.push(KeyState::default());
            for a in &states {
                prop_assert_eq!(&a.join(a), a);
                for b in &states {
                    let joined = a.join(b);
                    prop_assert_eq!(&joined, &b.join(a));
                    prop_assert_eq!(&joined.join(b), &joined);
                    prop_assert!(joined.vector().covers(a.vector()) && joined.vector().covers(b.vector()));
                    for c in &states {
                        prop_assert_eq!(joined.join(c), a.join(&b.join(c)));
                    }
                }
            }
        }
    }

    #[test]
    fn a_dominated_state_is_replaced_and_a_dominating_one_stays((sessions, events) in any_history(30)) {
        let mut world = World::new(sessions);
        world.all(&events);
        for name in KEYS {
            let states = states(&world, name);
            for (a, b) in states.iter().flat_map(|a| states.iter().map(move |b| (a, b))) {
                match a.relation(b) {
                    Relation::Equal => prop_assert_eq!(a, b),
                    Relation::Dominated => prop_assert_eq!(&a.join(b), b),
                    Relation::Dominating => prop_assert_eq!(&a.join(b), a),
                    Relation::Concurrent => prop_assert!(a.join(b) != *a && a.join(b) != *b),
                }
            }
        }
    }

    #[test]
    fn sessions_that_have_seen_the_same_hold_the_same((sessions, events) in any_history(40)) {
        let mut world = World::new(sessions);
        world.all(&events);
        world.settle();
        assert_converged(&world);
    }

    #[test]
    fn the_way_that_writes_take_has_no_influence(
        (sessions, events, pairs) in (2..=4_usize).prop_flat_map(|sessions| {
            let pair = (0..sessions, 1..sessions).prop_map(move |(a, b)| (a, (a + b) % sessions));
            (Just(sessions), history(sessions, 30), proptest::collection::vec(pair, 0..12))
        }),
    ) {
        let mut one = World::new(sessions);
        one.all(&events);
        let mut other = one.clone();
        for (source, target) in pairs {
            other.sync(source, target);
        }
        one.settle();
        other.settle();
        prop_assert_eq!(&one.memories, &other.memories);
    }

    #[test]
    fn a_sync_that_is_repeated_writes_nothing((sessions, events) in any_history(40)) {
        let (mut once, mut twice) = (World::new(sessions), World::new(sessions));
        for event in &events {
            once.happen(event);
            twice.happen(event);
            if matches!(event, Event::Sync { .. }) {
                let again = twice.happen(event).unwrap();
                prop_assert!(again.is_empty() && again.kept.is_empty() && again.conflicts.is_empty());
                prop_assert!(again.disputes.is_empty());
            }
        }
        prop_assert_eq!(once.memories, twice.memories);
    }

    #[test]
    fn the_size_of_a_batch_has_no_influence(
        (sessions, events) in any_history(20), size in 1..6_usize,
        further in proptest::collection::vec((0..4_usize, 1..4_usize), 1..12),
    ) {
        let mut world = World::new(sessions);
        world.all(&events);
        let (filter, names) = (Filter::default(), world.names.clone());
        let sync = |(source, further): &(usize, usize)| {
            let source = source % sessions;
            let target = (source + 1 + further % (sessions - 1)) % sessions;
            Sync {
                source: &names[source], target: &names[target], filter: &filter, scope: Scope::default(),
                now: world.now, rules: &world.rules,
            }
        };
        let syncs: Vec<Sync<'_>> = further.iter().map(sync).collect();
        let mut whole = world.memories.clone();
        let plans = round(&mut whole, &syncs);
        let mut parts = world.memories.clone();
        let mut of_parts = Vec::new();
        for chunk in syncs.chunks(size) {
            of_parts.extend(round(&mut parts, chunk));
            // Between rounds, everything has been in the database.
            for memory in parts.values_mut() {
                let written: Vec<_> = memory.iter().map(|entry| serde_json::to_string(&entry).unwrap()).collect();
                *memory = written.iter().map(|text| serde_json::from_str(text).unwrap()).collect();
            }
        }
        prop_assert_eq!(whole, parts);
        prop_assert_eq!(plans, of_parts);
    }

    #[test]
    fn both_directions_at_once_are_one_after_the_other((sessions, events) in any_history(30), first in any::<bool>()) {
        let mut world = World::new(sessions);
        world.all(&events);
        let mut after = world.clone();
        after.sync(0, 1);
        after.sync(1, 0);
        let (there, back) = (world.plan(0, 1), world.plan(1, 0));
        if first {
            world.apply(0, 1, &there);
            world.apply(1, 0, &back);
        } else {
            world.apply(1, 0, &back);
            world.apply(0, 1, &there);
        }
        for (session, name) in [0, 1].into_iter().flat_map(|session| KEYS.map(|name| (session, name))) {
            let Some(cell) = world.cell(session, name) else { continue };
            // What is shown is what the state says, unless the session has written since.
            if let Some(state) = cell.state.as_ref().filter(|state| state.vector().has(&world.names[session], cell.writes)) {
                let says = state.value(&key(name), &world.names[session], &world.rules).unwrap();
                prop_assert_eq!(&cell.value, &says, "{} in session {}", name, session);
            }
        }
        world.settle();
        after.settle();
        prop_assert_eq!(world.memories, after.memories);
    }

    #[test]
    fn a_chain_and_a_cycle_come_to_rest((sessions, events) in any_history(30)) {
        let mut world = World::new(sessions);
        // Each write is followed by one step of the cycle, as a live sync would do.
        for event in &events {
            world.happen(event);
            for source in 0..sessions {
                world.sync(source, (source + 1) % sessions);
            }
        }
        let mut rounds = 0;
        loop {
            let written: usize =
                (0..sessions).map(|source| world.sync(source, (source + 1) % sessions).writes.len()).sum();
            if written == 0 {
                break;
            }
            rounds += 1;
            prop_assert!(rounds <= 2, "the cycle does not come to rest");
        }
        assert_converged(&world);
    }

    #[test]
    fn no_key_is_lost((sessions, events) in any_history(40)) {
        let mut world = World::new(sessions);
        for event in &events {
            let Event::Sync { source, target } = event else {
                world.happen(event);
                continue;
            };
            let before = world.clone();
            let plan = world.happen(event).unwrap();
            let failed: BTreeSet<&str> = plan.failures.iter().map(|failure| failure.key.name()).collect();
            for name in KEYS.iter().filter(|name| !failed.contains(*name)) {
                let (ours, theirs) = (before.value(*target, name), before.value(*source, name));
                let after = world.value(*target, name);
                if before.cell(*target, name).is_none() {
                    // Of a disputed fact, who wrote none sees the earliest.
                    let same = after == theirs || (name.starts_with("fact.") && after.is_some() && theirs.is_some());
                    prop_assert!(same, "{name} was not there");
                } else if before.cell(*source, name).is_none() {
                    prop_assert_eq!(&after, &ours, "{} has nothing to do with it", name);
                } else if ours.is_some() && theirs.is_some() {
                    prop_assert!(after.is_some(), "{} is gone, and nobody removed it", name);
                } else if ours.is_none() && theirs.is_none() {
                    prop_assert_eq!(after, None, "{} has come from nowhere", name);
                }
            }
        }
    }

    #[test]
    fn what_a_sync_did_is_taken_back((sessions, events) in any_history(40), source in 0..4_usize, further in 1..4_usize) {
        let mut world = World::new(sessions);
        world.all(&events);
        let source = source % sessions;
        let target = (source + 1 + further % (sessions - 1)) % sessions;
        let before = world.memory(target).clone();
        let plan = world.sync(source, target);
        let after = world.memory(target).clone();
        let applied: Vec<Applied> = plan.writes.iter().map(|write| Applied::of(write).unwrap()).collect();
        let kept = serde_json::to_string(&applied).unwrap();
        let applied: Vec<Applied> = serde_json::from_str(&kept).unwrap();
        let undo = Undo::plan(&world.names[target], &applied, &after, &[]).unwrap();
        prop_assert_eq!(&undo.dependents, &[]);
        undo.apply(world.memory(target));
        let undone = world.memory(target).clone();
        let seen = |memory: &Memory| -> BTreeMap<_, _> {
            memory.iter().map(|(key, cell)| (key.clone(), Cell { state: None, ..cell.clone() })).collect()
        };
        prop_assert_eq!(seen(&undone), seen(&before));
        prop_assert_eq!(absorbed(&world, &undone, target), absorbed(&world, &before, target));
        // And done again, it does the same again.
        world.sync(source, target);
        prop_assert_eq!(world.memory(target), &after);
    }

    #[test]
    fn a_removal_needs_no_value_of_the_state((sessions, events) in any_history(30)) {
        let mut world = World::new(sessions);
        world.all(&events);
        for (session, name) in (0..sessions).flat_map(|session| KEYS.map(|name| (session, name))) {
            if world.value(session, name).is_none() {
                continue;
            }
            world.remove(session, name);
            let cell = world.cell(session, name).unwrap();
            let state = cell.state.clone().unwrap_or_default();
            let take_in = |state: &KeyState| state.absorb(&world.names[session], cell, &key(name), &world.rules);
            let stripped = state.clone().without_values();
            prop_assert!(!serde_json::to_string(&stripped).unwrap().contains("\"v\""));
            prop_assert_eq!(take_in(&stripped), take_in(&state));
        }
    }

    #[test]
    fn a_removal_that_all_have_seen_is_forgotten_for_good((sessions, events) in any_history(40)) {
        let mut world = World::new(sessions);
        let mut forgotten: BTreeSet<&str> = BTreeSet::new();
        for event in &events {
            if let Event::Edit { key, .. } = event {
                forgotten.remove(KEYS[*key]);
            }
            world.happen(event);
            for name in KEYS {
                let holders: Vec<_> = (0..sessions)
                    .filter_map(|session| world.cell(session, name).map(|cell| (session, cell)))
                    .map(|(session, cell)| Holder { session: &world.names[session], cell, ended: false })
                    .collect();
                if forgettable(&holders) {
                    // A session that no sync ever gave the key may have one of its own.
                    if holders.iter().all(|holder| holder.cell.value.is_none()) {
                        forgotten.insert(name);
                    }
                    for memory in world.memories.values_mut() {
                        if let Some(cell) = memory.get_mut(&key(name)) {
                            cell.state = None;
                        }
                    }
                }
            }
            for name in &forgotten {
                for session in 0..sessions {
                    prop_assert_eq!(world.value(session, name), None, "{} came back", name);
                }
            }
        }
    }

    #[test]
    fn a_counter_is_the_sum_of_all_that_was_added((sessions, events) in any_history(50)) {
        let mut world = World::new(sessions);
        let mut expected = 0;
        for event in &events {
            match event {
                Event::Edit { session, how, .. } => {
                    let number = |world: &World| world.value(*session, KEYS[0]).map_or(0, |value| value.as_integer().unwrap());
                    let before = number(&world);
                    world.happen(&Event::Edit { session: *session, key: 0, how: *how });
                    expected += number(&world) - before;
                }
                Event::Remove { .. } => {}
                Event::Sync { .. } => drop(world.happen(event)),
            }
        }
        world.settle();
        for session in 0..sessions {
            prop_assert_eq!(world.value(session, KEYS[0]).map_or(0, |value| value.as_integer().unwrap()), expected);
        }
    }

    #[test]
    fn a_set_holds_what_was_added_and_not_removed_by_who_knew((sessions, events) in any_history(50)) {
        let mut world = World::new(sessions);
        // The textbook set: each addition has a tag, a removal takes the tags that its session has seen. What a session wrote
        // between two syncs that carry the key is one write: an item that is removed and added again in between has stayed.
        let mut added: Vec<BTreeSet<(String, usize)>> = vec![BTreeSet::new(); sessions];
        let mut removed = added.clone();
        let items = |world: &World, session| -> BTreeSet<String> {
            match world.value(session, KEYS[1]) {
                Some(Json::List(items)) => items.iter().map(ToString::to_string).collect(),
                _ => BTreeSet::new(),
            }
        };
        let events: Vec<Event> = events.into_iter().filter(|event| !matches!(event, Event::Remove { .. })).collect();
        for (tag, event) in events.iter().enumerate() {
            let (source, target) = match event {
                Event::Edit { session, how, .. } => {
                    world.happen(&Event::Edit { session: *session, key: 1, how: *how });
                    continue;
                }
                Event::Remove { .. } => continue,
                Event::Sync { source, target } => (*source, *target),
            };
            let plan = world.plan(source, target);
            if !plan.writes.iter().any(|write| write.key == key(KEYS[1])) {
                world.apply(source, target, &plan);
                continue;
            }
            for session in [source, target] {
                let now = items(&world, session);
                let gone: Vec<_> = added[session].iter().filter(|(item, _)| !now.contains(item)).cloned().collect();
                removed[session].extend(gone);
                let known: BTreeSet<String> =
                    added[session].difference(&removed[session]).map(|(item, _)| item.clone()).collect();
                added[session].extend(now.difference(&known).map(|item| (item.clone(), tag * sessions + session)));
            }
            world.apply(source, target, &plan);
            let (more, fewer) = (added[source].clone(), removed[source].clone());
            added[target].extend(more);
            removed[target].extend(fewer);
            for session in [source, target] {
                let expected: BTreeSet<String> =
                    added[session].difference(&removed[session]).map(|(item, _)| item.clone()).collect();
                prop_assert_eq!(items(&world, session), expected);
            }
        }
    }
}
