//! Who is answered, for how long, how much, and that it is noted.

use std::time::Duration;

use context_writer::ContextWriter;
use contract::header;
use diesel_async::{AsyncConnection, SimpleAsyncConnection};
use serde_json::{Value, json};
use testkit::{CANARY, Fixture, eventually, request, session, user};
use uuid::Uuid;

use crate::support::reader::{Reader, filled};

/// An answer is one message of the broker, however large the values are.
#[tokio::test(flavor = "multi_thread")]
async fn pages_end_where_an_answer_has_no_more_room() {
    let fixture = Fixture::new().await;
    let large = |n: i32, sensitive: bool| {
        request(
            "context.put",
            1,
            json!({ "session_id": "s", "context_key": format!("k{n}{sensitive}"), "context_value": "x".repeat(300_000), "version": 1, "sensitive": sensitive }),
        )
    };
    let said = |n: i32| {
        request(
            "message.add",
            1,
            json!({ "message_id": Uuid::now_v7(), "conversation_id": "c", "role": "user", "content": format!("{n}{}", "\u{1}".repeat(150_000)) }),
        )
    };
    fixture.process(ContextWriter, [user(1), session(1, "s")]).await;
    for n in 0..5 {
        fixture.process(ContextWriter, [large(n, false), large(n, true), said(n)]).await;
    }
    assert_eq!(fixture.dead_letters().await, Vec::<String>::new());
    let reader = Reader::start(&fixture).await;
    for (query, body, list, items) in [
        ("context.list", json!({ "session_id": "s", "reveal": true }), "contexts", 10),
        ("context.list", json!({ "session_id": "s" }), "contexts", 10),
        ("conversation.read", json!({ "conversation_id": "c" }), "messages", 5),
    ] {
        let (mut seen, mut pages, mut cursor) = (0, 0, Value::Null);
        loop {
            let mut asked = body.clone();
            if cursor.is_string() {
                asked["cursor"] = cursor;
            }
            let page = reader.ask(query, 1, asked).await.expect("a page");
            seen += page[list].as_array().unwrap().len();
            pages += 1;
            cursor = page["next_cursor"].clone();
            if cursor.is_null() {
                break;
            }
        }
        assert!(seen == items && pages > 1, "{query}: {seen} in {pages}");
    }
    let (mut after, mut seen) = (json!(0), 0);
    loop {
        let page =
            reader.ask("event.list", 1, json!({ "session_id": "c", "after": after })).await.expect("a page");
        seen += page["events"].as_array().unwrap().len();
        after = page["last"].clone();
        if page["more"] == false {
            break;
        }
    }
    assert_eq!(seen, 5);
    reader.end().await;
}

/// Rows that take some hundred bytes, as they may have been stored before there was a check: nothing of them is read.
#[tokio::test(flavor = "multi_thread")]
async fn a_row_that_no_answer_has_room_for_is_not_read() {
    let fixture = filled().await;
    let said = |conversation: &str| {
        request(
            "message.add",
            1,
            json!({ "message_id": Uuid::now_v7(), "conversation_id": conversation, "role": "user", "content": "x" }),
        )
    };
    fixture.process(ContextWriter, [said("long"), said("described"), said("fine")]).await;
    fixture
        .execute(
            "ALTER TABLE chat_history DROP CONSTRAINT columns_are_bounded, DISABLE TRIGGER USER;
             ALTER TABLE chat_messages DROP CONSTRAINT columns_are_bounded, DISABLE TRIGGER USER;
             ALTER TABLE simple_chat_context DROP CONSTRAINT value_is_bounded, DISABLE TRIGGER USER;
             UPDATE chat_history SET metadata = jsonb_build_object('a', (SELECT jsonb_agg(to_jsonb('1e131071'::numeric)) FROM generate_series(1, 70)))
                 WHERE conversation_id = 'described';
             UPDATE chat_messages m SET content = repeat('x', 9000000) FROM chat_history h
                 WHERE h.user_id = m.user_id AND h.id = m.history_id AND h.conversation_id = 'long';
             UPDATE simple_chat_context SET context_value = to_jsonb(repeat('x', 9000000)) WHERE user_id = 1 AND context_key = 'k0'",
        )
        .await;
    let reader = Reader::start(&fixture).await;
    for (query, body) in [
        ("conversation.read", json!({ "conversation_id": "described" })),
        ("conversation.read", json!({ "conversation_id": "long" })),
        ("context.get", json!({ "session_id": "s0", "context_key": "k0" })),
        ("context.list", json!({ "session_id": "s0" })),
    ] {
        let (code, error) = reader.ask(query, 1, body.clone()).await.expect_err("no room");
        assert_eq!((code.as_str(), &error["code"]), ("413", &json!("too-large")), "{query} {body} {error}");
        assert!(error["message"].as_str().unwrap().contains("8388608 bytes"), "{error}");
    }
    assert!(reader.ask("conversation.read", 1, json!({ "conversation_id": "fine" })).await.is_ok());
    assert!(reader.ask("context.list", 1, json!({ "session_id": "s0", "key_prefix": "k1" })).await.is_ok());
    reader.end().await;
}

