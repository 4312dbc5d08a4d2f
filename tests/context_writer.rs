//! Every request of the context-writer, found again in its table.

use context_writer::ContextWriter;
use contract::REQUESTS;
use serde_json::{Value, json};
use testkit::{Fixture, RequestMessage, request};
use uuid::Uuid;

const MESSAGE: &str = "0193c0de-0000-7000-8000-000000000001";
const DEVICE: &str = "0193c0de-0000-7000-8000-000000000002";

/// One of each kind that stores something, in the order of need.
fn stores() -> Vec<RequestMessage> {
    vec![
        request(
            "user.put",
            1,
            json!({ "username": "ada", "email": "ada@example.org", "password_hash": format!("$argon2id${}", testkit::CANARY), "role": "admin" }),
        ),
        request(
            "profile.put",
            1,
            json!({ "first_name": "Ada", "timezone": "Europe/London", "preferences": { "tone": "dry" } }),
        ),
        request("setting.put", 1, json!({ "setting_key": "theme", "setting_value": { "dark": true } })),
        request("setting.put", 0, json!({ "setting_key": "banner", "setting_value": null })),
        request(
            "device.put",
            1,
            json!({ "device_id": DEVICE, "device_name": "desk", "device_type": "desktop", "security_level": "trusted" }),
        ),
        request(
            "second-factor.put",
            1,
            json!({ "method": "totp", "secret_key": testkit::CANARY, "backup_codes": [testkit::CANARY], "is_enabled": true }),
        ),
        request(
            "passkey.put",
            1,
            json!({ "credential_id": "cred", "public_key": testkit::CANARY, "sign_count": 7 }),
        ),
        request(
            "session.open",
            1,
            json!({ "session_id": "s", "chat_mode": "expert-group", "configuration": { "model": "m" }, "parent_session_id": "earlier", "session_metadata": { "n": 1 } }),
        ),
        request(
            "context.put",
            1,
            json!({ "session_id": "s", "context_key": "k", "context_value": [1, "zwei", null], "context_type": "preference",
                "access_level": "shared", "priority": 5, "version": 1, "expires_at": "2030-01-02T03:04:05Z", "is_persistent": true }),
        ),
        request(
            "summary.put",
            1,
            json!({ "session_id": "s", "summary": "It went well.", "key_topics": ["tea", "cake"] }),
        ),
        request(
            "conversation.put",
            1,
            json!({ "conversation_id": "c", "summary": "About tea", "metadata": { "lang": "en" } }),
        ),
        request(
            "message.add",
            1,
            json!({ "message_id": MESSAGE, "conversation_id": "c", "role": "user", "content": "Tea? \u{1f375}" }),
        ),
        request(
            "feedback.put",
            1,
            json!({ "message_id": MESSAGE, "feedback_type": "rating", "rating": 5, "comment": "nice" }),
        ),
        request("agent-context.put", 1, agent("private", 1)),
        request("agent-context.put", 1, agent("shared", 1)),
        request("agent-context.put", 1, agent("consensus", 1)),
    ]
}

fn agent(tier: &str, version: i64) -> Value {
    json!({ "agent_id": "planner", "session_id": "s", "memory_tier": tier, "context_key": "k",
        "context_value": { "tier": tier }, "is_shareable": true, "version": version })
}

