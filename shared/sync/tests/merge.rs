//! One merge at a time: what each rule decides, and what is on record.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use std::collections::BTreeMap;

use proptest::prelude::*;
use support::{World, cases, json, key, shared};
use sync::{Attributes, Cause, Conflict, Effect, Json, Merging, Plan, Rules, Step, Unmergeable};

/// Two sessions that have synced a value, if there is one, and then write concurrently: first 0, then 1. `None` removes.
fn concurrent(name: &str, base: Option<&str>, first: Option<&str>, second: Option<&str>) -> (World, Plan) {
    let mut world = World::new(2);
    if let Some(base) = base {
        world.put(0, name, base);
        world.sync(0, 1);
    }
    for (session, value) in [(0, first), (1, second)] {
        match value {
            Some(value) if world.value(session, name) != Some(json(value)) => world.put(session, name, value),
            Some(_) => {}
            None => world.remove(session, name),
        }
    }
    let plan = world.sync(0, 1);
    world.sync(1, 0);
    (world, plan)
}

fn merged(name: &str, base: Option<&str>, first: &str, second: &str) -> String {
    let (world, _) = concurrent(name, base, Some(first), Some(second));
    assert_eq!(world.value(0, name), world.value(1, name));
    world.value(0, name).unwrap().to_string()
}

fn only(plan: &Plan) -> &Conflict {
    assert_eq!(plan.conflicts.len(), 1, "{plan:#?}");
    &plan.conflicts[0]
}

