//! A user's contexts come out of the events alone as the tables hold them; and what differs is found.

use context_writer::ContextWriter;
use router_logger::RouterLogger;
use serde_json::{Value, json};
use testkit::{CANARY, Fixture, RequestMessage, context, request, requests_for_all_tables, session};
use uuid::Uuid;

use crate::support::program::{Ended, memfleet, output};

/// Exit status, what was printed, and what was said.
async fn replay(
    fixture: &Fixture,
    arguments: &[&str],
    environment: &[(&str, &str)],
) -> (bool, String, String) {
    let mut command = memfleet(fixture, &[&["replay"], arguments].concat());
    command.envs(environment.iter().copied());
    let ended: Ended = output(command).await.into();
    (ended.is_success(), ended.out, ended.err)
}

fn agent(tier: &str, version: i64, sensitive: bool) -> RequestMessage {
    request(
        "agent-context.put",
        1,
        json!({ "agent_id": "planner", "session_id": "x", "memory_tier": tier, "context_key": "k",
        "context_value": if sensitive { json!(CANARY) } else { json!({ "version": version }) }, "version": version, "sensitive": sensitive }),
    )
}

/// Everything that can happen to contexts, twice the same key in one batch among it.
async fn filled() -> Fixture {
    let fixture = Fixture::new().await;
    let decision = request(
        "decision.log",
        1,
        json!({ "decision_id": Uuid::now_v7(), "session_id": "x", "user_request": "q", "routing_decision": 1 }),
    );
    fixture
        .process(ContextWriter, requests_for_all_tables(1).into_iter().chain(requests_for_all_tables(2)))
        .await;
    fixture
        .process(ContextWriter, [
            session(1, "x"),
            context(1, "x", "twice", 1),
            context(1, "x", "twice", 3),
            context(1, "x", "twice", 2),
            request("context.remove", 1, json!({ "session_id": "x", "context_key": "gone", "version": 5 })),
            request("context.put", 1, json!({ "session_id": "x", "context_key": "full", "context_value": [1.50, "\u{1f375}", null], "version": 9,
                "context_type": "preference", "access_level": "public", "priority": 7, "is_persistent": true, "expires_at": "2031-01-02T03:04:05.678Z" })),
            request("context.put", 1, json!({ "session_id": "x", "context_key": "secret", "context_value": CANARY, "version": 1, "sensitive": true })),
            agent("private", 1, true),
            agent("shared", 1, false),
            agent("shared", 2, false),
            agent("consensus", 4, false),
            request("session.close", 1, json!({ "session_id": "x" })),
        ])
        .await;
    fixture.process(RouterLogger, [decision]).await;
    fixture.process(ContextWriter, [session(1, "x"), context(1, "x", "late", 1)]).await;
    assert_eq!(fixture.dead_letters().await, Vec::<String>::new());
    fixture
}