/// What the tables hold after [`stores`].
const ROWS: &[(&str, &str)] = &[
    (
        "concat_ws(' ', username, email, password_hash, role, status) FROM users WHERE id = 1",
        "ada ada@example.org $encrypted admin active",
    ),
    (
        "concat_ws(' ', first_name, last_name, timezone, preferences) FROM user_profiles",
        "Ada Europe/London {\"tone\": \"dry\"}",
    ),
    (
        "concat_ws(' ', setting_key, setting_value, is_global) FROM system_settings WHERE user_id = 1",
        "theme {\"dark\": true} f",
    ),
    (
        "concat_ws(' ', setting_key, setting_value, is_global) FROM system_settings WHERE user_id = 0",
        "banner null t",
    ),
    (
        "concat_ws(' ', id, device_name, device_type, security_level) FROM registered_devices",
        "0193c0de-0000-7000-8000-000000000002 desk desktop trusted",
    ),
    (
        "concat_ws(' ', method, secret_key, backup_codes, is_enabled) FROM user_two_factor_auth",
        "totp $encrypted [\"$encrypted\"] t",
    ),
    ("concat_ws(' ', credential_id, public_key, sign_count) FROM passkey_credentials", "cred $encrypted 7"),
    (
        "concat_ws(' ', session_id, chat_mode, configuration, parent_session_id, is_active, session_metadata, ended_at) FROM chat_mode_sessions",
        "s expert-group {\"model\": \"m\"} earlier t {\"n\": 1}",
    ),
    (
        "concat_ws(' ', session_id, context_key, context_value, context_type, access_level, priority, version, expires_at, is_persistent) FROM simple_chat_context",
        "s k [1, \"zwei\", null] preference shared 5 1 2030-01-02 03:04:05+00 t",
    ),
    (
        "concat_ws(' ', session_id, summary, key_topics) FROM chat_session_summary",
        "s It went well. [\"tea\", \"cake\"]",
    ),
    (
        "concat_ws(' ', conversation_id, summary, metadata) FROM chat_history",
        "c About tea {\"lang\": \"en\"}",
    ),
    (
        "concat_ws(' ', m.id, h.conversation_id, m.role, m.content) FROM chat_messages m JOIN chat_history h ON h.id = m.history_id",
        "0193c0de-0000-7000-8000-000000000001 c user Tea? \u{1f375}",
    ),
    (
        "concat_ws(' ', message_id, feedback_type, rating, comment) FROM message_feedback",
        "0193c0de-0000-7000-8000-000000000001 rating 5 nice",
    ),
    (
        "concat_ws(' ', agent_id, session_id, context_value, is_shareable, version) FROM agent_context_states WHERE memory_tier = 'private'",
        "planner s {\"tier\": \"private\"} t 1",
    ),
    (
        "concat_ws(' ', agent_id, session_id, context_value, is_shareable, version) FROM agent_context_states WHERE memory_tier = 'consensus'",
        "planner s {\"tier\": \"consensus\"} t 1",
    ),
];

