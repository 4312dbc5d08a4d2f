//! Routing decisions: found in their table, in the event stream, and in what is learnt from them.

use std::time::Duration;

use config::Settings;
use context_writer::ContextWriter;
use contract::header;
use diesel_async::SimpleAsyncConnection;
use router_logger::RouterLogger;
use serde_json::{Value, json};
use testkit::{
    CANARY, Fixture, RequestMessage, context, eventually, request, session, set_duplicate_window,
    set_redelivery, user,
};
use tokio::process::Child;
use uuid::Uuid;

use crate::support::program::start_worker;

fn decision(user: i32, fields: Value) -> RequestMessage {
    let mut body = json!({ "decision_id": Uuid::now_v7(), "session_id": "s", "user_request": "Plan it",
        "routing_decision": { "route": "direct" } });
    let given = fields.as_object().expect("fields").clone();
    body.as_object_mut().expect("an object").extend(given);
    request("decision.log", user, body)
}

/// Users with a session each.
async fn with_sessions(users: impl IntoIterator<Item = i32>) -> Fixture {
    let fixture = Fixture::with_topology(|topology| {
        set_duplicate_window(topology, "ROUTER", Duration::from_millis(100));
        // What a dead worker held comes back soon, and often enough for all the deaths.
        set_redelivery(topology, "router-logger", Duration::from_secs(2), 1_000);
    })
    .await;
    let users: Vec<i32> = users.into_iter().collect();
    let opened = users.iter().map(|&id| user(id)).chain(users.iter().map(|&id| session(id, "s")));
    fixture.process(ContextWriter, opened.collect::<Vec<_>>()).await;
    fixture
}

