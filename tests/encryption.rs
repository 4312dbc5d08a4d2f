//! What is secret is stored encrypted only, comes back to a reader with the context, and is lost with nothing that goes wrong.

use std::collections::BTreeMap;

use context_writer::ContextWriter;
use contract::header;
use diesel_async::SimpleAsyncConnection;
use serde_json::{Value, json};
use testkit::{CANARY, Fixture, RequestMessage, context, eventually, request, session, user};
use trust::{CipherKey, KeyRing};
use uuid::Uuid;

use crate::support::encryption;

const MESSAGE: &str = "0193c0de-0000-7000-8000-000000000001";

fn sensitive(mut body: Value) -> Value {
    body["sensitive"] = true.into();
    body
}

/// A secret of every sort, of one user.
fn secrets(user_id: i32) -> Vec<RequestMessage> {
    let secret = |name: &str| format!("{CANARY}-{user_id}-{name}");
    let ask = |kind: &str, body: Value| request(kind, user_id, body);
    vec![
        ask(
            "user.put",
            json!({ "username": "u", "email": "u@example.org", "password_hash": secret("hash") }),
        ),
        ask(
            "second-factor.put",
            json!({ "method": "totp", "secret_key": secret("totp"), "backup_codes": [secret("code")] }),
        ),
        ask("passkey.put", json!({ "credential_id": "c", "public_key": secret("key") })),
        ask(
            "setting.put",
            sensitive(json!({ "setting_key": "k", "setting_value": { "a": secret("setting") } })),
        ),
        session(user_id, "s"),
        ask(
            "context.put",
            sensitive(
                json!({ "session_id": "s", "context_key": "k", "context_value": secret("context"), "version": 1 }),
            ),
        ),
        ask(
            "summary.put",
            sensitive(
                json!({ "session_id": "s", "summary": secret("summary"), "key_topics": [secret("topic")] }),
            ),
        ),
        ask(
            "conversation.put",
            sensitive(
                json!({ "conversation_id": "c", "summary": secret("about"), "metadata": { "a": secret("meta") } }),
            ),
        ),
        ask(
            "message.add",
            sensitive(
                json!({ "conversation_id": "c", "message_id": MESSAGE, "role": "user", "content": secret("said") }),
            ),
        ),
        ask(
            "feedback.put",
            sensitive(
                json!({ "message_id": MESSAGE, "feedback_type": "report", "comment": secret("comment") }),
            ),
        ),
        ask(
            "agent-context.put",
            sensitive(
                json!({ "agent_id": "a", "session_id": "s", "memory_tier": "private", "context_key": "k", "context_value": [secret("agent")], "version": 1 }),
            ),
        ),
    ]
}

/// What [`secrets`] are in the tables, by `table.column`.
fn expected(user_id: i32) -> BTreeMap<String, String> {
    let secret = |name: &str| format!("{CANARY}-{user_id}-{name}");
    let json = |value: Value| value.to_string();
    [
        ("users.password_hash", secret("hash")),
        ("user_two_factor_auth.secret_key", secret("totp")),
        ("user_two_factor_auth.backup_codes", json(json!([secret("code")]))),
        ("passkey_credentials.public_key", secret("key")),
        ("system_settings.setting_value", json(json!({ "a": secret("setting") }))),
        ("simple_chat_context.context_value", json(json!(secret("context")))),
        ("chat_session_summary.summary", secret("summary")),
        ("chat_session_summary.key_topics", json(json!([secret("topic")]))),
        ("chat_history.summary", secret("about")),
        ("chat_history.metadata", json(json!({ "a": secret("meta") }))),
        ("chat_messages.content", secret("said")),
        ("message_feedback.comment", secret("comment")),
        ("agent_context_states.context_value", json(json!([secret("agent")]))),
    ]
    .map(|(place, value)| (place.to_owned(), value))
    .into()
}

const TABLES: [&str; 10] = [
    "users",
    "user_two_factor_auth",
    "passkey_credentials",
    "system_settings",
    "simple_chat_context",
    "chat_session_summary",
    "chat_history",
    "chat_messages",
    "message_feedback",
    "agent_context_states",
];

async fn revealed(fixture: &Fixture, user_id: i32) -> Vec<Told> {
    encryption::revealed(fixture, user_id, &TABLES).await
}

/// A field, as `table.column`, and its value, or why it does not open.
type Told = (String, Result<String, String>);