/// The events of a conversation are filed under its id, which may be that of a session.
#[tokio::test(flavor = "multi_thread")]
async fn a_token_for_a_session_reads_no_conversation_of_the_same_name() {
    let fixture = Fixture::new().await;
    let said =
        json!({ "message_id": Uuid::now_v7(), "conversation_id": "s", "role": "user", "content": CANARY });
    let put = json!({ "session_id": "s", "context_key": "k", "context_value": 1, "version": 1 });
    fixture
        .process(
            ContextWriter,
            [user(1), session(1, "s"), request("message.add", 1, said), request("context.put", 1, put)],
        )
        .await;
    let reader = Reader::start(&fixture).await;
    let mut of_session = testkit::token::request("test", 1);
    of_session.session = Some(contract::SessionId::new("s").unwrap());
    let of_session = testkit::token::issuer().issue(&of_session, std::time::SystemTime::now()).unwrap().token;
    let types = |page: &Value| -> Vec<String> {
        let types =
            page["events"].as_array().unwrap().iter().map(|event| event["event_type"].as_str().unwrap());
        types.map(str::to_owned).collect()
    };
    let asked = json!({ "session_id": "s" });
    let all = reader.ask("event.list", 1, asked.clone()).await.unwrap();
    assert!(types(&all).contains(&"message.added".to_owned()), "{all}");
    let page = reader.ask_with("event.list", Some(&of_session), asked, &[]).await.unwrap();
    assert!(!page.to_string().contains(CANARY), "{page}");
    assert!(types(&page).contains(&"context.stored".to_owned()), "{page}");
    assert_eq!((&page["last"], &page["more"]), (&all["last"], &all["more"]));
    reader.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_is_answered_about_anybody_else() {
    let fixture = filled().await;
    fixture.register("narrow", "context:get").await;
    let reader = Reader::start(&fixture).await;
    let token = |user: i32| testkit::token::with_grant_key(testkit::attack::grant_key(), "test", user);
    let issue = |change: &dyn Fn(&mut trust::TokenRequest)| {
        let mut request = testkit::token::request("test", 1);
        change(&mut request);
        testkit::token::issuer().issue(&request, std::time::SystemTime::now()).expect("a token").token
    };
    // A session of the same name is another one for each user.
    for user in [1, 2] {
        let page = reader.ask_with("session.list", Some(&token(user)), json!({}), &[]).await.unwrap();
        assert_eq!(page["sessions"].as_array().unwrap().len(), 5);
    }
    let one = json!({ "session_id": "s0", "context_key": "k0" });
    let of_session = issue(&|request| request.session = Some(contract::SessionId::new("s0").unwrap()));
    assert!(reader.ask_with("context.get", Some(&of_session), one.clone(), &[]).await.is_ok());
    let forged = format!("{}x", token(1));
    let expired = issue(&|request| request.life = Duration::from_secs(1));
    // To read is not to decrypt, and neither is everything there is to do with contexts.
    let reading = issue(&|request| request.scopes = trust::Scope::parse_list("context:*").unwrap());
    assert!(reader.ask_with("context.get", Some(&reading), one.clone(), &[]).await.is_ok());
    let revealing = json!({ "session_id": "s0", "context_key": "pin", "reveal": true });
    let both =
        issue(&|request| request.scopes = trust::Scope::parse_list("context:get secret:reveal").unwrap());
    assert!(reader.ask_with("context.get", Some(&both), revealing.clone(), &[]).await.is_ok());
    let refused: [(&str, Option<String>, Value); 7] = [
        ("context.get", Some(reading), revealing),
        ("context.get", None, one.clone()),
        ("context.get", Some(forged), one.clone()),
        (
            "context.get",
            Some(testkit::token::with_grant_key(testkit::attack::grant_key(), "other", 1)),
            one.clone(),
        ),
        (
            "context.get",
            Some(issue(&|request| request.scopes = trust::Scope::parse_list("context:put").unwrap())),
            one.clone(),
        ),
        // One session's token answers about no other, and not about all of them.
        ("context.get", Some(of_session.clone()), json!({ "session_id": "s1", "context_key": "k0" })),
        ("session.list", Some(of_session), json!({})),
    ];
    let before = fixture.count("audit.security_violations").await;
    for (query, token, body) in &refused {
        let (code, error) =
            reader.ask_with(query, token.as_deref(), body.clone(), &[]).await.expect_err("refused");
        assert_eq!((code.as_str(), &error["code"]), ("403", &json!("denied")), "{query} {body}");
        assert_eq!(error["message"], "the token does not allow this query", "why is not told");
    }
    assert_eq!(fixture.count("audit.security_violations").await, before + refused.len() as i64);
    eventually("the token has expired", async || {
        let late = reader.ask_with("context.get", Some(&expired), one.clone(), &[]).await;
        late.is_err().then_some(())
    })
    .await;
    // A revoked one, within a second or so.
    let revoked = testkit::token::issuer()
        .issue(&testkit::token::request("test", 1), std::time::SystemTime::now())
        .unwrap();
    assert!(reader.ask_with("context.get", Some(&revoked.token), one.clone(), &[]).await.is_ok());
    fixture.execute(&format!("SELECT sec.revoke_tokens(ARRAY['{}'::uuid])", revoked.id)).await;
    let (code, _) = reader
        .ask_with("context.get", Some(&revoked.token), one, &[])
        .await
        .expect_err("the database refuses at once");
    assert_eq!(code, "403");
    reader.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn every_read_is_noted_with_who_asked() {
    let fixture = filled().await;
    let reader = Reader::start(&fixture).await;
    let id = Uuid::now_v7().to_string();
    let token = testkit::token::with_grant_key(testkit::attack::grant_key(), "test", 1);
    let body = json!({ "session_id": "s0" });
    let page =
        reader.ask_with("context.list", Some(&token), body, &[(header::MESSAGE_ID, &id)]).await.unwrap();
    let noted = fixture
        .lines(&format!("concat_ws(' ', l.role_name, l.service, l.access_type, l.object_name, l.rows_returned, s.user_id) FROM audit.data_access_log l JOIN audit.subjects s ON s.token = l.subject_token WHERE request_id = '{id}'"))
        .await;
    let rows = page["contexts"].as_array().unwrap().len();
    assert_eq!(noted, [format!("w_memory_reader test read simple_chat_context {rows} 1")]);
    // Many at a time share a transaction, and each has a row of its own.
    let before = fixture.count("audit.data_access_log").await;
    let many = (0..60).map(|n| reader.ask("session.list", 1 + n % 2, json!({})));
    assert!(futures::future::join_all(many).await.iter().all(Result::is_ok));
    assert_eq!(fixture.count("audit.data_access_log").await, before + 60);

    // Each under the service that asked, also where several ask about one user at once.
    fixture.register("beside", "*:*").await;
    let of = |service: &str| testkit::token::with_grant_key(testkit::attack::grant_key(), service, 1);
    let (test, beside) = (of("test"), of("beside"));
    let mixed = (0..40).map(|n| {
        let (service, token) = if n % 2 == 0 { ("test", &test) } else { ("beside", &beside) };
        reader.ask_as(service, "session.list", Some(token), json!({}), &[])
    });
    assert!(futures::future::join_all(mixed).await.iter().all(Result::is_ok));
    let services = fixture
        .lines("service FROM audit.data_access_log WHERE access_type = 'read' GROUP BY service ORDER BY 1")
        .await;
    assert_eq!(services, ["beside", "test"]);

    // What cannot be noted is not told.
    fixture.execute("REVOKE EXECUTE ON FUNCTION audit.log_data_access FROM w_memory_reader").await;
    let (code, error) = reader.ask("session.list", 1, json!({})).await.expect_err("not noted");
    assert_eq!((code.as_str(), &error["code"]), ("503", &json!("unavailable")));
    reader.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slow_query_is_ended_in_the_database_too() {
    let fixture = filled().await;
    let reader = Reader::start(&fixture).await;
    let token = testkit::token::with_grant_key(testkit::attack::grant_key(), "test", 1);
    let mut holder = fixture.connection().await;
    holder.batch_execute("BEGIN; LOCK TABLE chat_mode_sessions IN ACCESS EXCLUSIVE MODE").await.unwrap();
    let (code, error) = reader
        .ask_with("session.list", Some(&token), json!({}), &[(header::DEADLINE_MS, "200")])
        .await
        .expect_err("too slow");
    assert_eq!((code.as_str(), &error["code"]), ("504", &json!("deadline")), "{error}");
    assert_eq!(error["message"], "there was no answer within 200 ms");
    let waiting = "pg_stat_activity WHERE datname = current_database() AND application_name = 'memfleet memory-reader' AND state = 'active'";
    assert_eq!(fixture.count(waiting).await, 0, "nothing goes on in PostgreSQL");
    // Also where it is the second statement that takes long.
    fixture.process(ContextWriter, [request("conversation.put", 1, json!({ "conversation_id": "c" }))]).await;
    holder.batch_execute("COMMIT; BEGIN; LOCK TABLE chat_messages IN ACCESS EXCLUSIVE MODE").await.unwrap();
    let asked = std::time::Instant::now();
    let (code, _) = reader
        .ask_with(
            "conversation.read",
            Some(&token),
            json!({ "conversation_id": "c" }),
            &[(header::DEADLINE_MS, "300")],
        )
        .await
        .expect_err("too slow");
    assert!(code == "504" && asked.elapsed() < Duration::from_secs(5), "{code}");
    eventually("nothing goes on in PostgreSQL", async || (fixture.count(waiting).await == 0).then_some(()))
        .await;
    holder.batch_execute("COMMIT").await.unwrap();
    assert!(reader.ask("session.list", 1, json!({})).await.is_ok(), "the connection is as good as before");
    for deadline in ["9", "10001", "soon", "-1"] {
        let refused = reader
            .ask_with("session.list", Some(&token), json!({}), &[(header::DEADLINE_MS, deadline)])
            .await;
        let (code, error) = refused.expect_err("no deadline");
        assert_eq!((code.as_str(), &error["field"]), ("400", &json!(header::DEADLINE_MS)), "{deadline}");
    }
    reader.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_query_that_is_wrong_is_told_what_is_wrong() {
    let fixture = Fixture::new().await;
    let reader = Reader::start(&fixture).await;
    for (query, body, field) in [
        ("session.list", json!({ "limit": 0 }), "limit"),
        ("session.list", json!({ "limit": 201 }), "limit"),
        ("session.list", json!({ "cursor": "nonsense" }), "cursor"),
        ("session.list", json!({ "colour": 1 }), "colour"),
        ("session.list", json!([]), "body"),
        ("context.list", json!({}), "session_id"),
        ("context.list", json!({ "session_id": "s", "context_type": "odd" }), "context_type"),
        ("context.list", json!({ "session_id": "s", "include_expired": true }), "include_expired"),
        ("context.get", json!({ "session_id": "s", "context_key": "a\u{0}b" }), "context_key"),
        ("agent-context.list", json!({ "memory_tier": "secret" }), "memory_tier"),
        (
            "agent-context.list",
            json!({ "memory_tier": "private", "include_expired": true }),
            "include_expired",
        ),
        ("graph.walk", json!({ "node_key": "k", "depth": 9 }), "depth"),
        ("graph.walk", json!({ "node_key": "k", "as_of": "yesterday" }), "as_of"),
        ("node.list", json!({ "limit": 201 }), "limit"),
        ("node.list", json!({ "status": "true" }), "status"),
        ("node.list", json!({ "since": "+10000-01-01T00:00:00Z" }), "since"),
        ("node.list", json!({ "cursor": "nonsense" }), "cursor"),
        ("node.dossier", json!({ "node_id": "n1" }), "node_id"),
        ("node.dossier", json!({}), "node_id"),
        ("agent.list", json!({ "active": "yes" }), "active"),
        ("agent.list", json!({ "cursor": "nonsense" }), "cursor"),
        ("task.list", json!({ "state": "late" }), "state"),
        ("task.list", json!({ "cursor": "nonsense" }), "cursor"),
        ("expert-conversation.read", json!({}), "session_id"),
        ("expert-conversation.read", json!({ "session_id": "s", "cursor": "nonsense" }), "cursor"),
        ("event.list", json!({ "after": -1 }), "after"),
        ("router.analytics", json!({ "by": ["colour"] }), "by[0]"),
        (
            "router.analytics",
            json!({ "from": "2024-01-01T00:00:00Z", "until": "2026-01-01T00:00:00Z" }),
            "from",
        ),
        ("session.list", json!({ "chat_mode": "x".repeat(200_000) }), "body"),
    ] {
        let (code, error) = reader.ask(query, 1, body.clone()).await.expect_err("wrong");
        assert_eq!(
            (code.as_str(), &error["code"], &error["field"]),
            ("400", &json!("malformed"), &json!(field)),
            "{query} {body}"
        );
    }
    // Nobody answers a query that there is not.
    let reply = fixture.jetstream.client().request("memory.ask.session.burn.test", "{}".into()).await;
    assert!(reply.is_err());
    reader.end().await;
}

/// A replica is another server with the same rows; here it is the same one under another URL, which only reads.
#[tokio::test(flavor = "multi_thread")]
async fn reading_needs_no_right_to_write() {
    let fixture = filled().await;
    let mut settings = fixture.settings.clone();
    let place = settings.postgres.worker_url.clone().unwrap();
    settings.postgres.read_url =
        Some(format!("{place}?options=-c%20default_transaction_read_only%3Don&application_name=replica"));
    let reader = Reader::start_with(&fixture, settings).await;
    for (query, body) in [
        ("session.list", json!({})),
        ("context.list", json!({ "session_id": "s0", "reveal": true })),
        ("router.analytics", json!({})),
        ("event.list", json!({ "session_id": "s0" })),
        ("node.list", json!({})),
        ("agent.list", json!({})),
        ("task.list", json!({})),
    ] {
        assert!(reader.ask(query, 1, body).await.is_ok(), "{query}");
    }
    assert!(
        fixture
            .count("pg_stat_activity WHERE datname = current_database() AND application_name = 'replica'")
            .await
            > 0
    );
    assert_eq!(fixture.count("audit.data_access_log").await, 11, "on the primary");
    reader.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_role_that_reads_can_write_nothing() {
    let fixture = filled().await;
    let mut reader = testkit::attack::login(&fixture, "w_memory_reader").await;
    let grant = testkit::attack::grant(1, "w_memory_reader");
    for statement in [
        "UPDATE simple_chat_context SET context_value = '1'",
        "DELETE FROM chat_messages",
        "INSERT INTO blackboard_events SELECT * FROM blackboard_events",
        "SELECT email FROM users",
        "SELECT * FROM user_two_factor_auth",
    ] {
        let refused: Result<(), store::Fault> = reader
            .transaction(async |connection| {
                store::security::open_context(connection, &[&grant]).await?;
                connection.batch_execute(statement).await?;
                Ok(())
            })
            .await;
        assert!(refused.expect_err("no right").reason.contains("permission denied"), "{statement}");
    }
}