#[tokio::test(flavor = "multi_thread")]
async fn events_and_tables_say_the_same() {
    let fixture = filled().await;
    for user in ["1", "2"] {
        let (well, printed, said) = replay(&fixture, &["--user", user], &[]).await;
        assert!(well && printed.ends_with("no differences\n"), "{printed}{said}");
    }
    let (well, printed, _) = replay(&fixture, &["--user", "1", "--json"], &[]).await;
    let replayed: Value = serde_json::from_str(&printed).expect("JSON");
    assert!(well);
    for table in ["simple_chat_context", "agent_context_states"] {
        let rows = fixture.count(&format!("{table} WHERE user_id = 1")).await;
        assert!(rows >= 4 && replayed["contexts"][table] == rows, "{table}: {replayed}");
    }
    let events =
        fixture.count("blackboard_events WHERE user_id = 1 AND event_type <> 'decision.logged'").await;
    assert_eq!(replayed["events"], events);
    assert_eq!(fixture.count("pg_namespace WHERE nspname = 'replayed'").await, 0, "nothing stays");
    let (well, printed, said) = replay(&fixture, &["--user", "77"], &[]).await;
    assert!(!well && printed.is_empty() && said.contains("there is no user 77"), "{printed}{said}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_event_that_carries_no_request_is_not_replayed() {
    let fixture = filled().await;
    // A further event of a request: the first one carries it.
    fixture
        .execute(
            "INSERT INTO blackboard_events (id, event_sequence, event_type, performative, source_agent_id, user_id,
                session_id, event_payload, logical_timestamp, request_id)
             SELECT gen_random_uuid(), nextval('blackboard_event_sequence'), event_type, performative, source_agent_id,
                user_id, session_id, jsonb_set(event_payload, '{context_key}', '\"extra\"'), logical_timestamp, request_id
             FROM blackboard_events WHERE event_payload ->> 'context_key' = 'late'",
        )
        .await;
    // Requests of different workers may have the same id.
    let put = context(1, "x", "same", 1);
    let decision = json!({ "decision_id": Uuid::now_v7(), "session_id": "x", "user_request": "q", "routing_decision": 1 });
    let decision = RequestMessage { id: put.id, ..request("decision.log", 1, decision) };
    fixture.process(RouterLogger, [decision]).await;
    fixture.process(ContextWriter, [put]).await;
    let (well, printed, said) = replay(&fixture, &["--user", "1"], &[]).await;
    assert!(well && printed.ends_with("no differences\n"), "{printed}{said}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_changed_past_the_events_is_found() {
    let fixture = filled().await;
    for (change, found) in [
        ("UPDATE simple_chat_context SET context_value = '\"forged\"' WHERE context_key = 'late'", "forged"),
        ("UPDATE simple_chat_context SET priority = 99 WHERE context_key = 'full'", "99"),
        ("DELETE FROM simple_chat_context WHERE context_key = 'twice'", "+ table:  null"),
        (
            "UPDATE agent_context_states SET memory_tier = 'shared', agent_id = 'other' WHERE memory_tier = 'consensus' AND session_id = 'x'",
            "- events: null",
        ),
        ("DELETE FROM blackboard_events WHERE event_payload ->> 'context_key' = 'secret'", "secret"),
    ] {
        fixture.execute(change).await;
        let (well, printed, said) = replay(&fixture, &["--user", "1"], &[]).await;
        assert!(!well && printed.contains(found), "{change}: {printed}");
        assert!(said.contains("the tables differ from the contexts rebuilt from the events"), "{said}");
    }
    assert!(replay(&fixture, &["--user", "2"], &[]).await.0, "of another user nothing was changed");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_earlier_moment_shows_what_has_changed_since() {
    let fixture = filled().await;
    let of = async |key: &str| {
        let query = format!(
            "event_sequence FROM blackboard_events WHERE user_id = 1 AND event_payload ->> 'context_key' = '{key}'"
        );
        fixture.lines(&query).await.remove(0).parse::<i64>().expect("a number")
    };
    let before = (of("late").await - 1).to_string();
    let (well, printed, _) = replay(&fixture, &["--user", "1", "--as-of", &before, "--json"], &[]).await;
    let replayed: Value = serde_json::from_str(&printed).expect("JSON");
    assert!(!well);
    let differences = replayed["differences"].as_array().expect("differences");
    assert_eq!(differences.len(), 1, "{replayed}");
    assert_eq!(
        (&differences[0]["context"], &differences[0]["replayed"]),
        (&json!("[\"x\", \"late\"]"), &json!("null"))
    );
    let (_, printed, _) = replay(&fixture, &["--user", "1", "--as-of", "0"], &[]).await;
    assert!(printed.starts_with("replayed 0 events"), "{printed}");
}

#[tokio::test(flavor = "multi_thread")]
async fn who_does_not_see_everything_compares_nothing() {
    let fixture = filled().await;
    let url = fixture.settings.postgres.url_of("w_context_writer");
    let (well, printed, said) = replay(&fixture, &["--user", "1"], &[("MEMFLEET_POSTGRES__URL", &url)]).await;
    assert!(!well && printed.is_empty(), "{printed}");
    assert!(
        said.contains(
            "row-level security hides events from the role of postgres.url; use an administrator's"
        ),
        "{said}"
    );
}
