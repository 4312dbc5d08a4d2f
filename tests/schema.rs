//! Migrations: up, down and up again leave the same schema.

use testkit::Fixture;

/// Everything the catalogue says about our schema, a line each.
const CATALOGUE: &[&str] = &[
    "concat_ws(' ', 'column', table_name, column_name, udt_name, character_maximum_length, is_nullable, column_default, generation_expression) FROM information_schema.columns WHERE table_schema IN ('public', 'audit') ORDER BY 1",
    "concat_ws(' ', 'index', indexdef) FROM pg_indexes WHERE schemaname IN ('public', 'audit') ORDER BY 1",
    "concat_ws(' ', 'constraint', conrelid::regclass, conname, pg_get_constraintdef(oid)) FROM pg_constraint WHERE connamespace::regnamespace::text IN ('public', 'audit') ORDER BY 1",
    "concat_ws(' ', 'label', t.typname, e.enumsortorder, e.enumlabel) FROM pg_enum e JOIN pg_type t ON t.oid = e.enumtypid ORDER BY 1",
    "concat_ws(' ', 'routine', proname, pg_get_function_identity_arguments(oid), md5(prosrc)) FROM pg_proc WHERE pronamespace::regnamespace::text IN ('public', 'audit') ORDER BY 1",
    "concat_ws(' ', 'sequence', sequencename) FROM pg_sequences WHERE schemaname IN ('public', 'audit') ORDER BY 1",
];

async fn catalogue(fixture: &Fixture) -> Vec<String> {
    let mut lines = Vec::new();
    for query in CATALOGUE {
        lines.extend(fixture.lines(query).await);
    }
    lines
}

#[tokio::test(flavor = "multi_thread")]
async fn up_down_up_leaves_the_same_schema() {
    let fixture = Fixture::new().await;
    let all = store::migration::MAIN.status(fixture.connection().await).await.expect("a status");
    assert!(all.iter().all(|state| state.applied), "{all:?}");
    let before = catalogue(&fixture).await;
    assert!(before.len() > 200, "the catalogue shows the schema: {}", before.len());

    let down = store::migration::MAIN.down(fixture.connection().await, usize::MAX).await.expect("down");
    assert_eq!(down.len(), all.len());
    let empty = catalogue(&fixture).await;
    let left: Vec<&String> =
        empty.iter().filter(|line| !line.contains("__diesel_schema_migrations")).collect();
    assert!(left.is_empty(), "down leaves nothing behind: {left:#?}");

    let up = store::migration::MAIN.up(fixture.connection().await).await.expect("up");
    assert_eq!(up.len(), all.len());
    assert_eq!(catalogue(&fixture).await, before);
    let again = store::migration::MAIN.up(fixture.connection().await).await.expect("nothing to do");
    assert!(again.is_empty(), "{again:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn each_migration_can_be_taken_back_alone() {
    let fixture = Fixture::new().await;
    let before = catalogue(&fixture).await;
    let count = store::migration::MAIN.status(fixture.connection().await).await.expect("a status").len();
    // Migrations that are released do not change: the latest ones alone, the others some at a time.
    for steps in (1..count).filter(|steps| *steps <= 8 || steps % 12 == 0).chain([count]) {
        let down = store::migration::MAIN.down(fixture.connection().await, steps).await.expect("down");
        assert_eq!(down.len(), steps);
        store::migration::MAIN.up(fixture.connection().await).await.expect("up");
        assert_eq!(catalogue(&fixture).await, before, "after {steps} down and up again");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_can_ask_what_is_missing() {
    let fixture = Fixture::new().await;
    let missing = store::migration::MAIN.missing(&mut fixture.connection().await).await.expect("an answer");
    assert!(missing.is_empty(), "{missing:?}");
    let down = store::migration::MAIN.down(fixture.connection().await, 1).await.expect("down");
    let missing = store::migration::MAIN.missing(&mut fixture.connection().await).await.expect("an answer");
    assert_eq!(missing.len(), down.len());
}

#[tokio::test(flavor = "multi_thread")]
async fn labels_in_the_program_and_in_the_database_are_the_same() {
    let fixture = Fixture::new().await;
    let labels = |name: &str| {
        format!("enumlabel FROM pg_enum WHERE enumtypid = '{name}'::regtype ORDER BY enumsortorder")
    };
    let events: Vec<&str> = contract::EventType::ALL.iter().map(|label| label.as_str()).collect();
    assert_eq!(fixture.lines(&labels("eventtype")).await, events);
    let performatives: Vec<&str> = contract::Performative::ALL.iter().map(|label| label.as_str()).collect();
    assert_eq!(fixture.lines(&labels("performative")).await, performatives);
}

#[tokio::test(flavor = "multi_thread")]
async fn partitions_are_made_ahead_and_take_in_what_came_too_early() {
    let fixture = Fixture::new().await;
    let event = |months: i32| {
        format!(
            "INSERT INTO blackboard_events (id, event_type, performative, source_agent_id, user_id, session_id,
                event_payload, logical_timestamp)
             SELECT overlay(uuid7_at(now() + make_interval(months => {months}))::text PLACING '7' FROM 15)::uuid,
                'user.stored', 'inform', 'test', 0, '@account', '{{}}', 1"
        )
    };
    for months in [0, 2, 7] {
        fixture.execute(&event(months)).await;
    }
    let places = || fixture.lines("tableoid::regclass FROM blackboard_events ORDER BY id");
    let before = places().await;
    assert_eq!(before[2], "blackboard_events_default", "{before:?}");
    assert!(!before[..2].contains(&before[2]), "{before:?}");

    let mut connection = fixture.connection().await;
    let made = store::partition::create_ahead(&mut connection, 8).await.expect("partitions");
    assert_eq!(made, 10, "five months of each of two tables");
    assert_eq!(store::partition::create_ahead(&mut connection, 8).await.expect("nothing to do"), 0);
    let after = places().await;
    assert_eq!(after[..2], before[..2]);
    assert!(after[2].starts_with("blackboard_events_2"), "it has moved: {after:?}");

    assert_eq!(fixture.count("blackboard_events").await, 3);
    let refused = store::partition::create_ahead(&mut connection, 121).await.expect_err("too many");
    assert!(refused.to_string().contains("it must be from 0 to 120"), "{refused}");
}