fn good(told: Vec<Told>) -> BTreeMap<String, String> {
    told.into_iter().map(|(place, told)| (place, told.expect("it opens"))).collect()
}

/// Every table of the database that has the canary in one of its rows.
async fn leaking(fixture: &Fixture) -> Vec<String> {
    let tables = fixture
        .lines("c.oid::regclass FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace AND n.nspname IN ('public', 'audit', 'sec') WHERE c.relkind IN ('r', 'p')")
        .await;
    assert!(tables.len() > 40, "{tables:?}");
    let mut found = Vec::new();
    for table in tables {
        // Bytes are looked at as such: a text in a bytea shows as hex digits.
        let hex: String = CANARY.bytes().map(|byte| format!("{byte:02x}")).collect();
        let from = format!("{table} AS t WHERE t::text LIKE '%{CANARY}%' OR t::text LIKE '%{hex}%'");
        if fixture.count(&from).await > 0 {
            found.push(table);
        }
    }
    found
}

#[tokio::test(flavor = "multi_thread")]
async fn a_secret_is_nowhere_but_with_a_reader_who_has_the_context() {
    let fixture = Fixture::new().await;
    let mut events = fixture.subscribe("memory.event.>").await;
    fixture.process(ContextWriter, [1, 2].into_iter().flat_map(secrets)).await;
    assert_eq!(fixture.dead_letters().await, Vec::<String>::new());

    assert_eq!(leaking(&fixture).await, Vec::<String>::new());
    for _ in 0..2 * secrets(1).len() {
        let event = testkit::next(&mut events).await;
        let text = String::from_utf8(event.payload.to_vec()).expect("text");
        assert!(!text.contains(CANARY), "{text}");
        assert!(text.contains("$encrypted") || event.subject.contains("session"), "{text}");
    }
    for user_id in [1, 2] {
        assert_eq!(good(revealed(&fixture, user_id).await), expected(user_id));
    }
    // Our own log is kept, says a lot, and none of it; `with-servers` looks through those of the whole suite.
    if std::env::var_os(testkit::LOGS_VARIABLE).is_some() {
        let log = testkit::logs::own();
        assert!(log.contains("written") && log.contains("context-writer"), "{log}");
        assert!(!log.contains(CANARY), "{log}");
    }
    // What is marked is marked, and what is not is stored as it came.
    let marked = "is_sensitive || ' ' || context_value FROM simple_chat_context WHERE user_id = 1";
    assert_eq!(fixture.lines(marked).await, ["true \"$encrypted\""]);
    // The key store has a key for each, and nobody's secret.
    let mut store = store::connect(&fixture.settings.keys.url).await.expect("the key store");
    let keys = testkit::lines_on(
        &mut store,
        "user_id || ' ' || version || ' ' || kek FROM data_keys ORDER BY user_id",
    )
    .await;
    assert_eq!(keys, ["1 1 ring:kek.1", "2 1 ring:kek.1"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_ciphertext_goes_with_the_value_it_stands_for() {
    let fixture = Fixture::new().await;
    let put = |version: i64, sensitive: bool| {
        let body = json!({ "session_id": "s", "context_key": "k", "context_value": format!("{CANARY}-{version}"), "version": version, "sensitive": sensitive });
        request("context.put", 1, body)
    };
    let remove = |version: i64| {
        request("context.remove", 1, json!({ "session_id": "s", "context_key": "k", "version": version }))
    };
    let context = "simple_chat_context.context_value";
    let count = async || fixture.count("encrypted_fields WHERE table_name = 'simple_chat_context'").await;
    fixture.process(ContextWriter, [user(1), session(1, "s"), put(1, true)]).await;
    assert_eq!(good(revealed(&fixture, 1).await)[context], format!("\"{CANARY}-1\""));
    fixture.process(ContextWriter, [put(2, true)]).await;
    assert_eq!(good(revealed(&fixture, 1).await)[context], format!("\"{CANARY}-2\""));
    assert_eq!(count().await, 1, "in the place of the earlier one");
    fixture.process(ContextWriter, [put(3, false)]).await;
    assert_eq!(count().await, 0, "the value is no secret any more");
    assert_eq!(fixture.lines("context_value FROM simple_chat_context").await, [format!("\"{CANARY}-3\"")]);
    fixture.process(ContextWriter, [put(4, true), put(1, true)]).await;
    assert_eq!(
        good(revealed(&fixture, 1).await)[context],
        format!("\"{CANARY}-4\""),
        "an old one changes nothing"
    );
    fixture.process(ContextWriter, [remove(5)]).await;
    assert_eq!(count().await, 0, "a removed value leaves nothing");
    // In one batch, the last one that takes effect counts.
    fixture.process(ContextWriter, [put(6, true), put(7, false)]).await;
    assert_eq!(count().await, 0);
    fixture.process(ContextWriter, [put(8, false), put(9, true)]).await;
    assert_eq!(good(revealed(&fixture, 1).await)[context], format!("\"{CANARY}-9\""));
    fixture.execute("DELETE FROM simple_chat_context").await;
    assert_eq!(count().await, 0, "a row that is deleted takes its ciphertext along");

    // Secrets that always are some go with their records, and so does one of two values that a request leaves out.
    fixture.process(ContextWriter, secrets(1)).await;
    let without_summary = sensitive(json!({ "conversation_id": "c", "metadata": { "a": CANARY } }));
    let without_comment = sensitive(json!({ "message_id": MESSAGE, "feedback_type": "report", "rating": 1 }));
    let requests =
        [request("conversation.put", 1, without_summary), request("feedback.put", 1, without_comment)];
    fixture.process(ContextWriter, requests).await;
    let of_conversations =
        "column_name FROM encrypted_fields WHERE table_name IN ('chat_history', 'message_feedback')";
    assert_eq!(fixture.lines(of_conversations).await, ["metadata"]);
    assert_eq!(
        good(revealed(&fixture, 1).await)["chat_history.metadata"],
        json!({ "a": CANARY }).to_string()
    );
    fixture
        .process(
            ContextWriter,
            [
                request("second-factor.remove", 1, json!({ "method": "totp" })),
                request("passkey.remove", 1, json!({ "credential_id": "c" })),
                request("setting.remove", 1, json!({ "setting_key": "k" })),
                user(1),
            ],
        )
        .await;
    let left = fixture.lines("DISTINCT_TABLE FROM (SELECT DISTINCT table_name AS DISTINCT_TABLE FROM encrypted_fields) AS t ORDER BY 1").await;
    assert_eq!(
        left,
        [
            "agent_context_states",
            "chat_history",
            "chat_messages",
            "chat_session_summary",
            "simple_chat_context"
        ]
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_ciphertext_in_another_place_does_not_open() {
    let fixture = Fixture::new().await;
    let two = |user_id: i32| {
        let put = |key: &str| {
            let body = json!({ "session_id": "s", "context_key": key, "context_value": CANARY, "version": 1, "sensitive": true });
            request("context.put", user_id, body)
        };
        [user(user_id), session(user_id, "s"), put("k1"), put("k2")]
    };
    let factor = request(
        "second-factor.put",
        1,
        json!({ "method": "totp", "secret_key": CANARY, "backup_codes": [] }),
    );
    let passkey = request("passkey.put", 1, json!({ "credential_id": "c", "public_key": CANARY }));
    fixture.process(ContextWriter, two(1).into_iter().chain(two(2)).chain([factor, passkey])).await;
    // Each exchanges the ciphertexts of two fields, as somebody with the whole database could.
    let row = |key: &str, user_id: i32| {
        format!(
            "(SELECT e.id FROM encrypted_fields e JOIN simple_chat_context c ON c.id = e.row_id AND c.context_key = '{key}' WHERE e.user_id = {user_id})"
        )
    };
    let column = |name: &str| format!("(SELECT id FROM encrypted_fields WHERE column_name = '{name}')");
    let swaps = [
        ("rows", row("k1", 1), row("k2", 1)),
        ("users", row("k1", 1), row("k1", 2)),
        ("columns", column("secret_key"), column("backup_codes")),
        ("tables", column("secret_key"), column("public_key")),
    ];
    for (what, one, other) in swaps {
        let swap = format!(
            "UPDATE encrypted_fields e SET ciphertext = o.ciphertext FROM encrypted_fields o
             WHERE (e.id, o.id) IN (({one}, {other}), ({other}, {one}))"
        );
        let before = revealed(&fixture, 1).await;
        assert!(before.iter().all(|(_, told)| told.is_ok()), "{before:?}");
        fixture.execute(&swap).await;
        let told = revealed(&fixture, 1).await;
        let refused: Vec<&String> = told.iter().filter_map(|(_, told)| told.as_ref().err()).collect();
        assert!(!refused.is_empty(), "{what}: {told:?}");
        assert!(refused.iter().all(|reason| reason.contains("cannot be decrypted")), "{what}: {refused:?}");
        fixture.execute(&swap).await;
    }
    // A field is moved as a whole, to a row of another user: row-level security hides it, and it would not open.
    let moved = format!(
        "UPDATE encrypted_fields SET user_id = 2, id = '{}' WHERE column_name = 'public_key'",
        Uuid::now_v7()
    );
    fixture.execute(&moved).await;
    let passkey = |told: &&Told| told.0 == "passkey_credentials.public_key";
    assert_eq!(revealed(&fixture, 1).await.iter().find(passkey), None);
    assert!(revealed(&fixture, 2).await.iter().find(passkey).expect("it is there").1.is_err());
}

#[tokio::test(flavor = "multi_thread")]
async fn while_the_key_store_is_away_messages_wait_and_none_is_lost() {
    let fixture = Fixture::new().await;
    let name = fixture.settings.keys.url.rsplit('/').next().expect("a name").to_owned();
    let admin =
        async |sql: String| fixture.connection().await.batch_execute(&sql).await.expect("a statement");
    let worker = fixture.run(ContextWriter);
    fixture.publish([user(9)]).await;
    fixture.drained::<ContextWriter>().await;
    admin(format!(
        "ALTER DATABASE {name} ALLOW_CONNECTIONS false; SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{name}'"
    ))
    .await;
    fixture.publish(secrets(1)).await;
    // They are held, and no try is spent.
    eventually("messages are held", async || {
        let info = fixture.consumer("CONTEXT", "context-writer").await.cached_info().num_ack_pending;
        (info > 0).then_some(())
    })
    .await;
    assert_eq!(fixture.count("encrypted_fields").await, 0);
    admin(format!("ALTER DATABASE {name} ALLOW_CONNECTIONS true")).await;
    fixture.drained::<ContextWriter>().await;
    worker.stop().await.expect("a clean end");
    assert_eq!(fixture.dead_letters().await, Vec::<String>::new());
    assert_eq!(good(revealed(&fixture, 1).await), expected(1));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_that_cannot_be_opened_is_followed_by_the_next_one() {
    let fixture = Fixture::new().await;
    fixture.process(ContextWriter, [1, 2].into_iter().flat_map(|id| [user(id), session(id, "s")])).await;
    let put = |user_id: i32, version: i64| {
        let body = json!({ "session_id": "s", "context_key": "k", "context_value": CANARY, "version": version, "sensitive": true });
        request("context.put", user_id, body)
    };
    fixture.process(ContextWriter, [put(1, 1), put(2, 1)]).await;
    let mut store = store::connect(&fixture.settings.keys.url).await.expect("the key store");
    store
        .batch_execute("UPDATE data_keys SET wrapped = set_byte(wrapped, 90, get_byte(wrapped, 90) # 1) WHERE user_id = 1")
        .await
        .expect("a spoilt key");
    // A worker that has not opened it before, with plain messages of the same user around.
    fixture.process(ContextWriter, [put(1, 2), put(2, 2), context(1, "s", "plain", 1)]).await;
    assert_eq!(fixture.dead_letters().await, Vec::<String>::new());
    assert_eq!(
        fixture
            .lines("user_id || ' ' || context_key || ' ' || version FROM simple_chat_context ORDER BY 1")
            .await,
        ["1 k 2", "1 plain 1", "2 k 2"]
    );
    let versions = "user_id || ' ' || get_byte(ciphertext, 5) FROM encrypted_fields WHERE table_name = 'simple_chat_context'";
    assert_eq!(fixture.lines(&format!("{versions} ORDER BY 1")).await, ["1 2", "2 1"]);
    assert_eq!(
        good(revealed(&fixture, 1).await)["simple_chat_context.context_value"],
        format!("\"{CANARY}\"")
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_without_its_keys_does_not_start_and_says_why() {
    let fixture = Fixture::new().await;
    let mut settings = fixture.settings.clone();
    settings.worker.startup_timeout_s = 1;
    for (change, problem) in [
        ("ring", "keys.ring_file is not set"),
        ("empty", "has no key-encryption key; `memfleet keys generate` creates one"),
        ("spoilt", "line 1 is not a line of a key ring"),
        ("store", "the key store: PostgreSQL cannot be reached"),
        ("administrator", "bypasses row-level security; the worker needs the role w_context_writer there"),
        ("role", "the login is w_router_logger; the worker needs the role w_context_writer there"),
        ("payload", "cannot be read"),
    ] {
        let mut settings = settings.clone();
        match change {
            "ring" => settings.keys.ring_file = None,
            "empty" => settings.keys.ring_file = Some(fixture.key_file("empty.ring", "# none yet\n")),
            "spoilt" => settings.keys.ring_file = Some(fixture.key_file("spoilt.ring", "kek.1 0123\n")),
            "store" => settings.keys.worker_url = Some("postgres://{role}@127.0.0.1:1/k".to_owned()),
            "administrator" => settings.keys.worker_url = None,
            "role" => settings.keys.worker_url = Some(settings.keys.url_of("w_router_logger")),
            _ => settings.trust.payload_ring_file = Some("/nowhere/payload.ring".to_owned()),
        }
        let failed = fixture.run_with(ContextWriter, settings).failure().await.expect_err("it cannot start");
        assert!(failed.to_string().contains(problem), "{change}: {failed}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_body_may_travel_encrypted() {
    let fixture = Fixture::new().await;
    fixture.process(ContextWriter, [user(1), user(2), session(1, "s"), session(2, "s")]).await;
    let good = context(1, "s", "good", 1).encrypted("test.1");
    assert!(!good.body.windows(4).any(|part| part == b"good"));
    let mut moved = context(1, "s", "moved", 1).encrypted("test.1");
    moved.subject = moved.subject.replace("put.1", "put.2");
    let mut changed = context(1, "s", "changed", 1).encrypted("test.1");
    *changed.body.last_mut().expect("a byte") ^= 1;
    let cases = [
        (moved, "malformed: body: cannot be decrypted"),
        (changed, "malformed: body: cannot be decrypted"),
        (
            context(1, "s", "other", 1).encrypted("simple-chat.1"),
            "malformed: Memfleet-Encryption: is not a key of service test",
        ),
        (
            context(1, "s", "unknown", 1).with(header::ENCRYPTION, "test.2"),
            "malformed: Memfleet-Encryption: this worker has no key test.2",
        ),
        (
            context(1, "s", "no key", 1).with(header::ENCRYPTION, "none"),
            "malformed: Memfleet-Encryption: is not a key id",
        ),
        (
            context(1, "s", "plain", 1).with(header::ENCRYPTION, "test.1"),
            "malformed: body: is not a ciphertext",
        ),
    ];
    let bad: Vec<RequestMessage> = cases.iter().map(|(request, _)| request.clone()).collect();
    fixture.process(ContextWriter, std::iter::once(good).chain(bad)).await;
    assert_eq!(fixture.lines("context_key FROM simple_chat_context").await, ["good"]);
    let event = "event_payload->>'context_key' FROM blackboard_events WHERE event_type = 'context.stored'";
    assert_eq!(fixture.lines(event).await, ["good"], "the event tells the body as it is");
    let letters = fixture.dead_letters().await;
    assert_eq!(letters.len(), cases.len(), "{letters:?}");
    for (_, reason) in &cases {
        assert!(letters.iter().any(|letter| letter.starts_with(reason)), "{reason}: {letters:#?}");
    }
    // A dead letter stays as it travelled.
    let dead = fixture.messages("DEAD").await;
    assert!(
        dead.iter()
            .any(|letter| letter.headers.get(header::ENCRYPTION).is_some_and(|id| id.as_str() == "test.1"))
    );
    assert!(!dead.iter().any(|letter| letter.payload.windows(7).any(|part| part == b"changed")));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_payload_key_needs_no_restart() {
    let fixture = Fixture::new().await;
    let ring = fixture.settings.trust.payload_ring_file.clone().expect("a ring");
    let worker = fixture.run(ContextWriter);
    fixture.publish([user(1).encrypted("test.1"), session(1, "s")]).await;
    fixture.drained::<ContextWriter>().await;
    let key = CipherKey::generate(2).expect("a key");
    let line = KeyRing::expose_line("test", &key);
    std::fs::write(&ring, format!("{}{}", testkit::PAYLOAD_RING, *line)).expect("a ring");
    let mut request = context(1, "s", "k", 1);
    request.body = key
        .seal(&request.body, trust::AssociatedData::Payload { subject: &request.subject })
        .expect("sealed");
    fixture
        .publish([request.with(header::ENCRYPTION, "test.2"), context(1, "s", "k2", 1).encrypted("test.1")])
        .await;
    fixture.drained::<ContextWriter>().await;
    worker.stop().await.expect("a clean end");
    assert_eq!(fixture.dead_letters().await, Vec::<String>::new());
    assert_eq!(fixture.count("simple_chat_context").await, 2);
}