/// Rows in which the patterns and what follows from the log differ, and the number of patterns.
async fn differences(fixture: &Fixture) -> (i64, i64) {
    const COLUMNS: &str =
        "user_id, hour, chat_mode, route, tool, model, decisions, successes, timed, times, time_ms_sum,
        tokens_sum, complexity_sum, confidence_sum";
    let recomputed = format!("SELECT {COLUMNS} FROM ({}) AS r", router_logger::store::RECOMPUTED);
    let kept = format!("SELECT {COLUMNS} FROM router_hourly_patterns");
    let either =
        format!("(({recomputed}) EXCEPT ALL ({kept})) UNION ALL (({kept}) EXCEPT ALL ({recomputed}))");
    (fixture.count(&format!("({either}) AS different")).await, fixture.count("router_hourly_patterns").await)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_decision_is_found_in_its_table_its_event_and_its_patterns() {
    let fixture = with_sessions([1]).await;
    let id = "0193c0de-0000-7000-8000-000000000031";
    let full = json!({ "decision_id": id, "user_request": "Tea?",
        "routing_decision": { "route": "tools", "why": ["tea"] },
        "tools_invoked": ["kettle", { "name": "cup", "n": 2 }, { "tool": "kettle" }, 7], "complexity_score": 0.1,
        "confidence_score": 0.75, "processing_time_ms": 1000, "tokens_used": 64, "model_used": "small", "success": false,
        "error_details": { "kettle": "cold" }, "decided_at": "2026-03-01T10:59:59.5Z" });
    fixture.process(RouterLogger, [decision(1, full), decision(1, json!({}))]).await;
    assert_eq!(fixture.dead_letters().await, Vec::<String>::new());

    let rows = fixture
        .lines("concat_ws(' ', session_id, user_request, routing_decision, tools_invoked, complexity_score, confidence_score, processing_time_ms, tokens_used, model_used, success, error_details, created_at, chat_mode) FROM router_decision_log ORDER BY id")
        .await;
    assert_eq!(
        rows[0],
        "s Tea? {\"why\": [\"tea\"], \"route\": \"tools\"} [\"kettle\", {\"n\": 2, \"name\": \"cup\"}, {\"tool\": \"kettle\"}, 7] 0.1 0.75 1000 64 small f {\"kettle\": \"cold\"} 2026-03-01 10:59:59.5+00 simple"
    );
    assert_eq!(rows.len(), 2);
    let linked = fixture
        .lines("concat_ws(' ', e.event_type, e.performative, e.event_payload ->> 'user_request', jsonb_array_length(e.event_payload -> 'tools_invoked')) FROM router_decision_log d JOIN blackboard_events e ON e.id = d.blackboard_event_id AND e.request_id = d.request_id ORDER BY d.id")
        .await;
    assert_eq!(linked, ["decision.logged inform Tea? 4", "decision.logged inform Plan it"]);
    let patterns = fixture
        .lines("concat_ws(' ', hour, chat_mode, route, tool, model, decisions, successes, timed, times, time_ms_sum, tokens_sum, complexity_sum, confidence_sum, router_bucket_end(79)) FROM router_hourly_patterns WHERE hour < '2026-04-01' ORDER BY tool")
        .await;
    let expected = ["", "cup", "kettle", "unknown"].map(|tool| {
        format!("2026-03-01 10:00:00+00 simple tools {tool} small 1 0 1 {{\"79\": 1}} 1000 64 0.1 0.75 1022")
    });
    assert_eq!(patterns, expected);
    assert_eq!(differences(&fixture).await, (0, 5));
}

#[tokio::test(flavor = "multi_thread")]
async fn whatever_shape_a_route_has_it_is_kept_and_counted() {
    let fixture = with_sessions([1]).await;
    let shapes = [
        (json!("direct"), "direct"),
        (json!({ "route": "tools" }), "tools"),
        (json!({ "route": { "deep": 1 } }), "unknown"),
        (json!({ "path": "a" }), "unknown"),
        (json!([1, 2]), "unknown"),
        (json!(7), "unknown"),
        (json!(null), "unknown"),
        (json!(""), "unknown"),
        (json!("é".repeat(300)), &*"é".repeat(200)),
    ];
    let logged = shapes.iter().map(|(shape, _)| decision(1, json!({ "routing_decision": shape })));
    fixture.process(RouterLogger, logged.collect::<Vec<_>>()).await;
    let kept = fixture.lines("routing_decision FROM router_decision_log ORDER BY id").await;
    let kept: Vec<Value> = kept.iter().map(|text| serde_json::from_str(text).unwrap()).collect();
    assert_eq!(kept, shapes.clone().map(|(shape, _)| shape));
    let mut expected: Vec<&str> = shapes.iter().map(|(_, route)| *route).collect();
    expected.sort_unstable();
    expected.dedup();
    assert_eq!(
        fixture.lines("route FROM router_hourly_patterns ORDER BY route COLLATE \"C\"").await,
        expected
    );
    assert_eq!(differences(&fixture).await.0, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_decision_with_the_same_id_changes_nothing() {
    let fixture = with_sessions([1, 2]).await;
    let twice = json!({ "decision_id": Uuid::now_v7(), "processing_time_ms": 5 });
    let other = json!({ "decision_id": twice["decision_id"], "processing_time_ms": 900, "routing_decision": "other" });
    // In one batch, in another one, and of another user, whose ids are none of the first one's.
    let worker = fixture.run(RouterLogger);
    fixture
        .publish([decision(1, twice.clone()), decision(1, other.clone()), decision(2, other.clone())])
        .await;
    fixture.drained::<RouterLogger>().await;
    fixture.publish([decision(1, other)]).await;
    fixture.drained::<RouterLogger>().await;
    assert_eq!(worker.stats.report().unchanged, 2);
    worker.stop().await.expect("a clean end");
    let rows = fixture
        .lines("concat_ws(' ', user_id, processing_time_ms) FROM router_decision_log ORDER BY 1")
        .await;
    assert_eq!(rows, ["1 5", "2 900"]);
    assert_eq!(fixture.count("blackboard_events WHERE event_type = 'decision.logged'").await, 2);
    assert_eq!(differences(&fixture).await, (0, 2));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_calls_of_tools_go_to_the_event_stream() {
    let fixture = with_sessions([1]).await;
    let call = Uuid::now_v7();
    let report = |phase: &str| {
        let body = json!({ "session_id": "s", "tool": "kettle", "call_id": call, "phase": phase, "detail": { "cups": 2 } });
        request("tool.report", 1, body)
    };
    let mut events = fixture.subscribe("memory.event.tool.reported.1").await;
    fixture.process(RouterLogger, ["requested", "succeeded", "failed"].map(report)).await;
    for performative in ["request", "inform", "failure"] {
        let event = testkit::next(&mut events).await;
        let event: Value = serde_json::from_slice(&event.payload).unwrap();
        assert_eq!(event["performative"], performative, "{event}");
        assert_eq!(event["target_agent_id"], "kettle");
        assert_eq!(event["payload"]["detail"]["cups"], 2);
    }
    let stored = fixture.lines("concat_ws(' ', target_agent_id, performative) FROM blackboard_events WHERE event_type = 'tool.reported' ORDER BY event_sequence").await;
    assert_eq!(stored, ["kettle request", "kettle inform", "kettle failure"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_wrong_is_named() {
    let fixture = with_sessions([1, 2]).await;
    let foreign = fixture.lines("id FROM blackboard_events WHERE user_id = 2 LIMIT 1").await.remove(0);
    let cases = [
        (
            decision(1, json!({ "processing_time_ms": -1 })),
            "malformed: processing_time_ms: -1 is not between 0 and 86400000",
        ),
        (
            decision(1, json!({ "complexity_score": 1.01 })),
            "malformed: complexity_score: 1.01 is not between 0 and 1",
        ),
        (
            decision(1, json!({ "confidence_score": -0.1 })),
            "malformed: confidence_score: -0.1 is not between 0 and 1",
        ),
        (decision(1, json!({ "decided_at": "-262143-01-01T00:00:00Z" })), "malformed: decided_at"),
        (
            decision(1, json!({ "tools_invoked": [0, 0, 0, 0, 0] }))
                .map_body(|body| body.replace("[0,0,0,0,0]", "[1e65536,1e65536,1e65536,1e65536,1e65536]")),
            "malformed: body: holds numbers that take more than",
        ),
        (decision(1, json!({ "tokens_used": 1.5 })), "malformed: tokens_used"),
        (decision(1, json!({ "tools_invoked": {} })), "malformed: tools_invoked"),
        (
            decision(1, json!({ "session_id": "never" })),
            "missing-prerequisite: session_id: user 1 has opened no session never",
        ),
        (
            decision(1, json!({})).with(header::PARENT_EVENT, &foreign),
            "permanent: Memfleet-Parent-Event: no event with this id for this user",
        ),
        (
            decision(1, json!({})).with(header::PARENT_EVENT, Uuid::now_v7()),
            "permanent: Memfleet-Parent-Event: no event with this id for this user",
        ),
        (
            request(
                "tool.report",
                1,
                json!({ "session_id": "never", "tool": "t", "call_id": Uuid::nil(), "phase": "failed" }),
            ),
            "missing-prerequisite: session_id: user 1 has opened no session never",
        ),
        (
            request(
                "tool.report",
                1,
                json!({ "session_id": "s", "tool": "t", "call_id": Uuid::nil(), "phase": "lost" }),
            ),
            "malformed: phase",
        ),
    ];
    // The foreign event is in the same batch's context, too.
    let good = decision(2, json!({}));
    let asked = cases.iter().map(|(request, _)| request.clone()).chain([good]);
    fixture.process(RouterLogger, asked.collect::<Vec<_>>()).await;
    let (mut dead, mut expected) = (fixture.dead_letters().await, cases.map(|(_, reason)| reason));
    dead.sort();
    expected.sort_unstable();
    assert_eq!(dead.len(), expected.len(), "{dead:#?}");
    for (dead, expected) in dead.iter().zip(expected) {
        assert!(dead.starts_with(expected), "{dead}, not {expected}");
    }
    assert_eq!(fixture.count("router_decision_log").await, 1);
    assert_eq!(differences(&fixture).await, (0, 1));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sensitive_decision_is_stored_encrypted_only() {
    let fixture = with_sessions([1]).await;
    let secret = json!({ "user_request": CANARY, "error_details": { "what": CANARY }, "sensitive": true });
    fixture.process(RouterLogger, [decision(1, secret)]).await;
    let rows = fixture
        .lines("concat_ws(' ', user_request, error_details, is_sensitive) FROM router_decision_log")
        .await;
    assert_eq!(rows, ["$encrypted \"$encrypted\" t"]);
    let fields = fixture
        .lines("concat_ws(' ', f.table_name, f.column_name) FROM encrypted_fields f JOIN router_decision_log d ON d.id = f.row_id ORDER BY 1")
        .await;
    assert_eq!(fields, ["router_decision_log error_details", "router_decision_log user_request"]);
    assert_eq!(
        fixture.count(&format!("blackboard_events WHERE event_payload::text LIKE '%{CANARY}%'")).await,
        0
    );
    // With its row the ciphertext goes.
    fixture.execute("DELETE FROM router_decision_log").await;
    assert_eq!(fixture.count("encrypted_fields").await, 0);
}

const USERS: i32 = 20;
const DECISIONS: usize = 3_000;

/// Decisions of all sorts over several hours.
fn many() -> Vec<RequestMessage> {
    let mut random = fastrand::Rng::with_seed(11);
    let mut any = |number: usize| {
        let tools: Vec<&str> = ["a", "b", "c", "d"].into_iter().take(random.usize(..5)).collect();
        let fields = json!({ "routing_decision": { "route": random.choice(["direct", "tools", "expert"]) },
            "tools_invoked": tools, "complexity_score": random.f64(), "confidence_score": random.f64(),
            "processing_time_ms": if random.u8(..10) == 0 { Value::Null } else { random.u32(..20_000).into() },
            "tokens_used": random.u32(..4_000), "model_used": random.choice(["small", "large"]), "success": random.bool(),
            "decided_at": format!("2026-11-01T{:02}:{:02}:00Z", random.u8(..24), random.u8(..60)) });
        decision(1 + number as i32 % USERS, fields)
    };
    (0..DECISIONS).map(&mut any).collect()
}

fn start(fixture: &Fixture, crash_at: Option<&str>) -> Child {
    start_worker(fixture, "router-logger", crash_at, &[("MEMFLEET_WORKER__BATCH_SIZE", "100")])
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_learnt_is_what_the_log_says_also_after_repeats_and_deaths() {
    let fixture = with_sessions(1..=USERS).await;
    let decisions = many();
    let publishing = async {
        for chunk in decisions.chunks(300) {
            fixture.publish(chunk.to_vec()).await;
            // So far apart that the broker has forgotten the first.
            fixture.publish(decisions.iter().step_by(13).cloned()).await;
        }
    };
    let dying = async {
        for point in ["Taken:2", "Written:3", "Committed:2", "EventsPublished:2", "Acknowledging:120"] {
            let mut pair = [start(&fixture, Some(point)), start(&fixture, Some(point))];
            let ended = tokio::time::timeout(testkit::DEADLINE, pair[0].wait()).await;
            assert!(!ended.expect("it dies where it should").expect("a status").success());
            pair[1].start_kill().expect("SIGKILL");
            pair[1].wait().await.expect("a status");
        }
    };
    tokio::join!(publishing, dying);
    let survivors = [start(&fixture, None), start(&fixture, None)];
    fixture.drained::<RouterLogger>().await;
    drop(survivors);

    assert_eq!(fixture.dead_letters().await, Vec::<String>::new());
    assert_eq!(fixture.count("router_decision_log").await, DECISIONS as i64);
    let (different, patterns) = differences(&fixture).await;
    assert_eq!(different, 0);
    assert!(patterns > 1_000, "{patterns}");
    assert_eq!(
        fixture.lines("sum(decisions) FROM router_hourly_patterns WHERE tool = ''").await,
        [DECISIONS.to_string()]
    );
}

/// As if the streams' subjects were configured wrongly.
#[test]
fn each_worker_takes_its_own_requests_only() {
    let of_another = context(1, "s", "k", 1);
    let subject = of_another.subject.parse().unwrap();
    let refused =
        contract::Redacted::<contract::RouterRequest>::decode(&subject, &of_another.body).unwrap_err();
    assert_eq!(refused.to_string(), "subject: context.put is not for router-logger");
    let own = decision(1, json!({}));
    let refused =
        contract::Redacted::<contract::ContextRequest>::decode(&own.subject.parse().unwrap(), &own.body)
            .unwrap_err();
    assert_eq!(refused.to_string(), "subject: decision.log is not for context-writer");
}

/// A budget of two attempts, which lasts for some milliseconds.
fn hasty(fixture: &Fixture) -> Settings {
    let mut settings = fixture.settings.clone();
    settings.worker.retry_attempts = 2;
    settings.worker.retry_longest_delay_ms = 10;
    settings
}

const UNMET: &str = "missing-prerequisite: session_id: user 1 has opened no session never";

#[tokio::test(flavor = "multi_thread")]
async fn decisions_wait_as_long_as_the_worker_that_opens_their_sessions_is_behind() {
    // With accounts, so that router-logger has the right to see how far context-writer is.
    let fixture = Fixture::secured().await;
    let logger = fixture.run_with(RouterLogger, hasty(&fixture));
    fixture.publish((1..=20).flat_map(|id| [user(id), session(id, "s")])).await;
    fixture.publish((1..=20).map(|id| decision(id, json!({})))).await;
    fixture.publish([decision(1, json!({ "session_id": "never" }))]).await;
    let stats = &logger.stats;
    eventually("all have waited several times", async || (stats.report().delayed > 6 * 21).then_some(()))
        .await;
    let report = stats.report();
    assert_eq!((report.retried, report.dead.len()), (0, 0), "no attempt is counted: {report:?}");

    let writer = fixture.run(ContextWriter);
    fixture.drained::<ContextWriter>().await;
    fixture.drained::<RouterLogger>().await;
    assert_eq!(fixture.count("router_decision_log").await, 20);
    assert_eq!(fixture.dead_letters().await, [UNMET], "once context-writer is not behind, its budget counts");
    assert_eq!(stats.report().retried, 1);
    writer.stop().await.expect("a clean end");
    logger.stop().await.expect("a clean end");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_service_has_a_limited_number_of_decisions_that_wait_for_another_worker() {
    let fixture = Fixture::secured().await;
    let mut settings = hasty(&fixture);
    settings.worker.waiting_per_service = 15;
    let logger = fixture.run_with(RouterLogger, settings);
    fixture.publish((1..=20).flat_map(|id| [user(id), session(id, "s")])).await;
    fixture.publish((1..=20).map(|id| decision(id, json!({})))).await;
    eventually("some are dead-lettered", async || (fixture.dead_letters().await.len() >= 5).then_some(()))
        .await;
    let writer = fixture.run(ContextWriter);
    fixture.drained::<ContextWriter>().await;
    fixture.drained::<RouterLogger>().await;
    let letters = fixture.dead_letters().await;
    let reason = "exhausted: too many messages of its service wait for other workers or for locked rows";
    assert!(letters.iter().all(|letter| letter == reason), "{letters:?}");
    assert_eq!(fixture.count("router_decision_log").await + i64::try_from(letters.len()).expect("few"), 20);
    writer.stop().await.expect("a clean end");
    logger.stop().await.expect("a clean end");
}

#[tokio::test(flavor = "multi_thread")]
async fn decisions_wait_while_a_lock_keeps_their_session_from_being_opened() {
    let fixture = Fixture::new().await;
    let (logger, writer) = (fixture.run_with(RouterLogger, hasty(&fixture)), fixture.run(ContextWriter));
    fixture.publish((1..=20).map(user)).await;
    fixture.drained::<ContextWriter>().await;
    let mut holder = fixture.connection().await;
    let lock =
        "SET idle_in_transaction_session_timeout = 0; BEGIN; SELECT FROM users WHERE id = 1 FOR UPDATE";
    holder.batch_execute(lock).await.expect("a lock");
    fixture.publish((1..=20).map(|id| session(id, "s"))).await;
    fixture.publish((1..=20).map(|id| decision(id, json!({})))).await;
    eventually("the other decisions are written", async || {
        (fixture.count("router_decision_log").await == 19).then_some(())
    })
    .await;
    let before = logger.stats.report().delayed;
    eventually("the decision has waited several times", async || {
        (logger.stats.report().delayed > before + 5).then_some(())
    })
    .await;
    holder.batch_execute("ROLLBACK").await.expect("no lock");
    fixture.drained::<RouterLogger>().await;
    assert_eq!(fixture.count("router_decision_log").await, 20);
    assert_eq!(fixture.dead_letters().await, Vec::<String>::new());
    writer.stop().await.expect("a clean end");
    logger.stop().await.expect("a clean end");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_decision_does_not_wait_for_a_worker_whose_progress_is_unknown_or_for_longer_than_it_may() {
    let fixture = Fixture::new().await;
    let never = || decision(1, json!({ "session_id": "never" }));
    fixture.publish([user(1)]).await;
    let mut settings = hasty(&fixture);
    settings.worker.prerequisite_wait_s = 0;
    let logger = fixture.run_with(RouterLogger, settings);
    fixture.publish([never()]).await;
    fixture.drained::<RouterLogger>().await;
    logger.stop().await.expect("a clean end");
    assert_eq!(fixture.dead_letters().await, [UNMET]);

    let logger = fixture.run_with(RouterLogger, hasty(&fixture));
    fixture.publish([never()]).await;
    eventually("it waits for context-writer", async || (logger.stats.report().delayed > 2).then_some(()))
        .await;
    fixture.jetstream.delete_consumer_from_stream("context-writer", "CONTEXT").await.expect("a deletion");
    fixture.drained::<RouterLogger>().await;
    assert_eq!(fixture.dead_letters().await, [UNMET, UNMET]);
    logger.stop().await.expect("a clean end");
}
