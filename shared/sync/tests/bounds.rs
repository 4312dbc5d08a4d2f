//! What a sync may compute, and that it has the same result in however many rounds.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use proptest::prelude::*;
use support::{World, any_history, cases, json, key};
use sync::{Filter, Key, Plan, Rules, Scope, Sync, Unmergeable};

/// An object of so many texts, each of this word so many times.
fn texts(members: usize, words: usize, word: &str) -> String {
    let text = vec![word; words].join(" ");
    let members: Vec<String> = (0..members).map(|at| format!("\"m{at:03}\":\"{text}\"")).collect();
    format!("{{{}}}", members.join(","))
}

/// Plans these keys of session 0 into session 1, until their texts have taken so many cells.
fn some(world: &World, keys: &[Key], cells: usize) -> Plan {
    let (source, target, filter) = (&world.names[0], &world.names[1], Filter::default());
    let sync = Sync {
        source,
        target,
        filter: &filter,
        scope: Scope::default(),
        now: world.now,
        rules: &world.rules,
    };
    sync.plan_some(keys, &world.memories[source], &world.memories[target], cells)
}

#[test]
fn the_texts_of_a_key_take_a_bounded_number_of_cells_and_a_key_that_needs_more_fails_alone() {
    let mut world = World::new(2);
    let limits = world.rules.limits.clone();
    for (session, word) in [(0, "a"), (1, "b")] {
        world.put(session, "text.few", &texts(2, 200, word));
        world.put(session, "text.many", &texts(250, 200, word));
    }
    let plan = world.sync(0, 1);
    // A table has a row and a column more than there are words.
    let of_few = 2 * 201 * 201;
    let of_many = plan.cells - of_few;
    assert!(of_many > limits.key_cells && of_many <= limits.key_cells + limits.text_cells, "{of_many}");
    assert_eq!(plan.writes.iter().map(|write| write.key.name()).collect::<Vec<_>>(), ["text.few"]);
    assert_eq!(plan.failures.len(), 1);
    assert!(
        matches!(&plan.failures[0].error, Unmergeable::Limit { limit, .. } if *limit == limits.key_cells),
        "{:?}",
        plan.failures
    );
    assert_eq!(world.value(1, "text.many"), Some(json(&texts(250, 200, "b"))));
    // It crosses as soon as one of them has become smaller.
    world.put(1, "text.many", &texts(250, 2, "b"));
    let plan = world.sync(0, 1);
    assert_eq!((plan.writes.len(), plan.failures.len()), (1, 0));
    assert_eq!(plan.cells, 250 * 201 * 3);
}

#[test]
fn texts_that_need_more_cells_than_one_may_have_are_kept_twice_and_take_none() {
    let mut world = World::new(2);
    world.put(0, "text.k", &texts(250, 990, "a"));
    world.put(1, "text.k", &texts(250, 990, "b"));
    let plan = world.sync(0, 1);
    assert_eq!((plan.writes.len(), plan.failures.len(), plan.cells), (1, 0, 0));
    let both = format!("{} {}", vec!["a"; 990].join(" "), vec!["b"; 990].join(" "));
    let shown = world.value(1, "text.k").unwrap().to_string();
    assert_eq!(shown.matches(&both).count(), 250);
}

#[test]
fn what_a_text_shows_does_not_depend_on_the_others() {
    let text = include_str!("../rules.toml").replacen("text_cells = 250000", "text_cells = 8", 1);
    let text = text.replacen("key_cells = 500000", "key_cells = 16", 1);
    let mut world = World { rules: Rules::parse(&text).unwrap(), ..World::new(2) };
    world.put(0, "text.k", r#"{"m":"a b c d","n":"a b c d"}"#);
    world.sync(0, 1);
    world.put(0, "text.k", r#"{"m":"a x c d","n":"a x c d"}"#);
    world.put(1, "text.k", r#"{"m":"a b c y","n":"a b c y"}"#);
    let plan = world.sync(0, 1);
    assert_eq!(plan.cells, 16, "two tables of one word for each text");
    assert_eq!(world.value(1, "text.k"), Some(json(r#"{"m":"a x c y","n":"a x c y"}"#)));
    // One goes, and the other stays as it was seen: no write of its own.
    world.put(1, "text.k", r#"{"n":"a x c y"}"#);
    world.settle();
    assert_eq!(world.state(0, "text.k"), world.state(1, "text.k"));
    assert!(serde_json::to_string(&world.state(0, "text.k")).unwrap().contains("a b c y"));
    for session in [0, 1] {
        assert_eq!(world.value(session, "text.k"), Some(json(r#"{"n":"a x c y"}"#)), "session {session}");
    }
}

#[test]
fn a_plan_stops_when_its_texts_have_taken_its_cells_and_says_where() {
    let mut world = World::new(2);
    let names = ["text.a", "text.b", "text.c"];
    for (session, word) in [(0, "a"), (1, "b")] {
        names.iter().for_each(|name| world.put(session, name, &texts(1, 9, word)));
    }
    let keys: Vec<Key> = names.iter().rev().map(|name| key(name)).collect();
    let planned = |cells: usize| {
        let plan = some(&world, &keys, cells);
        (plan.writes.len(), plan.left, plan.next.map(|key| key.name().to_owned()))
    };
    // One key in any case: nothing would ever go on otherwise.
    assert_eq!(planned(0), (1, 2, Some("text.b".to_owned())));
    assert_eq!(planned(100), (1, 2, Some("text.b".to_owned())));
    assert_eq!(planned(101), (2, 1, Some("text.a".to_owned())));
    assert_eq!(planned(201), (3, 0, None));
}

proptest! {
    #![proptest_config(cases(100))]

    #[test]
    fn the_number_of_rounds_has_no_influence((sessions, events) in any_history(40), cells in 0..40_usize) {
        let mut world = World::new(sessions);
        world.all(&events);
        let mut whole = world.clone();
        let plan = whole.sync(0, 1);
        let keys: Vec<Key> = world.memories[&world.names[0]].keys().rev().cloned().collect();
        let (mut from, mut written, mut taken) = (0, 0, 0);
        loop {
            let part = some(&world, &keys[from..], cells);
            world.apply(0, 1, &part);
            written += part.writes.len();
            taken += part.cells;
            let Some(next) = part.next else { break };
            let at = keys.iter().position(|key| *key == next).unwrap();
            prop_assert!(at > from, "a round that goes nowhere");
            from = at;
        }
        prop_assert_eq!(&world.memories, &whole.memories);
        prop_assert_eq!((written, taken), (plan.writes.len(), plan.cells));
    }
}