#[tokio::test(flavor = "multi_thread")]
async fn every_request_is_found_in_its_table() {
    let fixture = Fixture::new().await;
    let requests = stores();
    fixture.publish(requests.clone()).await;
    let worker = fixture.run(ContextWriter);
    fixture.drained::<ContextWriter>().await;
    assert_eq!(fixture.dead_letters().await, Vec::<String>::new());
    for (query, row) in ROWS {
        assert_eq!(fixture.lines(query).await, [*row], "{query}");
    }
    let events = fixture.lines("event_payload FROM blackboard_events").await;
    assert_eq!(events.len(), requests.len(), "each effect has its event");
    assert!(
        !events.iter().any(|payload| payload.contains("canary")),
        "no secret is in an event: {events:#?}"
    );
    for message in fixture.messages("EVENTS").await {
        let body = String::from_utf8_lossy(&message.payload).into_owned();
        assert!(!body.contains("canary"), "no secret is in a published event: {body}");
    }
    worker.stop().await.expect("a clean end");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_removed_is_gone_and_stays_gone() {
    let fixture = Fixture::new().await;
    let worker = fixture.run(ContextWriter);
    fixture.publish(stores()).await;
    fixture.drained::<ContextWriter>().await;
    let removals = [
        request("setting.remove", 1, json!({ "setting_key": "theme" })),
        request("device.remove", 1, json!({ "device_id": DEVICE })),
        request("second-factor.remove", 1, json!({ "method": "totp" })),
        request("passkey.remove", 1, json!({ "credential_id": "cred" })),
        request("context.remove", 1, json!({ "session_id": "s", "context_key": "k", "version": 2 })),
        request(
            "agent-context.remove",
            1,
            json!({ "agent_id": "planner", "session_id": "s", "memory_tier": "private", "context_key": "k", "version": 2 }),
        ),
        request("session.close", 1, json!({ "session_id": "s" })),
    ];
    fixture.publish(removals).await;
    fixture.drained::<ContextWriter>().await;
    // Older versions that come late.
    let late = [stores().swap_remove(8), request("agent-context.put", 1, agent("private", 1))];
    fixture.publish(late).await;
    fixture.drained::<ContextWriter>().await;

    let gone = [
        "setting_value FROM system_settings WHERE user_id = 1",
        "device_name FROM registered_devices",
        "concat(secret_key, nullif(backup_codes, '[]')) FROM user_two_factor_auth",
        "public_key FROM passkey_credentials",
        "context_value FROM simple_chat_context",
        "context_value FROM agent_context_states WHERE memory_tier = 'private'",
    ];
    for query in gone {
        let left = fixture.lines(query).await;
        assert!(left == ["NULL"] || left == [""], "{query}: {left:?}");
    }
    assert_eq!(
        fixture.lines("concat_ws(' ', is_active, ended_at IS NOT NULL) FROM chat_mode_sessions").await,
        ["f t"]
    );
    assert_eq!(fixture.count("agent_context_states WHERE removed_at IS NULL").await, 2);
    assert_eq!(worker.stats.report().unchanged, 2);
    assert_eq!(fixture.dead_letters().await, Vec::<String>::new());
    worker.stop().await.expect("a clean end");
}

/// A version belongs to one value: the one that was stored first under it.
#[tokio::test(flavor = "multi_thread")]
async fn an_equal_version_replaces_nothing_and_removes_nothing() {
    let fixture = Fixture::new().await;
    let key = json!({ "session_id": "s", "context_key": "k" });
    let agent_key =
        json!({ "agent_id": "a", "session_id": "s", "memory_tier": "shared", "context_key": "k" });
    let with = |key: &Value, version: i64, value: Option<&str>| {
        let mut body = key.clone();
        body["version"] = version.into();
        if let Some(value) = value {
            body["context_value"] = value.into();
        }
        body
    };
    let both = |version: i64, value: Option<&str>| {
        let verb = if value.is_some() { "put" } else { "remove" };
        [("context", &key), ("agent-context", &agent_key)]
            .map(|(noun, key)| request(&format!("{noun}.{verb}"), 1, with(key, version, value)))
    };
    let rows = async || {
        let mut rows = Vec::new();
        for table in ["simple_chat_context", "agent_context_states"] {
            let row = format!(
                "concat_ws(' ', version, context_value, removed_at IS NOT NULL, request_id) FROM {table}"
            );
            rows.extend(fixture.lines(&row).await);
        }
        rows
    };
    let worker = fixture.run(ContextWriter);
    let first = both(3, Some("first"));
    fixture.publish([testkit::user(1), testkit::session(1, "s")]).await;
    fixture.publish(first.clone()).await;
    fixture.drained::<ContextWriter>().await;
    let stored = first.map(|request| format!("3 \"first\" f {}", request.id));
    assert_eq!(rows().await, stored);

    fixture.publish(both(3, Some("second")).into_iter().chain(both(3, None))).await;
    fixture.drained::<ContextWriter>().await;
    assert_eq!(rows().await, stored);
    assert_eq!(worker.stats.report().unchanged, 4);

    let removals = both(4, None);
    fixture.publish(removals.clone().into_iter().chain(both(4, Some("third")))).await;
    fixture.drained::<ContextWriter>().await;
    assert_eq!(rows().await, removals.map(|request| format!("4 t {}", request.id)));
    assert_eq!(worker.stats.report().unchanged, 6);
    // An inbox row is written once, unless its message caused several events.
    assert_eq!(fixture.count("inbox WHERE event_count = 1").await, 2 + 2 + 4 + 4);
    assert_eq!(fixture.dead_letters().await, Vec::<String>::new());
    worker.stop().await.expect("a clean end");
}

/// Records without a version: of two, the one that was stored later wins, in whichever order they are processed.
#[tokio::test(flavor = "multi_thread")]
async fn what_waited_for_its_prerequisite_does_not_undo_what_came_later() {
    let fixture = Fixture::new().await;
    let mut settings = fixture.settings.clone();
    // The earlier ones are tried again when the later ones are long written.
    settings.worker.retry_first_delay_ms = 3_000;
    settings.worker.retry_longest_delay_ms = 3_000;
    let both = |kind: &str, base: Value, field: &str, values: [Value; 2]| {
        values.map(|value| {
            let mut body = base.clone();
            body[field] = value;
            request(kind, 1, body)
        })
    };
    let device = json!({ "device_id": DEVICE, "device_type": "phone", "security_level": "basic" });
    let feedback = json!({ "message_id": MESSAGE, "feedback_type": "rating" });
    let pairs = [
        both("profile.put", json!({}), "first_name", [json!("old"), json!("new")]),
        both("setting.put", json!({ "setting_key": "k" }), "setting_value", [json!("old"), json!("new")]),
        both("device.put", device, "device_name", [json!("old"), json!("new")]),
        both(
            "second-factor.put",
            json!({ "method": "totp", "secret_key": testkit::CANARY }),
            "is_enabled",
            [json!(false), json!(true)],
        ),
        both(
            "passkey.put",
            json!({ "credential_id": "c", "public_key": testkit::CANARY }),
            "sign_count",
            [json!(1), json!(2)],
        ),
        both(
            "session.open",
            json!({ "session_id": "s" }),
            "chat_mode",
            [json!("simple"), json!("smart-router")],
        ),
        both("summary.put", json!({ "session_id": "s" }), "summary", [json!("old"), json!("new")]),
        both("conversation.put", json!({ "conversation_id": "c" }), "summary", [json!("old"), json!("new")]),
        both("feedback.put", feedback, "rating", [json!(1), json!(5)]),
    ];
    let close = request("session.close", 1, json!({ "session_id": "closed" }));
    let (earlier, later): (Vec<_>, Vec<_>) = pairs.into_iter().map(|[old, new]| (old, new)).unzip();
    let earlier: Vec<RequestMessage> = earlier.into_iter().chain([close]).collect();
    let count = earlier.len() as u64;

    let worker = fixture.run_with(ContextWriter, settings);
    let stats = || worker.stats.report();
    fixture.publish(earlier).await;
    testkit::eventually("all wait", async || (stats().retried >= count).then_some(())).await;
    let message = json!({ "message_id": MESSAGE, "conversation_id": "c", "role": "user", "content": "x" });
    let prerequisites = [testkit::user(1), testkit::session(1, "closed"), request("message.add", 1, message)];
    fixture.publish(prerequisites.into_iter().chain(later)).await;
    fixture.drained::<ContextWriter>().await;
    let expected = [
        ("first_name FROM user_profiles", "new"),
        ("setting_value FROM system_settings WHERE user_id = 1", "\"new\""),
        ("device_name FROM registered_devices", "new"),
        ("is_enabled FROM user_two_factor_auth", "true"),
        ("sign_count FROM passkey_credentials", "2"),
        ("chat_mode FROM chat_mode_sessions WHERE session_id = 's'", "smart-router"),
        ("concat(is_active, ended_at) FROM chat_mode_sessions WHERE session_id = 'closed'", "t"),
        ("summary FROM chat_session_summary", "new"),
        ("summary FROM chat_history", "new"),
        ("rating FROM message_feedback", "5"),
    ];
    let mut rows = Vec::new();
    for (query, _) in expected {
        rows.push((query, fixture.lines(query).await.concat()));
    }
    assert_eq!(rows, expected.map(|(query, row)| (query, row.to_owned())));
    assert_eq!((stats().retried, stats().unchanged), (count, count));
    assert_eq!(fixture.dead_letters().await, Vec::<String>::new());
    worker.stop().await.expect("a clean end");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_closed_session_opens_again_and_still_takes_contexts() {
    let fixture = Fixture::new().await;
    let open = |mode: &str| request("session.open", 1, json!({ "session_id": "s", "chat_mode": mode }));
    let close = || request("session.close", 1, json!({ "session_id": "s" }));
    let context = request(
        "context.put",
        1,
        json!({ "session_id": "s", "context_key": "k", "context_value": 1, "version": 1 }),
    );
    fixture.publish([stores().swap_remove(0), open("simple"), close(), context]).await;
    let worker = fixture.run(ContextWriter);
    fixture.drained::<ContextWriter>().await;
    assert_eq!(fixture.lines("is_active FROM chat_mode_sessions").await, ["false"]);
    assert_eq!(fixture.count("simple_chat_context").await, 1);
    fixture.publish([open("smart-router")]).await;
    fixture.drained::<ContextWriter>().await;
    let row = fixture.lines("concat_ws(' ', chat_mode, is_active, ended_at) FROM chat_mode_sessions").await;
    assert_eq!(row, ["smart-router t"]);
    let events = fixture.lines("event_type FROM blackboard_events ORDER BY event_sequence").await;
    assert_eq!(
        events,
        ["user.stored", "session.opened", "session.closed", "context.stored", "session.opened"]
    );
    worker.stop().await.expect("a clean end");
}

fn said(message_id: &str, conversation_id: &str) -> RequestMessage {
    let body = json!({ "message_id": message_id, "conversation_id": conversation_id, "role": "user", "content": "x" });
    request("message.add", 1, body)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_that_changes_nothing_creates_no_conversation() {
    let fixture = Fixture::new().await;
    let first = [stores().swap_remove(0), said(MESSAGE, "c"), said(MESSAGE, "same batch")];
    fixture.process(ContextWriter, first).await;
    let worker = fixture.run(ContextWriter);
    fixture.publish([said(MESSAGE, "later"), said(DEVICE, "c")]).await;
    fixture.drained::<ContextWriter>().await;
    assert_eq!(worker.stats.report().unchanged, 1);
    assert_eq!(fixture.lines("conversation_id FROM chat_history").await, ["c"]);
    assert_eq!(fixture.count("chat_messages").await, 2);
    let events = fixture.lines("session_id FROM blackboard_events WHERE event_type = 'message.added'").await;
    assert_eq!(events, ["c", "c"], "every conversation has an event");
    worker.stop().await.expect("a clean end");
}

/// What a publisher says of the past is at most the time when it was stored.
#[tokio::test(flavor = "multi_thread")]
async fn nothing_has_happened_in_the_future() {
    let fixture = Fixture::new().await;
    let future = "2099-01-01T00:00:00Z";
    let device = |id: Uuid, last_seen_at: Value| {
        let body = json!({ "device_id": id, "device_name": "d", "device_type": "phone", "last_seen_at": last_seen_at });
        request("device.put", 1, body)
    };
    let mut message = said(MESSAGE, "c");
    message = message.map_body(|body| body.replace('}', &format!(r#","sent_at":"{future}"}}"#)));
    let devices = [json!(future), json!("2020-01-01T00:00:00Z"), Value::Null].into_iter().zip(1..);
    let devices = devices.map(|(time, number)| device(Uuid::from_u128(number), time));
    let requests = [stores().swap_remove(0), message].into_iter().chain(devices);
    fixture.process(ContextWriter, requests).await;
    assert_eq!(fixture.dead_letters().await, Vec::<String>::new());
    let now = "chat_messages WHERE \"timestamp\" BETWEEN now() - interval '1 hour' AND now()";
    assert_eq!(fixture.count(now).await, 1);
    let devices = "concat_ws(' ', last_seen_at = created_at, last_seen_at = '2020-01-01Z') FROM registered_devices ORDER BY id";
    assert_eq!(fixture.lines(devices).await, ["t f", "f t", ""]);
}

#[tokio::test(flavor = "multi_thread")]
async fn users_with_the_same_names_for_things_do_not_meet() {
    let fixture = Fixture::new().await;
    let worker = fixture.run(ContextWriter);
    let of = |user: i32| {
        stores().into_iter().filter(|request| !request.subject.ends_with(".0")).map(move |request| {
            RequestMessage {
                subject: request.subject.replace(".1", &format!(".{user}")),
                id: Uuid::now_v7(),
                ..request
            }
        })
    };
    fixture.publish(of(1).chain(of(2)).chain(of(3))).await;
    fixture.drained::<ContextWriter>().await;
    assert_eq!(fixture.dead_letters().await, Vec::<String>::new());
    for table in [
        "user_profiles",
        "registered_devices",
        "user_two_factor_auth",
        "passkey_credentials",
        "chat_mode_sessions",
        "simple_chat_context",
        "chat_session_summary",
        "chat_history",
        "chat_messages",
        "message_feedback",
    ] {
        assert_eq!(fixture.count(table).await, 3, "{table}");
    }
    worker.stop().await.expect("a clean end");
}

#[test]
fn every_kind_of_the_stream_is_tried() {
    let tried: Vec<String> = stores().iter().map(|request| request.subject.clone()).collect();
    let removed = ["setting", "device", "second-factor", "passkey", "context", "agent-context"];
    for kind in REQUESTS.iter().filter(|kind| kind.stream == "CONTEXT") {
        let known = tried.iter().any(|subject| subject.contains(&format!(".{}.", kind.name())))
            || (kind.verb == "remove" && removed.contains(&kind.noun))
            || kind.name() == "session.close";
        assert!(known, "no test publishes {}", kind.name());
    }
}
