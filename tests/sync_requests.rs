//! memory-sync: what crosses, what conflicts, what is refused.

use std::time::SystemTime;

use memory_sync::{Job, MemorySync};
use serde_json::{Value, json};
use testkit::{Fixture, RequestMessage, request, session, token, user};

use crate::support::sync::{
    Sync, add_node, memory, open, payloads, process, put, put_as, remove, syncer, tick, with_sessions, write,
};

#[tokio::test(flavor = "multi_thread")]
async fn a_transfer_creates_fast_forwards_and_merges() {
    let fixture = with_sessions(&["a", "b"]).await;
    write(&fixture, [put("a", "trip", json!({ "from": "Porto" }), 1)]).await;
    let first = Sync::new();
    process(&fixture, [first.transfer("a", "b")]).await;
    assert_eq!(memory(&fixture, "b").await, [r#"trip={"from": "Porto"}"#]);
    assert_eq!(first.state(&fixture).await, "completed carried");
    assert_eq!(first.counted(&fixture, "created").await, "1");
    write(&fixture, [put("a", "trip", json!({ "from": "Lisbon" }), 2)]).await;
    let second = Sync::new();
    process(&fixture, [second.transfer("a", "b")]).await;
    assert_eq!(second.counted(&fixture, "fast_forwarded").await, "1");
    write(
        &fixture,
        [
            put("a", "trip", json!({ "from": "Lisbon", "to": "Faro" }), 3),
            // The target's publisher counts its versions from 1.
            put("b", "trip", json!({ "from": "Lisbon", "seats": 2 }), 1),
        ],
    )
    .await;
    let third = Sync::new();
    process(&fixture, [third.transfer("a", "b")]).await;
    assert_eq!(memory(&fixture, "b").await, [r#"trip={"to": "Faro", "from": "Lisbon", "seats": 2}"#]);
    assert_eq!(third.counted(&fixture, "merged").await, "1");
    assert_eq!(third.counted(&fixture, "conflicts").await, "0");
    let again = Sync::new();
    process(&fixture, [again.transfer("a", "b")]).await;
    let counts = "data_transferred ->> 'unchanged', data_transferred ->> 'merged'";
    let select = format!("concat_ws(' ', {counts}) FROM cross_service_memory_sync WHERE id = '{}'", again.id);
    assert_eq!(fixture.lines(&select).await, ["1 0"], "a sync that finds nothing new is at rest");
    let events =
        "concat_ws(' ', session_id, event_type) FROM blackboard_events WHERE event_type::text LIKE 'sync.%'
        ORDER BY event_sequence LIMIT 4";
    let expected = ["a sync.started", "b sync.carried", "a sync.completed", "b sync.completed"];
    assert_eq!(fixture.lines(events).await, expected);
    let carried = payloads(&fixture, "sync.carried").await;
    assert_eq!(carried.len(), 3);
    assert_eq!(carried[0]["keys"][0]["context_value"], json!({ "from": "Porto" }));
    assert_eq!(fixture.dead_letters().await, Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_loses_is_on_record_with_the_rule_that_decided() {
    let fixture = with_sessions(&["a", "b"]).await;
    write(&fixture, [put("a", "k", json!({ "x": 1, "y": 1 }), 1)]).await;
    process(&fixture, [Sync::new().transfer("a", "b")]).await;
    write(&fixture, [put("a", "k", json!({ "x": 2, "y": 1 }), 2)]).await;
    write(&fixture, [put("b", "k", json!({ "x": 3, "y": 1 }), 2)]).await;
    let sync = Sync::new();
    process(&fixture, [sync.transfer("a", "b")]).await;
    assert_eq!(memory(&fixture, "b").await, [r#"k={"x": 3, "y": 1}"#], "the later one stays");
    let select = format!("conflicts::text FROM sync_changes WHERE sync_id = '{}'", sync.id);
    let conflicts: Value = serde_json::from_str(&fixture.lines(&select).await[0]).expect("JSON");
    let conflict = &conflicts[0];
    assert_eq!((&conflict["path"], &conflict["cause"]), (&json!("/x"), &json!("edited")));
    assert_eq!((&conflict["rule"], &conflict["base"]), (&json!("preference"), &json!(1)));
    assert_eq!((&conflict["ours"], &conflict["theirs"]), (&json!(3), &json!(2)));
    assert_eq!((&conflict["kept"], &conflict["lost"][0]["value"]), (&json!(3), &json!(2)));
    assert_eq!(conflict["lost"][0]["session_id"], json!("a"));
    let column = format!(
        "conflict_resolution -> 'conflicts' -> 0 ->> 'context_key' FROM cross_service_memory_sync WHERE id = '{}'",
        sync.id
    );
    assert_eq!(fixture.lines(&column).await, ["k"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn private_stays_without_the_scope_and_expired_always() {
    let fixture = with_sessions(&["a", "b", "c"]).await;
    write(
        &fixture,
        [
            put_as("a", "mine", json!(1), 1, json!({})),
            put("a", "ours", json!(2), 1),
            put_as("a", "all", json!(3), 1, json!({ "access_level": "public" })),
            put_as(
                "a",
                "old",
                json!(4),
                1,
                json!({ "access_level": "shared", "expires_at": "2020-01-01T00:00:00Z" }),
            ),
            memory_of_agent("private"),
            memory_of_agent("shared"),
        ],
    )
    .await;
    let (without, with) = (Sync::new(), Sync::new());
    let narrow = scoped("sync:start", None);
    process(&fixture, [without.transfer("a", "b").with_token(&narrow), with.transfer("a", "c")]).await;
    assert_eq!(memory(&fixture, "b").await, ["all=3", "ours=2"]);
    assert_eq!(memory(&fixture, "c").await, ["all=3", "mine=1", "ours=2"]);
    assert_eq!(tiers(&fixture, "b").await, ["shared"]);
    assert_eq!(tiers(&fixture, "c").await, ["private", "shared"]);
    assert_eq!(without.counted(&fixture, "private").await, "2");
    assert_eq!(without.counted(&fixture, "expired").await, "1");
    assert_eq!(with.counted(&fixture, "private").await, "0");
    // The service needs the scope, too.
    fixture.register("test", "sync:start session:* context:*").await;
    let third = Sync::new();
    write(&fixture, [session(1, "d")]).await;
    process(&fixture, [third.transfer("a", "d")]).await;
    assert_eq!(third.counted(&fixture, "private").await, "2");
}

/// A memory of an agent in session a, of this tier.
fn memory_of_agent(tier: &str) -> RequestMessage {
    let body = json!({ "agent_id": "planner", "session_id": "a", "memory_tier": tier, "context_key": tier,
        "context_value": 1, "version": 1 });
    request("agent-context.put", 1, body)
}

/// The tiers of which a session has memories of agents.
async fn tiers(fixture: &Fixture, session: &str) -> Vec<String> {
    let select =
        format!("memory_tier FROM agent_context_states WHERE session_id = '{session}' ORDER BY memory_tier");
    fixture.lines(&select).await
}

/// A token of user 1 with these scopes, for one session if there is one.
fn scoped(scopes: &str, session: Option<&str>) -> String {
    let mut wanted = token::request("test", 1);
    wanted.scopes = trust::Scope::parse_list(scopes).expect("scopes");
    wanted.session = session.map(|id| contract::SessionId::new(id).expect("a session"));
    token::issuer().issue(&wanted, SystemTime::now()).expect("a token").token
}

#[tokio::test(flavor = "multi_thread")]
async fn a_filter_chooses_and_one_that_matches_nothing_completes_with_zero() {
    let fixture = with_sessions(&["a", "b", "c", "d", "e", "f"]).await;
    write(
        &fixture,
        [
            memory_of_agent("private"),
            memory_of_agent("shared"),
            memory_of_agent("consensus"),
            put("a", "trip.from", json!("Porto"), 1),
            put("a", "trip.to", json!("Faro"), 1),
            put_as(
                "a",
                "diet",
                json!("vegan"),
                1,
                json!({ "access_level": "public", "context_type": "preference" }),
            ),
        ],
    )
    .await;
    let filtered = |filter: Value, target: &str| {
        let sync = Sync::new();
        let more = json!({ "filter": filter });
        (sync, sync.start_as(1, "context_transfer", "a", target, more))
    };
    let (_, prefixes) = filtered(json!({ "prefixes": ["trip."], "access_levels": ["shared"] }), "b");
    let (_, types) = filtered(json!({ "types": ["preference"] }), "c");
    let (nothing, none) = filtered(json!({ "keys": ["nothing"] }), "d");
    let (of_tiers, two) = filtered(json!({ "tiers": ["private", "shared"] }), "e");
    // A list for contexts and one for memories of agents: nothing is both.
    let (neither, both) = filtered(json!({ "tiers": ["shared"], "types": ["preference"] }), "f");
    process(&fixture, [prefixes, types, none, two, both]).await;
    assert_eq!(memory(&fixture, "b").await, [r#"trip.from="Porto""#, r#"trip.to="Faro""#]);
    assert_eq!(memory(&fixture, "c").await, [r#"diet="vegan""#]);
    for (session, expected) in
        [("e", &["private", "shared"][..]), ("b", &[]), ("c", &[]), ("d", &[]), ("f", &[])]
    {
        assert_eq!(tiers(&fixture, session).await, expected, "{session}");
    }
    for session in ["d", "e", "f"] {
        assert_eq!(memory(&fixture, session).await, Vec::<String>::new(), "{session}");
    }
    assert_eq!(of_tiers.counted(&fixture, "created").await, "2");
    assert_eq!(of_tiers.counted(&fixture, "private").await, "0");
    assert_eq!(neither.counted(&fixture, "created").await, "0");
    assert_eq!(nothing.state(&fixture).await, "completed carried");
    let zero = format!("data_transferred::text FROM cross_service_memory_sync WHERE id = '{}'", nothing.id);
    let counts: Value = serde_json::from_str(&fixture.lines(&zero).await[0]).expect("JSON");
    assert!(counts.as_object().expect("counts").values().all(|count| *count == json!(0)), "{counts}");
}

async fn refused(fixture: &Fixture, request: RequestMessage) -> String {
    process(fixture, [request]).await;
    fixture.dead_letters().await.pop().unwrap_or_default()
}

#[tokio::test(flavor = "multi_thread")]
async fn bad_requests_are_refused() {
    let fixture = with_sessions(&["a", "b", "ended"]).await;
    write(
        &fixture,
        [put("a", "k", json!(1), 1), request("session.close", 1, json!({ "session_id": "ended" }))],
    )
    .await;
    let itself = refused(&fixture, Sync::new().transfer("a", "a")).await;
    assert!(itself.starts_with("malformed: target_session_id: is the source"), "{itself}");
    for (source, target, field) in [("ended", "b", "source_session_id"), ("a", "ended", "target_session_id")]
    {
        let ended = refused(&fixture, Sync::new().transfer(source, target)).await;
        assert!(ended.starts_with(&format!("permanent: {field}: session ended has ended")), "{ended}");
    }
    for session in ["a", "b"] {
        let bound = Sync::new().transfer("a", "b").with_token(&scoped("*:*", Some(session)));
        let bound = refused(&fixture, bound).await;
        assert!(bound.starts_with("denied: "), "{bound}");
    }
    let nodes = json!({ "filter": { "types": ["state"] } });
    let nodes = refused(&fixture, Sync::new().start_as(1, "knowledge_share", "a", "b", nodes)).await;
    assert!(nodes.starts_with("malformed: filter.types"), "{nodes}");
    assert_eq!(fixture.count("cross_service_memory_sync").await, 0);
    assert_eq!(memory(&fixture, "b").await, Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn the_same_sync_id_is_another_request_s_and_a_redelivery_changes_nothing() {
    let fixture = with_sessions(&["a", "b"]).await;
    write(&fixture, [put("a", "count.n", json!(5), 1)]).await;
    let (sync, worker) = (Sync::new(), fixture.run(syncer(&fixture)));
    let start = sync.transfer("a", "b");
    fixture.publish([start.clone(), start.clone(), sync.transfer("b", "a")]).await;
    fixture.drained::<MemorySync>().await;
    worker.stop().await.expect("a clean end");
    assert_eq!(memory(&fixture, "b").await, ["count.n=5"]);
    assert_eq!(fixture.count("cross_service_memory_sync").await, 1);
    assert_eq!(fixture.count("blackboard_events WHERE event_type = 'sync.started'").await, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_value_that_cannot_be_merged_fails_its_key_and_no_other() {
    let fixture = with_sessions(&["a", "b"]).await;
    write(&fixture, [put("a", "count.n", json!(1), 1), put("a", "other", json!(1), 1)]).await;
    process(&fixture, [Sync::new().transfer("a", "b")]).await;
    write(&fixture, [put("a", "count.n", json!(2), 2), put("a", "other", json!(2), 2)]).await;
    write(&fixture, [put("b", "count.n", json!("many"), 2)]).await;
    let sync = Sync::new();
    process(&fixture, [sync.transfer("a", "b")]).await;
    assert_eq!(memory(&fixture, "b").await, [r#"count.n="many""#, "other=2"]);
    assert_eq!(sync.state(&fixture).await, "completed carried");
    assert_eq!(sync.counted(&fixture, "failed").await, "1");
    let ended = payloads(&fixture, "sync.completed").await;
    let failures = &ended.last().expect("an event")["failures"];
    assert_eq!(failures[0]["context_key"], json!("count.n"));
    assert!(failures[0]["reason"].as_str().is_some_and(|text| text.contains("cannot merge")), "{failures}");
}

#[tokio::test(flavor = "multi_thread")]
async fn facts_are_never_merged_and_a_disputed_node_is_raised_once() {
    let fixture = with_sessions(&["a", "b"]).await;
    write(
        &fixture,
        [put("a", "fact.capital", json!("Lisbon"), 1), put("b", "fact.capital", json!("Porto"), 1)],
    )
    .await;
    let (there, back) = (Sync::new(), Sync::new());
    process(&fixture, [there.transfer("a", "b"), back.transfer("b", "a")]).await;
    assert_eq!(memory(&fixture, "a").await, [r#"fact.capital="Lisbon""#]);
    assert_eq!(memory(&fixture, "b").await, [r#"fact.capital="Porto""#]);
    let node = "concat_ws(' ', node_type, node_key, validation_status) FROM consensus_memory_nodes";
    assert_eq!(fixture.lines(node).await, ["sync-dispute fact.capital disputed"]);
    assert_eq!(there.counted(&fixture, "disputes").await, "1");
    let disputed = payloads(&fixture, "sync.disputed").await;
    assert_eq!(disputed[0]["sessions"], json!(["a", "b"]));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_removal_crosses_and_is_forgotten_when_all_have_seen_it() {
    let fixture = with_sessions(&["a", "b", "c"]).await;
    write(&fixture, [put("a", "k", json!("to be removed"), 1)]).await;
    process(&fixture, [Sync::new().transfer("a", "b"), Sync::new().transfer("b", "c")]).await;
    write(&fixture, [remove("a", "k", 2)]).await;
    let left = "simple_chat_context WHERE session_id = 'a' AND sync_values IS NOT NULL";
    assert_eq!(fixture.count(left).await, 0, "a removed key keeps no value");
    // Without the scope: the removal of a shared key is no private matter.
    let narrow = scoped("sync:start", None);
    process(&fixture, [Sync::new().transfer("a", "b").with_token(&narrow)]).await;
    assert_eq!(memory(&fixture, "b").await, Vec::<String>::new());
    let worker = fixture.run(syncer(&fixture));
    tick(&fixture, Job::Forget).await;
    let known = "simple_chat_context WHERE sync_state IS NOT NULL";
    assert_eq!(fixture.count(known).await, 3, "session c has not seen it");
    fixture.publish([Sync::new().transfer("b", "c")]).await;
    fixture.drained::<MemorySync>().await;
    tick(&fixture, Job::Forget).await;
    assert_eq!(fixture.count(known).await, 0);
    fixture.publish([Sync::new().transfer("c", "a"), Sync::new().transfer("a", "b")]).await;
    fixture.drained::<MemorySync>().await;
    worker.stop().await.expect("a clean end");
    assert_eq!(
        fixture.count("simple_chat_context WHERE removed_at IS NULL").await,
        0,
        "it does not come back"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_of_another_user_is_nobody_s_here() {
    let fixture = open(with_sessions(&["a"]).await, 2, &["theirs"]).await;
    write(&fixture, [user(2)]).await;
    let mut settings = fixture.settings.clone();
    settings.worker.retry_first_delay_ms = 500;
    settings.worker.retry_longest_delay_ms = 1_000;
    let worker = fixture.run_with(syncer(&fixture), settings);
    fixture.publish([Sync::new().transfer("a", "theirs")]).await;
    fixture.drained::<MemorySync>().await;
    worker.stop().await.expect("a clean end");
    let dead = fixture.dead_letters().await;
    // As if nobody had it: whose it is, is not told.
    assert_eq!(dead, ["missing-prerequisite: target_session_id: user 1 has opened no session theirs"]);
    let violations = "concat_ws(' ', violation_type, service) FROM audit.security_violations v
        JOIN audit.subjects s ON s.token = v.subject_token WHERE s.user_id = 1";
    assert_eq!(fixture.lines(violations).await, ["unknown-session claimed:test"]);
    let foreign = "concat_ws(' ', user_id, service, session_id, owners) FROM audit.foreign_sessions()";
    assert_eq!(fixture.lines(foreign).await, ["1 claimed:test theirs {2}"]);
    assert_eq!(fixture.count("cross_service_memory_sync").await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn sessions_of_two_users_with_the_same_names_are_each_ones_own() {
    let fixture = open(with_sessions(&["a", "b"]).await, 2, &["a", "b"]).await;
    let theirs = json!({ "session_id": "a", "context_key": "k", "context_value": "theirs", "version": 1, "access_level": "shared" });
    write(&fixture, [put("a", "k", json!("own"), 1), request("context.put", 2, theirs)]).await;
    let (own, other) = (Sync::new(), Sync::new());
    // In one batch, under one id for both.
    let of_other = Sync { id: own.id }.start_as(2, "context_transfer", "a", "b", json!({}));
    process(&fixture, [own.transfer("a", "b"), of_other]).await;
    let carried =
        "concat_ws(' ', user_id, context_value) FROM simple_chat_context WHERE session_id = 'b' ORDER BY 1";
    assert_eq!(fixture.lines(carried).await, [r#"1 "own""#, r#"2 "theirs""#]);
    // A session that user 1 alone has is none of user 2's.
    write(&fixture, [session(1, "c"), session(2, "d")]).await;
    process(&fixture, [other.start_as(2, "context_transfer", "a", "d", json!({}))]).await;
    assert_eq!(other.state(&fixture).await, "completed carried");
    assert_eq!(other.counted(&fixture, "created").await, "1");
    assert_eq!(fixture.dead_letters().await, Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn validated_knowledge_is_shared_by_reference_and_taken_back() {
    let fixture = with_sessions(&["a", "b", "c"]).await;
    // Nodes that tasks of session a made: one is validated, one is not, one has been superseded.
    let node = |n: u8| format!("0193c0de-0000-7000-8000-0000000000a{n}");
    for (n, status, valid_to) in [
        (1, "validated", "NULL"),
        (2, "unvalidated", "NULL"),
        (3, "superseded", "now() + interval '1 second'"),
    ] {
        add_node(&fixture, &node(n), &format!("river.{n}"), status, valid_to).await;
    }
    let (first, on) = (Sync::new(), Sync::new());
    process(&fixture, [first.start("knowledge_share", "a", "b"), on.start("knowledge_share", "b", "c")])
        .await;
    let references = "concat_ws(' ', session_id, node_id) FROM session_knowledge ORDER BY session_id";
    assert_eq!(fixture.lines(references).await, [format!("b {}", node(1)), format!("c {}", node(1))]);
    assert_eq!(first.counted(&fixture, "references").await, "1");
    assert_eq!(first.counted(&fixture, "withheld").await, "2");
    assert_eq!(first.state(&fixture).await, "completed carried");
    assert_eq!(fixture.count("consensus_memory_nodes").await, 3, "nothing is copied");
    let carried = payloads(&fixture, "sync.carried").await;
    assert_eq!(carried[0]["nodes"], json!([node(1)]));
    let none = Sync::new();
    let other = json!({ "filter": { "prefixes": ["mountain."] } });
    process(&fixture, [none.start_as(1, "knowledge_share", "a", "b", other), first.undo()]).await;
    assert_eq!(none.counted(&fixture, "references").await, "0");
    assert_eq!(fixture.lines(references).await, [format!("c {}", node(1))]);
    assert_eq!(payloads(&fixture, "sync.undone").await[0]["nodes"], json!([node(1)]));
}
