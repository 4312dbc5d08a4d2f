//! What a sync carries, what it leaves, how it is taken back, and what it forgets.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use std::collections::{BTreeMap, BTreeSet};

use contract::AccessLevel;
use support::{World, json, key, shared};
use sync::{
    Applied, Attributes, Cause, Dependent, Effect, Filter, Holder, Json, KeyState, Later, Rules, Scope,
    Stays, Sync, Undo, Unmergeable, forgettable, round,
};

fn level(access_level: AccessLevel) -> Attributes {
    Attributes { access_level, ..Attributes::default() }
}

#[test]
fn a_sync_creates_fast_forwards_and_merges() {
    let mut world = World::new(2);
    world.put(0, "k", r#"{"a":1}"#);
    assert_eq!(world.sync(0, 1).writes[0].effect, Effect::Created);
    // Whichever way it came, the cell is the same.
    let cell = world.cell(1, "k").unwrap();
    assert_eq!((cell.writes, cell.written_at), (0, chrono::DateTime::UNIX_EPOCH));
    world.put(0, "k", r#"{"a":2}"#);
    assert_eq!(world.sync(0, 1).writes[0].effect, Effect::FastForward);
    world.put(0, "k", r#"{"a":3}"#);
    world.put(1, "k", r#"{"a":2,"b":1}"#);
    assert_eq!(world.sync(0, 1).writes[0].effect, Effect::Merged);
    let plan = world.sync(0, 1);
    assert_eq!((plan.unchanged, plan.writes.len()), (1, 0));
    assert_eq!(world.state(1, "k").vector().iter().map(|(_, count)| count).collect::<Vec<_>>(), [3, 1]);
}

#[test]
fn what_left_a_session_is_kept_there_as_the_next_ancestor() {
    let mut world = World::new(2);
    world.put(0, "k", r#"{"a":1,"b":1}"#);
    let plan = world.plan(0, 1);
    assert_eq!(plan.kept.len(), 1);
    world.apply(0, 1, &plan);
    assert_eq!(world.state(0, "k"), world.state(1, "k"));
    // So the next write of either is known by its parts.
    world.put(0, "k", r#"{"a":1,"b":2}"#);
    world.put(1, "k", r#"{"a":2,"b":1}"#);
    assert_eq!(world.sync(0, 1).conflicts, []);
    assert_eq!(world.value(1, "k"), Some(json(r#"{"a":2,"b":2}"#)));
}

#[test]
fn private_stays_unless_the_scope_allows_it() {
    let mut world = World::new(2);
    world.write_as(0, "mine", Some(json("1")), level(AccessLevel::Private));
    world.write_as(0, "ours", Some(json("2")), level(AccessLevel::Shared));
    world.write_as(0, "all", Some(json("3")), level(AccessLevel::Public));
    let expired = Attributes { expires_at: Some(world.now), ..shared() };
    world.write_as(0, "old", Some(json("4")), expired);
    let plan = world.plan(0, 1);
    assert_eq!(plan.stays, [(key("mine"), Stays::Private), (key("old"), Stays::Expired)]);
    assert_eq!(plan.writes.iter().map(|write| write.key.name()).collect::<Vec<_>>(), ["all", "ours"]);
    let plan = world.plan_as(0, 1, &Filter::default(), Scope { private: true });
    assert_eq!(plan.stays, [(key("old"), Stays::Expired)]);
    assert_eq!(plan.writes.len(), 3);
    let filter = Filter { keys: vec!["nothing".into()], ..Filter::default() };
    assert!(world.plan_as(0, 1, &filter, Scope::default()).is_empty());
}

#[test]
fn nothing_from_the_time_when_a_key_was_private_leaves_with_it() {
    let mut world = World::new(3);
    let private = level(AccessLevel::Private);
    world.write_as(0, "p", Some(json(r#"{"x":"secret1","y":1}"#)), private.clone());
    let scope = Scope { private: true };
    let plan = world.plan_as(0, 1, &Filter::default(), scope);
    world.apply(0, 1, &plan);
    world.write_as(0, "p", Some(json(r#"{"x":"secret2","y":1}"#)), private.clone());
    world.write_as(1, "p", Some(json(r#"{"x":"secret3","y":1}"#)), private);
    let plan = world.plan_as(1, 0, &Filter::default(), scope);
    world.apply(1, 0, &plan);
    assert!(serde_json::to_string(&world.state(0, "p")).unwrap().contains("secret2"));
    world.put(0, "p", r#"{"x":"open","y":1}"#);
    world.sync(0, 2);
    assert_eq!(world.value(2, "p"), Some(json(r#"{"x":"open","y":1}"#)));
    let left = serde_json::to_string(&world.memory(2).get(&key("p"))).unwrap();
    assert!(!left.contains("secret"), "{left}");
}

#[test]
fn nothing_of_an_item_that_was_removed_while_its_list_was_private_leaves_with_it() {
    let mut world = World::new(3);
    let (private, scope) = (level(AccessLevel::Private), Scope { private: true });
    let whole = Some(json(r#"[{"id":"secret"},{"id":"b"}]"#));
    world.write_as(0, "list.p", whole, private.clone());
    let plan = world.plan_as(0, 1, &Filter::default(), scope);
    world.apply(0, 1, &plan);
    world.write_as(1, "list.p", Some(json(r#"[{"id":"b"}]"#)), private);
    let plan = world.plan_as(1, 0, &Filter::default(), scope);
    world.apply(1, 0, &plan);
    assert!(
        serde_json::to_string(&world.state(0, "list.p")).unwrap().contains("secret"),
        "in the order before"
    );
    world.put(0, "list.p", r#"[{"id":"b"}]"#);
    world.sync(0, 2);
    let left = serde_json::to_string(&world.cell(2, "list.p")).unwrap();
    assert!(left.contains("b") && !left.contains("secret"), "{left}");
}

#[test]
fn nothing_of_an_encrypted_value_stays_beside_one_that_is_not() {
    let mut world = World::new(2);
    world.write_as(0, "p", Some(json("\"hidden\"")), Attributes { sensitive: true, ..shared() });
    assert!(world.sync(0, 1).writes[0].after.attributes.sensitive);
    world.put(0, "p", "\"open\"");
    world.sync(0, 1);
    assert!(!serde_json::to_string(&world.state(1, "p")).unwrap().contains("hidden"));
}

/// Opens a key in session 1 while session 0 puts another value as it did before; `strict` is what session 0 states.
fn opened_meanwhile(strict: &Attributes) -> World {
    let mut world = World::new(3);
    let scope = Scope { private: true };
    world.write_as(0, "p", Some(json("\"hidden\"")), strict.clone());
    let plan = world.plan_as(0, 1, &Filter::default(), scope);
    world.apply(0, 1, &plan);
    world.put(1, "p", "\"open\"");
    world.write_as(0, "p", Some(json("\"hidden again\"")), strict.clone());
    let plan = world.plan_as(0, 1, &Filter::default(), scope);
    assert!(plan.conflicts.iter().any(|conflict| conflict.cause == Cause::Attributes), "{plan:#?}");
    world.apply(0, 1, &plan);
    assert_eq!(world.value(1, "p"), Some(json("\"hidden again\"")));
    world
}

#[test]
fn a_value_that_is_put_as_secret_stays_so_although_another_session_opened_the_key_meanwhile() {
    let sensitive = Attributes { sensitive: true, ..shared() };
    let mut world = opened_meanwhile(&sensitive);
    let merged = world.cell(1, "p").unwrap().attributes.clone();
    assert_eq!(merged, sensitive);
    // And when the session goes on under what it sees.
    world.write_as(1, "p", Some(json("\"hidden, too\"")), merged.clone());
    world.sync(1, 2);
    assert_eq!(world.cell(2, "p").unwrap().attributes, merged);

    let world = opened_meanwhile(&level(AccessLevel::Private));
    assert_eq!(world.cell(1, "p").unwrap().attributes.access_level, AccessLevel::Private);
    assert_eq!(world.plan(1, 2).stays, [(key("p"), Stays::Private)]);
}

#[test]
fn a_record_with_what_a_session_held_encrypted_is_sensitive() {
    let mut world = World::new(3);
    world.write_as(0, "p", Some(json(r#"{"a":"hidden"}"#)), Attributes { sensitive: true, ..shared() });
    world.sync(0, 1);
    world.sync(0, 2);
    world.put(0, "p", r#"{"a":1}"#);
    world.put(2, "p", r#"{"a":2}"#);
    let plan = world.sync(2, 0);
    assert_eq!(
        (&plan.conflicts[0].base, plan.conflicts[0].sensitive),
        (&None, false),
        "opened, it has no ancestor"
    );
    // Session 1 still holds the first value.
    let plan = world.sync(0, 1);
    assert!(!plan.writes[0].after.attributes.sensitive);
    assert!(plan.conflicts.iter().any(|conflict| conflict.cause == Cause::Edited));
    assert!(plan.conflicts.iter().all(|conflict| conflict.sensitive), "{plan:#?}");
}

#[test]
fn nothing_of_a_removed_value_is_kept() {
    let mut world = World::new(2);
    world.put(0, "text.a", "\"to be removed\"");
    world.sync(0, 1);
    world.put(0, "text.a", "\"to be removed soon\"");
    world.sync(0, 1);
    world.remove(0, "text.a");
    world.sync(0, 1);
    assert_eq!(world.value(1, "text.a"), None);
    for session in [0, 1] {
        let cell = serde_json::to_string(world.cell(session, "text.a").unwrap()).unwrap();
        assert!(session == 0 || !cell.contains("removed soon"), "{cell}");
    }
    // In the source, too: its row has lost the value, and the state that is kept beside it has none.
    assert!(!serde_json::to_string(&world.state(0, "text.a")).unwrap().contains("removed"));
}

fn applied(plan: &sync::Plan) -> Vec<Applied> {
    plan.writes.iter().map(|write| Applied::of(write).unwrap()).collect()
}

fn undo(world: &World, target: usize, applied: &[Applied], later: &[Later]) -> Undo {
    let name = &world.names[target];
    Undo::plan(name, applied, &world.memories[name], later).unwrap()
}

fn later(world: &World, source: usize, target: usize, keys: &[&str]) -> Later {
    let keys: BTreeSet<_> = keys.iter().map(|name| key(name)).collect();
    Later {
        sync: "later".into(),
        source: world.names[source].clone(),
        target: world.names[target].clone(),
        keys,
    }
}

#[test]
fn undo_says_what_depends_on_it_and_restores_the_rest() {
    let mut world = World::new(3);
    for name in ["carried", "erased", "free", "gone", "synced", "touched", "written"] {
        world.put(1, name, "0");
    }
    for name in ["carried", "erased", "free", "gone", "synced", "touched", "written", "new"] {
        world.put(0, name, "1");
    }
    let plan = world.sync(0, 1);
    assert_eq!(plan.writes.len(), 8);
    world.put(1, "written", "2");
    let carried = Filter { keys: vec!["carried".into()], ..Filter::default() };
    let onward = world.plan_as(1, 2, &carried, Scope::default());
    world.apply(1, 2, &onward);
    world.put(2, "synced", "3");
    let synced = Filter { keys: vec!["synced".into()], ..Filter::default() };
    let back = world.plan_as(2, 1, &synced, Scope::default());
    world.apply(2, 1, &back);
    world.memory(1).get_mut(&key("erased")).unwrap().state.as_mut().unwrap().erase();
    world.memory(1).remove(&key("gone"));
    world.memory(1).get_mut(&key("touched")).unwrap().attributes.priority = 9;
    let later = [later(&world, 1, 2, &["carried"]), later(&world, 2, 1, &["synced"])];
    let undo = undo(&world, 1, &applied(&plan), &later);
    let sync = || "later".to_owned();
    assert_eq!(
        undo.dependents,
        [
            Dependent::Carried { key: key("carried"), sync: sync(), session: "s2".into() },
            Dependent::Erased(key("erased")),
            Dependent::Changed(key("gone")),
            Dependent::Synced { key: key("synced"), sync: sync() },
            Dependent::Changed(key("touched")),
            Dependent::Written(key("written")),
        ]
    );
    undo.apply(world.memory(1));
    assert_eq!((world.value(1, "free"), world.value(1, "new")), (Some(json("0")), None));
    assert_eq!(world.value(1, "written"), Some(json("2")));
    assert!(undo.dependents[0].to_string().contains("sync later carried it on to session \"s2\""));
}

#[test]
fn undo_of_several_syncs_goes_back_step_by_step() {
    let mut world = World::new(3);
    world.put(0, "k", r#"{"a":1}"#);
    world.put(1, "k", r#"{"b":1}"#);
    world.put(2, "k", r#"{"c":1}"#);
    let first = world.sync(1, 0);
    let second = world.sync(2, 0);
    assert_eq!(world.value(0, "k"), Some(json(r#"{"a":1,"b":1,"c":1}"#)));
    let blocked = undo(&world, 0, &applied(&first), &[later(&world, 2, 0, &["k"])]);
    assert!(matches!(blocked.dependents[0], Dependent::Synced { .. }));
    undo(&world, 0, &applied(&second), &[]).apply(world.memory(0));
    assert_eq!(world.value(0, "k"), Some(json(r#"{"a":1,"b":1}"#)));
    undo(&world, 0, &applied(&first), &[]).apply(world.memory(0));
    assert_eq!(world.value(0, "k"), Some(json(r#"{"a":1}"#)));
    // What was taken back is not known as seen: another sync brings it again.
    world.sync(1, 0);
    world.sync(2, 0);
    assert_eq!(world.value(0, "k"), Some(json(r#"{"a":1,"b":1,"c":1}"#)));
}

#[test]
fn erasure_beats_everything() {
    let mut world = World::new(3);
    world.put(0, "k", "1");
    world.sync(0, 1);
    world.sync(0, 2);
    let cell = world.memory(0).get_mut(&key("k")).unwrap();
    cell.value = None;
    cell.attributes.access_level = AccessLevel::Private;
    cell.state.as_mut().unwrap().erase();
    world.put(1, "k", "2");
    world.put(2, "k", "3");
    world.sync(1, 2);
    let plan = world.sync(0, 1);
    assert_eq!((world.value(1, "k"), plan.conflicts), (None, vec![]));
    // Nor does a later write bring it back.
    world.put(1, "k", "4");
    world.settle();
    for session in 0..3 {
        assert!(world.state(session, "k").is_erased());
    }
    assert_eq!(world.value(2, "k"), None);
    // Nor one in the session alone that was erased, before any other has the key.
    let mut world = World::new(2);
    world.put(0, "k", "1");
    world.take_in(0, "k");
    world.memory(0).get_mut(&key("k")).unwrap().state.as_mut().unwrap().erase();
    world.put(0, "k", "2");
    world.sync(0, 1);
    assert_eq!(world.value(1, "k"), None);
    assert!(world.state(1, "k").is_erased());
}

#[test]
fn a_removal_is_forgotten_when_all_have_seen_it_and_not_before() {
    let mut world = World::new(3);
    world.put(0, "k", "1");
    world.sync(0, 1);
    world.sync(1, 2);
    world.remove(0, "k");
    let may = |world: &World, ended: Option<usize>| {
        let holders: Vec<_> = (0..3)
            .filter_map(|session| Some((session, world.cell(session, "k")?)))
            .map(|(session, cell)| Holder {
                session: &world.names[session],
                cell,
                ended: ended == Some(session),
            })
            .collect();
        forgettable(&holders)
    };
    world.sync(0, 1);
    assert!(!may(&world, None), "session 2 still has the value");
    assert!(may(&world, Some(2)), "session 2 has ended, and is synced no more");
    // Forgotten too early, it comes back.
    let mut early = world.clone();
    for session in [0, 1] {
        early.memory(session).remove(&key("k"));
    }
    early.sync(2, 0);
    assert_eq!(early.value(0, "k"), Some(json("1")));
    world.sync(1, 2);
    assert!(may(&world, None));
    world.put(2, "k", "2");
    assert!(!may(&world, None), "session 2 has written it since");
    world.remove(2, "k");
    assert!(!may(&world, None), "no other session knows that of session 2");
    assert!(!forgettable(&[]));
    // Two removals that do not know of each other.
    let mut world = World::new(3);
    world.put(0, "k", "1");
    (1..3).for_each(|session| drop(world.sync(0, session)));
    world.remove(0, "k");
    world.remove(1, "k");
    world.sync(1, 2);
    world.take_in(0, "k");
    assert!(!may(&world, None), "session 0 has not seen the removal of session 1");
    world.settle();
    assert!(may(&world, None));
}

#[test]
fn a_removal_that_an_edit_lost_to_is_not_forgotten() {
    let text = include_str!("../rules.toml").replacen("\"edit-wins\"", "\"deletion-wins\"", 1);
    let mut world = World { rules: Rules::parse(&text).unwrap(), ..World::new(2) };
    world.put(0, "k", "1");
    world.sync(0, 1);
    world.remove(0, "k");
    world.put(1, "k", "2");
    world.settle();
    let may = |world: &World| {
        let holder = |session: usize| {
            let cell = world.cell(session, "k").unwrap();
            assert_eq!(cell.value, None);
            Holder { session: &world.names[session], cell, ended: false }
        };
        forgettable(&[holder(0), holder(1)])
    };
    assert!(!may(&world), "what was edited is still beside the removal");
    world.put(0, "k", "3");
    world.remove(0, "k");
    world.settle();
    assert!(may(&world));
}

#[test]
fn a_sync_writes_a_bounded_number_of_keys_and_the_next_one_goes_on() {
    let text = include_str!("../rules.toml").replacen("keys = 10000", "keys = 2", 1);
    let mut world = World { rules: Rules::parse(&text).unwrap(), ..World::new(2) };
    for name in ["a", "b", "c", "d", "e"] {
        world.put(0, name, "1");
    }
    let written: Vec<_> = (0..4)
        .map(|_| {
            let plan = world.sync(0, 1);
            (plan.writes.len(), plan.left)
        })
        .collect();
    assert_eq!(written, [(2, 3), (2, 1), (1, 0), (0, 0)]);
}

#[test]
fn limits_fail_a_key_and_not_the_sync() {
    let with = |from: &str, to: &str| {
        let text = include_str!("../rules.toml").replacen(from, to, 1);
        Rules::parse(&text).unwrap()
    };
    let deep = r#"{"a":{"b":1}}"#;
    for (from, to, what) in [
        ("depth = 64", "depth = 1", "the nesting of the value"),
        ("value_bytes = 1048576", "value_bytes = 9", "the size of the value"),
        ("state_bytes = 4194304", "state_bytes = 150", "the size of its state"),
    ] {
        let mut world = World { rules: with(from, to), ..World::new(2) };
        let fine = !what.contains("state");
        if fine {
            world.put(0, "fine", "1");
        }
        world.put(0, "k", deep);
        let plan = world.sync(0, 1);
        assert_eq!(plan.failures.len(), 1, "{what}: {plan:?}");
        assert!(
            matches!(&plan.failures[0].error, Unmergeable::Limit { what: said, .. } if said == what),
            "{plan:?}"
        );
        assert_eq!(world.value(1, "fine"), fine.then(|| json("1")));
    }
    let mut world = World { rules: with("sessions = 64", "sessions = 2"), ..World::new(3) };
    (0..3).for_each(|session| world.put(session, "k", "1"));
    world.sync(0, 1);
    assert!(matches!(&world.sync(1, 2).failures[0].error, Unmergeable::Limit { value: 3, limit: 2, .. }));
    let mut world = World { rules: with("conflicts = 256", "conflicts = 1"), ..World::new(2) };
    world.put(0, "k", r#"{"a":1,"b":1}"#);
    world.put(1, "k", r#"{"a":2,"b":2}"#);
    assert!(matches!(&world.sync(0, 1).failures[0].error, Unmergeable::Limit { value: 2, limit: 1, .. }));
    assert_eq!(world.value(1, "k"), Some(json(r#"{"a":2,"b":2}"#)));
}

#[test]
fn a_key_whose_state_could_not_be_read_again_fails_and_no_other() {
    let nested = |open: &str, close: &str, depth: usize, leaf: &str| {
        json(&format!("{}{leaf}{}", open.repeat(depth), close.repeat(depth))).to_string()
    };
    for (name, open, close, deepest) in
        [("k", r#"{"a":"#, "}", 64), ("list.k", r#"[{"id":1,"a":"#, "}]", 32), ("set.k", "[", "]", 64)]
    {
        let mut refused = Vec::new();
        for depth in 1..=deepest {
            let mut world = World::new(2);
            world.put(0, "fine", "1");
            let mut plans = Vec::new();
            for (depth, leaf) in [(depth, "1"), (depth, "2"), (1, "0")] {
                world.put(0, name, &nested(open, close, depth, leaf));
                plans.push(world.sync(0, 1));
            }
            world.put(0, name, &nested(open, close, depth, "3"));
            world.put(1, name, &nested(open, close, depth, "4"));
            plans.push(world.sync(0, 1));
            assert_eq!(world.value(1, "fine"), Some(json("1")), "{name} {depth}");
            for failure in plans.iter().flat_map(|plan| &plan.failures) {
                assert!(failure.error.to_string().contains("the nesting of its state"), "{}", failure.error);
                refused.push(depth);
            }
            for write in plans.iter().flat_map(|plan| &plan.writes) {
                for cell in write.before.iter().chain([&write.after]) {
                    let text = serde_json::to_string(cell).unwrap();
                    assert_eq!(&serde_json::from_str::<sync::Cell>(&text).unwrap(), cell, "{name} {depth}");
                }
            }
            for (_, state) in plans.iter().flat_map(|plan| &plan.kept) {
                let text = serde_json::to_string(state).unwrap();
                assert_eq!(&serde_json::from_str::<KeyState>(&text).unwrap(), state, "{name} {depth}");
            }
        }
        assert!(refused.iter().all(|depth| *depth > 16), "{name}: {refused:?}");
    }
    let mut world = World::new(2);
    world.put(0, "k", &nested(r#"{"a":"#, "}", 60, "1"));
    assert_eq!(world.sync(0, 1).failures.len(), 1, "60 nested objects");
    assert!(world.cell(1, "k").is_none());
}

#[test]
fn a_sync_of_a_session_that_was_not_read_fails_alone() {
    let mut world = World::new(2);
    world.put(0, "k", "1");
    let (filter, names, stranger) = (Filter::default(), world.names.clone(), "stranger".into());
    let sync = |source, target| Sync {
        source,
        target,
        filter: &filter,
        scope: Scope::default(),
        now: world.now,
        rules: &world.rules,
    };
    let mut memories = world.memories.clone();
    let plans = round(
        &mut memories,
        &[
            sync(&names[0], &stranger),
            sync(&stranger, &names[0]),
            sync(&names[0], &names[0]),
            sync(&names[0], &names[1]),
        ],
    );
    assert_eq!(plans.iter().map(Result::is_ok).collect::<Vec<_>>(), [false, false, false, true]);
    assert_eq!(memories[&names[1]].len(), 1);
    assert_eq!(memories.len(), 2);
}

#[test]
fn a_state_is_the_same_after_it_has_been_in_the_database() {
    let mut world = World::new(2);
    world.put(0, "k", r#"{"n":0.1234567890123456789012,"null":null,"o":{},"l":[1,[2]]}"#);
    world.put(0, "count.a", "-9223372036854775808");
    world.put(0, "set.a", r#"[{"x":1},"y",null]"#);
    world.put(0, "list.a", r#"[{"id":"a b","n":1},{"id":2}]"#);
    world.sync(0, 1);
    world.put(1, "k", r#"{"n":0.1234567890123456789013}"#);
    world.sync(1, 0);
    for (name, cell) in world.memory(0).clone() {
        let text = serde_json::to_string(&cell).unwrap();
        // As a column of type jsonb would give it back.
        let state: KeyState = serde_json::from_str(&serde_json::to_string(&cell.state).unwrap()).unwrap();
        assert_eq!(Some(&state), cell.state.as_ref(), "{name:?}");
        assert_eq!(serde_json::from_str::<sync::Cell>(&text).unwrap(), cell, "{name:?}");
    }
    assert_eq!(world.value(0, "k"), Some(json(r#"{"n":0.1234567890123456789013}"#)));
}

#[test]
fn keys_of_agents_are_synced_by_agent_and_tier() {
    use contract::MemoryTier;
    let agent = |tier| sync::Key::Agent { agent: "a".into(), tier, name: "budget".into() };
    let mut world = World::new(2);
    world.put(0, "budget", "1");
    let cell = world.cell(0, "budget").unwrap().clone();
    let memory: BTreeMap<_, _> = [MemoryTier::Private, MemoryTier::Shared, MemoryTier::Consensus]
        .into_iter()
        .map(|tier| {
            (
                agent(tier),
                sync::Cell {
                    attributes: Attributes { context_type: None, ..cell.attributes.clone() },
                    ..cell.clone()
                },
            )
        })
        .collect();
    *world.memory(0) = memory.clone();
    *world.memory(1) = memory;
    for cell in world.memory(1).values_mut() {
        cell.value = Some(Json::integer(2));
    }
    let plan = world.sync(0, 1);
    assert_eq!(plan.stays, [(agent(MemoryTier::Private), Stays::Private)]);
    assert_eq!(plan.writes.len(), 2);
    assert_eq!((plan.disputes.len(), &plan.disputes[0].key), (1, &agent(MemoryTier::Consensus)));
    assert_eq!(plan.conflicts.len(), 1);
}