#[test]
fn disjoint_paths_merge_and_nothing_is_on_record() {
    let (world, plan) = concurrent(
        "hotel",
        Some(r#"{"area":"west","stars":3,"address":{"street":"x","city":"y"}}"#),
        Some(r#"{"area":"east","stars":3,"address":{"street":"x","city":"z"}}"#),
        Some(r#"{"area":"west","stars":4,"address":{"street":"w","city":"y"},"wifi":true}"#),
    );
    let expected = r#"{"address":{"city":"z","street":"w"},"area":"east","stars":4,"wifi":true}"#;
    assert_eq!(world.value(1, "hotel").unwrap().to_string(), expected);
    assert_eq!(world.value(0, "hotel"), world.value(1, "hotel"));
    assert_eq!(plan.conflicts, []);
    assert_eq!(plan.writes[0].effect, Effect::Merged);
}

#[test]
fn of_two_preferences_the_later_one_stays_and_the_other_is_on_record() {
    let (world, plan) = concurrent(
        "p",
        Some(r#"{"theme":"light"}"#),
        Some(r#"{"theme":"dark"}"#),
        Some(r#"{"theme":"blue"}"#),
    );
    assert_eq!(world.value(0, "p"), Some(json(r#"{"theme":"blue"}"#)));
    let conflict = only(&plan);
    assert_eq!((conflict.cause, conflict.rule), (Cause::Edited, Merging::Preference));
    assert_eq!(conflict.path, [Step::Member("theme".into())]);
    assert_eq!(conflict.base, Some(json("\"light\"")));
    assert_eq!(conflict.ours, Some(json("\"blue\"")));
    assert_eq!(conflict.theirs, Some(json("\"dark\"")));
    assert_eq!(conflict.kept, Some(json("\"blue\"")));
    assert_eq!(conflict.lost.len(), 1);
    assert_eq!((&*conflict.lost[0].stamp.session, &conflict.lost[0].value), ("s0", &Some(json("\"dark\""))));
    let text = serde_json::to_string(conflict).unwrap();
    assert_eq!(&serde_json::from_str::<Conflict>(&text).unwrap(), conflict);
}

#[test]
fn a_conflict_is_on_record_once() {
    let (mut world, plan) = concurrent("p", None, Some(r#"{"a":1}"#), Some(r#"{"a":2}"#));
    only(&plan);
    // The two values of `a` are still side by side when the next write crosses.
    world.put(0, "p", r#"{"a":2,"b":1}"#);
    let plan = world.sync(0, 1);
    assert_eq!((plan.writes.len(), plan.conflicts), (1, vec![]));
    // A third value of it is a new conflict.
    world.put(0, "p", r#"{"a":3,"b":1}"#);
    world.put(1, "p", r#"{"a":4,"b":1}"#);
    assert_eq!(only(&world.sync(0, 1)).lost[0].value, Some(json("3")));
}

#[test]
fn the_later_one_is_the_one_that_knew_whatever_the_clocks_say() {
    let mut world = World::new(2);
    world.put(0, "p", "1");
    world.sync(0, 1);
    // The clock of session 1 is an hour behind.
    world.now -= chrono::Duration::hours(1);
    world.put(1, "p", "2");
    world.now += chrono::Duration::hours(1);
    world.sync(1, 0);
    assert_eq!(world.value(0, "p"), Some(json("2")));
    // Against a third write that knew neither, and was made in between by the clock: the one that knew is later.
    let mut world = World::new(3);
    world.put(0, "p", "1");
    world.sync(0, 1);
    world.now -= chrono::Duration::hours(1);
    world.put(1, "p", "2");
    world.put(2, "p", "3");
    world.now += chrono::Duration::hours(1);
    world.sync(1, 2);
    assert_eq!(world.value(2, "p"), Some(json("2")));
}

#[test]
fn what_a_session_puts_between_two_syncs_is_one_write_with_the_time_of_the_last() {
    let mut world = World::new(2);
    world.put(0, "p", r#"{"a":1}"#);
    world.put(1, "p", r#"{"a":2}"#);
    world.put(0, "p", r#"{"a":1,"b":1}"#);
    world.sync(0, 1);
    // Session 0 has said last that `a` is 1.
    assert_eq!(world.value(1, "p"), Some(json(r#"{"a":1,"b":1}"#)));
    // Carried in between, the first put has a time of its own.
    let mut world = World::new(2);
    world.put(0, "p", r#"{"a":1}"#);
    world.put(1, "p", r#"{"a":2}"#);
    world.sync(0, 1);
    world.put(0, "p", r#"{"a":1,"b":1}"#);
    world.sync(0, 1);
    assert_eq!(world.value(1, "p"), Some(json(r#"{"a":2,"b":1}"#)));
}

#[test]
fn a_clock_that_runs_ahead_is_refused_for_its_key_only() {
    let mut world = World::new(2);
    world.put(0, "other", "1");
    let now = world.now;
    world.now += chrono::Duration::seconds(2);
    world.put(0, "ahead", "1");
    world.now = now;
    let plan = world.sync(0, 1);
    assert_eq!(plan.writes.len(), 1);
    assert_eq!(plan.failures[0].key, key("ahead"));
    assert_eq!(plan.failures[0].error, Unmergeable::ClockAhead { session: "s0".into(), ahead_ms: 500 });
    world.now += chrono::Duration::seconds(2);
    assert_eq!(world.sync(0, 1).failures, []);
    assert_eq!(world.value(1, "ahead"), Some(json("1")));
}

#[test]
fn counters_add_up() {
    assert_eq!(merged("count.a", Some("10"), "12", "9"), "11");
    assert_eq!(merged("count.a", None, "5", "3"), "8");
    assert_eq!(
        merged("count.a", Some(r#"{"x":1,"y":1}"#), r#"{"x":2,"y":1}"#, r#"{"x":4,"y":2}"#),
        r#"{"x":5,"y":2}"#
    );
    let (_, plan) = concurrent("count.a", Some("10"), Some("12"), Some("9"));
    let conflict = only(&plan);
    assert_eq!((&conflict.base, &conflict.kept), (&Some(json("10")), &Some(json("11"))));
    assert_eq!(conflict.lost, []);
    // Larger than a double can count.
    assert_eq!(
        merged("count.a", Some("9007199254740993"), "9007199254740994", "9007199254740995"),
        "9007199254740996"
    );
}

#[test]
fn a_counter_that_was_created_again_has_nothing_of_the_one_before_but_what_was_added_meanwhile() {
    let mut world = World::new(3);
    world.put(0, "count.a", "10");
    world.sync(0, 1);
    world.sync(0, 2);
    world.remove(1, "count.a");
    world.sync(1, 0);
    world.put(1, "count.a", "3");
    world.put(2, "count.a", "12");
    world.sync(1, 2);
    assert_eq!(world.value(2, "count.a"), Some(json("5")));
}

#[test]
fn a_counter_that_overflows_fails_its_key_and_is_not_lost() {
    let half = i64::MAX / 2 + 1;
    let (mut world, plan) = concurrent("count.a", None, Some(&half.to_string()), Some(&half.to_string()));
    let sum = (i128::from(half) * 2).to_string();
    assert_eq!(plan.failures[0].error, Unmergeable::CounterOverflow { path: String::new(), sum });
    assert_eq!(world.value(1, "count.a"), Some(Json::integer(half.into())));
    world.put(0, "count.a", "1");
    assert_eq!(world.sync(0, 1).failures, []);
    assert_eq!(world.value(1, "count.a"), Some(Json::integer(i128::from(half) + 1)));
}

#[test]
fn a_counter_that_is_none_fails_its_key_only() {
    let mut world = World::new(2);
    world.put(0, "count.a", "\"many\"");
    world.put(1, "count.a", "3");
    world.put(0, "count.b", "1");
    world.put(0, "set.a", "[1]");
    world.put(1, "set.a", "1");
    world.put(0, "list.a", r#"[{"id":1},{"id":1}]"#);
    world.put(1, "list.a", r#"[{"id":1}]"#);
    let plan = world.sync(0, 1);
    let failed: Vec<_> = plan.failures.iter().map(|failure| failure.key.name()).collect();
    assert_eq!(failed, ["count.a", "list.a", "set.a"]);
    assert!(matches!(plan.failures[0].error, Unmergeable::NotOfType { rule: Merging::Counter, .. }));
    assert_eq!(world.value(1, "count.b"), Some(json("1")));
    // Alone, such a value crosses: there is nothing to merge.
    world.put(0, "count.c", "\"many\"");
    assert_eq!(world.sync(0, 1).writes.len(), 1);
}

#[test]
fn sets_keep_what_was_added_concurrently_with_its_removal() {
    assert_eq!(merged("set.a", Some("[1,2]"), "[1,2,3]", "[2,4]"), "[2,3,4]");
    assert_eq!(merged("set.a", None, "[2,1]", "[3,1]"), "[2,1,3]");
    // Session 0 removes and adds again; session 1 removes what it knows.
    let mut world = World::new(2);
    world.put(0, "set.a", "[1]");
    world.sync(0, 1);
    world.put(0, "set.a", "[]");
    world.sync(0, 1);
    world.put(0, "set.a", "[1]");
    world.put(1, "set.a", "[9]");
    world.sync(0, 1);
    assert_eq!(world.value(1, "set.a"), Some(json("[1,9]")));
}

#[test]
fn an_item_that_is_put_back_before_a_sync_carries_the_key_was_never_taken_out() {
    let mut world = World::new(3);
    world.put(0, "set.a", "[1]");
    world.sync(0, 1);
    world.sync(0, 2);
    world.put(1, "set.a", "[]");
    // Nothing new: it takes in nothing of session 1, either.
    assert!(world.sync(0, 1).is_empty());
    world.put(1, "set.a", "[1]");
    world.put(2, "set.a", "[2]");
    world.sync(2, 1);
    assert_eq!(world.value(1, "set.a"), Some(json("[2]")));
    // Once its removal has been carried, the same item is a new one.
    world.put(1, "set.a", "[2,3]");
    world.sync(1, 2);
    world.put(1, "set.a", "[2]");
    world.sync(1, 0);
    world.put(1, "set.a", "[2,3]");
    world.put(2, "set.a", "[2]");
    world.sync(2, 1);
    assert_eq!(world.value(1, "set.a"), Some(json("[2,3]")));
}

#[test]
fn lists_merge_by_the_identity_of_their_items() {
    let base = r#"[{"id":1,"t":"a"},{"id":2,"t":"b"}]"#;
    let first = r#"[{"id":2,"t":"b"},{"id":1,"t":"A"},{"id":3,"t":"c"}]"#;
    let second = r#"[{"id":1,"t":"a","done":true},{"id":4,"t":"d"},{"id":2,"t":"b"}]"#;
    let expected = r#"[{"done":true,"id":1,"t":"A"},{"id":3,"t":"c"},{"id":4,"t":"d"},{"id":2,"t":"b"}]"#;
    assert_eq!(merged("list.a", Some(base), first, second), expected);
    // An item that one removes and the other edits stays, all of it.
    let (world, plan) = concurrent(
        "list.a",
        Some(base),
        Some(r#"[{"id":2,"t":"b"}]"#),
        Some(r#"[{"id":1,"t":"z"},{"id":2,"t":"b"}]"#),
    );
    assert_eq!(world.value(0, "list.a"), Some(json(r#"[{"id":1,"t":"z"},{"id":2,"t":"b"}]"#)));
    assert_eq!((only(&plan).cause, &only(&plan).path), (Cause::Removed, &vec![Step::Item("1".into())]));
    assert_eq!(only(&plan).ours, Some(json(r#"{"id":1,"t":"z"}"#)));
}

#[test]
fn texts_merge_by_blocks_or_stay_both() {
    assert_eq!(
        merged("text.a", Some("\"one two three\""), "\"ONE two three\"", "\"one two three four\""),
        "\"ONE two three four\""
    );
    let (world, plan) = concurrent("text.a", Some("\"tea\""), Some("\"coffee\""), Some("\"milk\""));
    assert_eq!(world.value(0, "text.a"), Some(json("\"coffee milk\"")));
    assert_eq!((only(&plan).lost.len(), &only(&plan).base), (0, &Some(json("\"tea\""))));
}

#[test]
fn a_text_that_one_session_rewrote_many_times_still_has_its_ancestor() {
    let mut world = World::new(2);
    world.put(0, "text.a", "\"a b c\"");
    world.sync(0, 1);
    world.put(1, "text.a", "\"a b c end\"");
    for number in 0..20 {
        world.put(0, "text.a", &format!("\"start{number} b c\""));
        world.sync(0, 1);
    }
    assert_eq!(world.value(1, "text.a"), Some(json("\"start19 b c end\"")));
}

#[test]
fn facts_are_never_merged_and_both_stay() {
    let (mut world, plan) = concurrent("fact.diet", Some("\"none\""), Some("\"vegan\""), Some("\"kosher\""));
    assert_eq!(world.value(0, "fact.diet"), Some(json("\"vegan\"")));
    assert_eq!(world.value(1, "fact.diet"), Some(json("\"kosher\"")));
    assert_eq!(plan.conflicts, []);
    assert_eq!(plan.disputes.len(), 1);
    let said: Vec<_> =
        plan.disputes[0].values.iter().map(|said| said.value.clone().unwrap().to_string()).collect();
    assert_eq!(said, ["\"vegan\"", "\"kosher\""]);
    // Nothing more is said of it until somebody settles it, who has seen both.
    assert!(world.plan(0, 1).is_empty() && world.plan(1, 0).is_empty());
    world.put(0, "fact.diet", "\"halal\"");
    assert_eq!(world.sync(0, 1).disputes, []);
    assert_eq!(world.value(1, "fact.diet"), Some(json("\"halal\"")));
}

#[test]
fn a_fact_is_one_whole_and_equal_facts_agree() {
    let (_, plan) =
        concurrent("fact.a", Some(r#"{"x":1,"y":1}"#), Some(r#"{"x":2,"y":1}"#), Some(r#"{"x":1,"y":2}"#));
    assert_eq!(plan.disputes.len(), 1);
    let (world, plan) = concurrent("fact.a", Some("1"), Some("2"), Some("2"));
    assert_eq!((plan.disputes, world.value(1, "fact.a")), (vec![], Some(json("2"))));
}

#[test]
fn a_fact_that_one_removed_and_the_other_changed_is_disputed() {
    let (world, plan) = concurrent("fact.a", Some("1"), None, Some("2"));
    assert_eq!(world.value(1, "fact.a"), Some(json("2")));
    assert_eq!(
        plan.disputes[0].values.iter().map(|said| said.value.is_none()).collect::<Vec<_>>(),
        [true, false]
    );
}

#[test]
fn a_key_that_one_removed_and_the_other_edited_has_its_own_rule() {
    let base = r#"{"name":"x","age":3}"#;
    let edit = r#"{"name":"x","age":4}"#;
    // The rule of the file: the edit stays, with all of the value.
    let (world, plan) = concurrent("k", Some(base), None, Some(edit));
    assert_eq!(world.value(0, "k"), Some(json(edit)));
    assert_eq!((only(&plan).cause, &only(&plan).kept), (Cause::Removed, &Some(json(edit))));
    assert_eq!((&only(&plan).theirs, &only(&plan).ours), (&None, &Some(json(edit))));
    // Without an edit, the removal takes effect.
    let (world, plan) = concurrent("k", Some(base), None, Some(base));
    assert_eq!((world.value(1, "k"), plan.conflicts), (None, vec![]));
    // Two keys of the same name that knew nothing of each other are no conflict.
    let mut world = World::new(2);
    world.put(0, "k", "1");
    world.sync(0, 1);
    let mut world = World {
        memories: [
            (world.names[0].clone(), world.memories[&world.names[0]].clone()),
            (world.names[1].clone(), BTreeMap::new()),
        ]
        .into(),
        ..world
    };
    world.remove(0, "k");
    world.put(1, "k", "2");
    assert_eq!(world.sync(0, 1).conflicts, []);
    assert_eq!(world.value(1, "k"), Some(json("2")));
}

#[test]
fn the_deletion_rule_of_the_file_decides() {
    let file = include_str!("../rules.toml");
    let with = |deletion: &str| {
        let text = file.replacen("deletion = \"edit-wins\"", &format!("deletion = \"{deletion}\""), 1);
        Rules::parse(&text).unwrap()
    };
    for (deletion, removal_first, expected) in [
        ("deletion-wins", true, None),
        ("newest", true, Some(json("2"))),
        ("newest", false, None),
        ("edit-wins", false, Some(json("2"))),
    ] {
        let mut world = World { rules: with(deletion), ..World::new(2) };
        world.put(0, "k", "1");
        world.sync(0, 1);
        if removal_first {
            world.remove(0, "k");
            world.put(1, "k", "2");
        } else {
            world.put(1, "k", "2");
            world.remove(0, "k");
        }
        let plan = world.sync(0, 1);
        assert_eq!(world.value(1, "k"), expected, "{deletion} {removal_first}");
        assert_eq!(only(&plan).lost.len(), 1);
        world.sync(1, 0);
        assert_eq!(world.value(0, "k"), expected);
    }
}

#[test]
fn a_part_that_one_removed_and_the_other_edited_stays_whole() {
    let (world, plan) = concurrent(
        "k",
        Some(r#"{"address":{"street":"x","city":"y"},"n":1}"#),
        Some(r#"{"n":1}"#),
        Some(r#"{"address":{"street":"x","city":"z"},"n":1}"#),
    );
    assert_eq!(world.value(0, "k"), Some(json(r#"{"address":{"city":"z","street":"x"},"n":1}"#)));
    assert_eq!((only(&plan).cause, only(&plan).lost[0].value.clone()), (Cause::Removed, None));
}

#[test]
fn a_part_stays_also_where_the_rule_lets_the_removal_of_a_key_win() {
    let text = include_str!("../rules.toml").replacen("\"edit-wins\"", "\"deletion-wins\"", 1);
    let mut world = World { rules: Rules::parse(&text).unwrap(), ..World::new(2) };
    world.put(0, "k", r#"{"a":1,"n":1}"#);
    world.sync(0, 1);
    world.put(0, "k", r#"{"n":1}"#);
    world.put(1, "k", r#"{"a":2,"n":1}"#);
    assert_eq!(only(&world.sync(0, 1)).cause, Cause::Removed);
    assert_eq!(world.value(1, "k"), Some(json(r#"{"a":2,"n":1}"#)));
}

#[test]
fn a_put_under_attributes_that_ask_for_another_rule_is_taken_apart_by_it() {
    let of_types = "[types.conversation]\nmerge = \"set\"\ndeletion = \"edit-wins\"\n\
        [types.state]\nmerge = \"list\"\ndeletion = \"edit-wins\"\nid = \"id\"\n";
    let text = format!("{}\n{of_types}", include_str!("../rules.toml"));
    let mut world = World { rules: Rules::parse(&text).unwrap(), ..World::new(2) };
    world.put(0, "k", r#"[{"id":1}]"#);
    world.sync(0, 1);
    let state = Attributes { context_type: Some(contract::ContextType::State), ..shared() };
    let put = |world: &mut World, session, value| {
        world.write_as(session, "k", Some(json(value)), state.clone());
    };
    put(&mut world, 0, r#"[{"id":1,"n":1}]"#);
    world.sync(0, 1);
    put(&mut world, 0, r#"[{"id":1,"n":2}]"#);
    put(&mut world, 1, r#"[{"id":1,"n":1,"m":1}]"#);
    world.sync(0, 1);
    assert_eq!(world.value(1, "k"), Some(json(r#"[{"id":1,"m":1,"n":2}]"#)));
}

#[test]
fn of_a_string_and_an_object_the_later_one_stays() {
    let (world, plan) =
        concurrent("k", Some(r#"{"a":1}"#), Some(r#"{"a":{"b":2}}"#), Some(r#"{"a":"text"}"#));
    assert_eq!(world.value(0, "k"), Some(json(r#"{"a":"text"}"#)));
    assert_eq!((only(&plan).cause, &only(&plan).lost[0].value), (Cause::Shape, &Some(json(r#"{"b":2}"#))));
    assert_eq!(
        merged("k", Some(r#"{"a":{}}"#), r#"{"a":{"b":2}}"#, r#"{"a":{"c":3}}"#),
        r#"{"a":{"b":2,"c":3}}"#
    );
    assert_eq!(merged("k", None, "{}", r#"{"a":1}"#), r#"{"a":1}"#);
}

#[test]
fn attributes_merge_to_the_latest_but_protect_as_the_strictest() {
    let mut world = World::new(2);
    world.put(0, "k", "1");
    world.sync(0, 1);
    let first = Attributes { priority: 5, sensitive: true, ..shared() };
    let second = Attributes { priority: 9, ..shared() };
    world.write_as(0, "k", Some(json("1")), first);
    world.write_as(1, "k", Some(json("1")), second.clone());
    let plan = world.sync(0, 1);
    assert_eq!(world.cell(1, "k").unwrap().attributes, Attributes { sensitive: true, ..second });
    assert_eq!((only(&plan).cause, only(&plan).sensitive), (Cause::Attributes, true));
}

#[test]
fn who_leaves_attributes_as_they_are_does_not_set_them() {
    let mut world = World::new(2);
    world.put(0, "k", r#"{"a":1}"#);
    world.sync(0, 1);
    world.write_as(0, "k", Some(json(r#"{"a":1}"#)), Attributes { priority: 5, ..shared() });
    world.put(1, "k", r#"{"a":2}"#);
    assert_eq!(world.sync(0, 1).conflicts, []);
    assert_eq!(world.cell(1, "k").unwrap().attributes.priority, 5);
    assert_eq!(world.value(1, "k"), Some(json(r#"{"a":2}"#)));
}

/// The merge of flat objects as one would write it down.
fn reference(base: &Flat, first: &Flat, second: &Flat) -> Flat {
    let names = base.keys().chain(first.keys()).chain(second.keys());
    names
        .filter_map(|name| {
            let (b, o, t) = (base.get(name), first.get(name), second.get(name));
            let kept = if o == t || o == b {
                t
            } else if t == b {
                o
            } else {
                t.or(o)
            };
            Some((name.clone(), *kept?))
        })
        .collect()
}

type Flat = BTreeMap<String, u8>;

fn text(flat: &Flat) -> String {
    serde_json::to_string(flat).unwrap()
}

fn flat() -> impl Strategy<Value = Flat> {
    proptest::collection::btree_map("[a-e]", 0..4_u8, 0..5)
}

proptest! {
    #![proptest_config(cases(300))]

    #[test]
    fn flat_objects_merge_as_one_would_write_it_down(base in flat(), first in flat(), second in flat()) {
        let (world, plan) = concurrent("k", Some(&text(&base)), Some(&text(&first)), Some(&text(&second)));
        let expected = reference(&base, &first, &second);
        prop_assert_eq!(world.value(1, "k"), Some(json(&text(&expected))));
        prop_assert_eq!(world.value(0, "k"), world.value(1, "k"));
        // What a session wrote is there, or on record as lost.
        for (name, value) in first.iter().chain(&second).filter(|(name, value)| base.get(*name) != Some(*value)) {
            let lost = plan.conflicts.iter().filter(|conflict| conflict.path == [Step::Member(name.clone())]);
            let lost = lost.flat_map(|conflict| &conflict.lost).any(|lost| lost.value == Some(json(&value.to_string())));
            prop_assert!(expected.get(name) == Some(value) || lost, "{name} = {value}");
        }
    }

    #[test]
    fn nothing_written_independently_is_lost(first in flat(), second in flat(), third in flat()) {
        let mut world = World::new(3);
        for (session, value) in [&first, &second, &third].into_iter().enumerate() {
            world.put(session, "k", &text(value));
        }
        let plans = [world.sync(0, 1), world.sync(1, 2)];
        let Some(Json::Object(kept)) = world.value(2, "k") else { panic!("the key is lost") };
        for (name, value) in first.iter().chain(&second).chain(&third) {
            let value = json(&value.to_string());
            let mut lost = plans.iter().flat_map(|plan| &plan.conflicts).flat_map(|conflict| &conflict.lost);
            prop_assert!(kept.get(name) == Some(&value) || lost.any(|lost| lost.value.as_ref() == Some(&value)));
        }
    }
}
