//! Bad messages: each becomes a dead letter whose reason names the field, and the rest of the batch goes through.

use context_writer::ContextWriter;
use contract::header;
use serde_json::{Value, json};
use testkit::{Fixture, RequestMessage, request};
use uuid::Uuid;

fn put(field: &str, value: Value) -> RequestMessage {
    let mut body = json!({ "session_id": "s", "context_key": "bad", "context_value": {}, "version": 1 });
    body[field] = value;
    request("context.put", 1, body)
}

fn raw(body: impl Into<Vec<u8>>) -> RequestMessage {
    RequestMessage { body: body.into(), ..put("version", json!(1)) }
}

/// A bad message, and how its dead letter's reason begins.
fn bad() -> Vec<(RequestMessage, &'static str)> {
    let large = "x".repeat(1024 * 1024);
    let deep = format!("{}1{}", "[".repeat(65), "]".repeat(65));
    let with_value = |value: &str| {
        format!(r#"{{"session_id":"s","context_key":"bad","version":1,"context_value":{value}}}"#)
    };
    let mut foreign = put("version", json!(1));
    foreign.subject = "memory.req.test.context.put.not-a-number".to_owned();
    let mut unknown_verb = put("version", json!(1));
    unknown_verb.subject = "memory.req.test.context.burn.1".to_owned();
    let mut zero = put("version", json!(1));
    zero.subject = "memory.req.test.context.put.0".to_owned();
    vec![
        (put("colour", json!("red")), "malformed: colour: is unknown"),
        (put("version", json!("one")), "malformed: version: is a string"),
        (put("version", json!(0)), "malformed: version: 0 is not between"),
        (put("priority", json!(101)), "malformed: priority: 101 is not between 0 and 100"),
        (
            put("context_type", json!("mood")),
            "malformed: context_type: the value is not allowed; expected one of",
        ),
        (put("session_id", json!("")), "malformed: session_id: must be"),
        (put("session_id", json!("@account")), "malformed: session_id: must be"),
        (put("context_key", json!("a\u{0}b")), "malformed: context_key: contains a NUL"),
        (put("context_value", json!({ "deep": ["a\u{0}b"] })), "malformed: context_value: contains a NUL"),
        (put("expires_at", json!("tomorrow")), "malformed: expires_at: is not a time in RFC 3339"),
        (put("context_value", json!(large)), "malformed: body: has "),
        (raw(with_value(&deep)), "malformed: context_value: nests deeper"),
        (raw(with_value(r#""\ud800""#)), "malformed: context_value: "),
        (raw(b"{\"session_id\":\"\xff\"}".to_vec()), "malformed: session_id: "),
        (raw("[]"), "malformed: body: "),
        (raw(""), "malformed: body: "),
        (raw("{"), "malformed: body: "),
        (raw(with_value("[1e999999]")), "malformed: context_value: holds numbers that take more than"),
        (
            raw(with_value(&"9".repeat(140_000))),
            "malformed: context_value: holds a number with more than 131072",
        ),
        (raw(with_value("[1e-16384]")), "malformed: context_value: holds a number with more than 131072"),
        (
            raw(with_value(r#"{"a":1,"b":2,"a":3}"#)),
            "malformed: context_value: has an object with the same key",
        ),
        (put("expires_at", json!("9999-12-31T23:59:60Z")), "malformed: expires_at: is in the year 10000"),
        (
            put("version", json!(1)).with(header::CONTRACT, "2"),
            "malformed: Memfleet-Contract: version \"2\" is not supported",
        ),
        (
            put("version", json!(1)).with(header::PARENT_EVENT, "yesterday"),
            "malformed: Memfleet-Parent-Event: is not a UUID",
        ),
        (foreign, "malformed: subject: the user id must be"),
        (unknown_verb, "malformed: subject: no request is named context.burn"),
        (zero, "malformed: subject: user 0 is the platform"),
        (
            request(
                "session.open",
                1,
                json!({ "session_id": "loop", "parent_session_id": "loop", "chat_mode": "simple" }),
            ),
            "malformed: parent_session_id: is the session itself",
        ),
        (
            request(
                "passkey.put",
                1,
                json!({ "credential_id": "\u{10ffff}".repeat(1_400), "public_key": "x" }),
            ),
            "malformed: credential_id: is longer than 1400 bytes",
        ),
    ]
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bad_message_is_named_and_hurts_no_other() {
    let fixture = Fixture::new().await;
    let open = [
        request("user.put", 1, json!({ "username": "u", "email": "u@example.org" })),
        request("session.open", 1, json!({ "session_id": "s", "chat_mode": "socratic" })),
    ];
    let good = |n: usize| put("context_key", json!(format!("good{n}")));
    let bad = bad();
    fixture.publish(open).await;
    // Good and bad alternate, so that every bad one has good neighbours in its batch.
    let mixed = bad.iter().enumerate().flat_map(|(n, (request, _))| [good(n), request.clone()]);
    fixture.publish(mixed).await;
    let worker = fixture.run(ContextWriter);
    fixture.drained::<ContextWriter>().await;

    assert_eq!(fixture.count("simple_chat_context").await, i64::try_from(bad.len()).expect("a count"));
    assert_eq!(fixture.count("simple_chat_context WHERE context_key = 'bad'").await, 0);
    let letters = fixture.messages("DEAD").await;
    assert_eq!(letters.len(), bad.len(), "{:#?}", fixture.dead_letters().await);
    for (request, reason) in &bad {
        let id = request.id.to_string();
        let has_id = |letter: &&async_nats::jetstream::message::StreamMessage| {
            letter.headers.get(header::DEAD_REQUEST_ID).is_some_and(|value| value.as_str() == id)
        };
        let letter = letters.iter().find(has_id).unwrap_or_else(|| panic!("no dead letter for {reason}"));
        let told = |name| letter.headers.get(name).map_or("", |value| value.as_str()).to_owned();
        let full = format!("{}: {}", told(header::DEAD_CLASS), told(header::DEAD_REASON));
        assert!(full.starts_with(reason), "expected {reason:?}, got {full:?}");
        assert_eq!(letter.payload, request.body, "{reason}: the body is kept byte for byte");
        assert_eq!(told(header::DEAD_SUBJECT), request.subject);
    }
    worker.stop().await.expect("a clean end");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_without_an_id_is_a_dead_letter_too() {
    let fixture = Fixture::new().await;
    let jetstream = &fixture.jetstream;
    let body = json!({ "username": "u", "email": "u@example.org" }).to_string();
    let sent = jetstream.publish("memory.req.test.user.put.1", body.clone().into()).await.expect("a publish");
    sent.await.expect("an acknowledgement");
    let mut headers = async_nats::HeaderMap::new();
    headers.insert(header::MESSAGE_ID, "not-a-uuid");
    let sent = jetstream.publish_with_headers("memory.req.test.user.put.1", headers, body.into()).await;
    sent.expect("a publish").await.expect("an acknowledgement");
    let worker = fixture.run(ContextWriter);
    fixture.drained::<ContextWriter>().await;
    let dead = fixture.dead_letters().await;
    assert_eq!(dead.len(), 2, "{dead:?}");
    assert!(dead[0].starts_with("malformed: Memfleet-Request-Id: is missing"), "{dead:?}");
    assert!(dead[1].starts_with("malformed: Nats-Msg-Id: is not a UUID"), "{dead:?}");
    assert_eq!(fixture.count("users WHERE id > 0").await, 0);
    worker.stop().await.expect("a clean end");
}

#[tokio::test(flavor = "multi_thread")]
async fn one_users_request_id_does_not_hide_anothers() {
    let fixture = Fixture::with_topology(|topology| {
        testkit::set_duplicate_window(topology, "CONTEXT", std::time::Duration::from_millis(100));
    })
    .await;
    let id = Uuid::now_v7();
    let body = |name: &str| json!({ "username": name, "email": "u@example.org" });
    let worker = fixture.run(ContextWriter);
    fixture.publish([RequestMessage { id, ..request("user.put", 1, body("one")) }]).await;
    fixture.drained::<ContextWriter>().await;
    testkit::eventually("the broker takes the id again", async || {
        fixture.publish([RequestMessage { id, ..request("user.put", 2, body("two")) }]).await;
        (fixture.stored("CONTEXT").await == 2).then_some(())
    })
    .await;
    fixture.drained::<ContextWriter>().await;
    assert_eq!(fixture.lines("username FROM users WHERE id > 0 ORDER BY id").await, ["one", "two"]);
    worker.stop().await.expect("a clean end");
}
