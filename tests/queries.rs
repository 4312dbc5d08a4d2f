//! Queries to the memory, each answered from what was written.

use context_writer::ContextWriter;
use diesel_async::SimpleAsyncConnection;
use router_logger::RouterLogger;
use serde_json::{Value, json};
use testkit::{CANARY, Fixture, request, requests_for_all_tables, session, user};
use uuid::Uuid;

use crate::support::reader::{Reader, filled};

/// The values of a field of a list's items.
fn column<'a>(answer: &'a Value, list: &str, field: &str) -> Vec<&'a Value> {
    answer[list].as_array().unwrap_or_else(|| panic!("{answer}")).iter().map(|item| &item[field]).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn sessions_and_contexts() {
    let fixture = filled().await;
    let reader = Reader::start(&fixture).await;
    let all = reader.ask("session.list", 1, json!({})).await.expect("sessions");
    let mut ids: Vec<String> =
        column(&all, "sessions", "session_id").iter().map(|id| id.as_str().unwrap().to_owned()).collect();
    ids.sort();
    assert_eq!(ids, ["s0", "s1", "s2", "s3", "s4"]);
    let busy = all["sessions"].as_array().unwrap().iter().find(|one| one["session_id"] == "s0").unwrap();
    assert_eq!(
        (&busy["context_count"], &busy["chat_mode"], &busy["is_active"]),
        (&json!(8), &json!("simple"), &json!(true)),
        "removed and expired contexts do not count"
    );
    assert_eq!(all["next_cursor"], Value::Null);
    let closed = reader.ask("session.list", 1, json!({ "active": false })).await.unwrap();
    assert_eq!(column(&closed, "sessions", "session_id"), ["s1"]);
    assert!(closed["sessions"][0]["ended_at"].is_string());
    // Page by page, each once and in the same order.
    let (mut paged, mut cursor) = (Vec::new(), Value::Null);
    loop {
        let mut body = json!({ "limit": 2 });
        if cursor.is_string() {
            body["cursor"] = cursor;
        }
        let page = reader.ask("session.list", 1, body).await.unwrap();
        assert!(page["sessions"].as_array().unwrap().len() <= 2);
        paged.extend(page["sessions"].as_array().unwrap().clone());
        cursor = page["next_cursor"].clone();
        if cursor.is_null() {
            break;
        }
    }
    assert_eq!(Value::from(paged), all["sessions"]);

    let list = async |body: Value| {
        let mut asked = json!({ "session_id": "s0" });
        asked.as_object_mut().unwrap().extend(body.as_object().unwrap().clone());
        reader.ask("context.list", 1, asked).await.expect("contexts")
    };
    let keys = |page: &Value| -> Vec<String> {
        column(page, "contexts", "context_key").iter().map(|key| key.as_str().unwrap().to_owned()).collect()
    };
    assert_eq!(keys(&list(json!({})).await), ["k0", "k1", "k2", "k3", "k4", "k5", "like.tea", "pin"]);
    assert_eq!(keys(&list(json!({ "context_type": "preference" })).await), ["like.tea"]);
    assert_eq!(keys(&list(json!({ "access_level": "shared" })).await), ["like.tea"]);
    assert_eq!(keys(&list(json!({ "key_prefix": "like." })).await), ["like.tea"]);
    assert_eq!(keys(&list(json!({ "key_prefix": "%" })).await), Vec::<String>::new());
    let first = list(json!({ "limit": 3 })).await;
    let second = list(json!({ "limit": 3, "cursor": first["next_cursor"] })).await;
    assert_eq!([keys(&first), keys(&second)].concat(), ["k0", "k1", "k2", "k3", "k4", "k5"]);

    let get = async |key: &str| {
        reader.ask("context.get", 1, json!({ "session_id": "s0", "context_key": key })).await
    };
    let tea = get("like.tea").await.unwrap();
    assert_eq!(
        (&tea["context"]["context_value"], &tea["context"]["access_level"]),
        (&json!(["green"]), &json!("shared"))
    );
    for gone in ["k6", "old", "never"] {
        let (code, error) = get(gone).await.expect_err("none");
        assert_eq!(
            (code.as_str(), &error["code"], &error["field"]),
            ("404", &json!("not-found"), &json!("context_key")),
            "{gone}"
        );
        assert_eq!(error["message"], format!("no context \"{gone}\" in session \"s0\" of user 1"));
    }
    reader.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_sensitive_is_told_only_if_it_is_asked_for() {
    let fixture = Fixture::new().await;
    fixture.process(ContextWriter, requests_for_all_tables(1)).await;
    let secret = |kind: &str, body: Value| {
        let mut body = body;
        body["sensitive"] = true.into();
        request(kind, 1, body)
    };
    fixture
        .process(ContextWriter, [
            session(1, "x"),
            secret("context.put", json!({ "session_id": "x", "context_key": "pin", "context_value": { "pin": CANARY }, "version": 1 })),
            secret("agent-context.put", json!({ "agent_id": "a", "session_id": "x", "memory_tier": "private", "context_key": "pin", "context_value": [CANARY], "version": 1 })),
            secret("conversation.put", json!({ "conversation_id": "x", "summary": CANARY, "metadata": { "m": CANARY } })),
            secret("message.add", json!({ "message_id": Uuid::now_v7(), "conversation_id": "x", "role": "user", "content": CANARY })),
        ])
        .await;
    assert_eq!(fixture.dead_letters().await, Vec::<String>::new());
    let reader = Reader::start(&fixture).await;
    let queries = [
        ("context.list", json!({ "session_id": "x" }), 1, "simple_chat_context"),
        ("context.get", json!({ "session_id": "x", "context_key": "pin" }), 1, "simple_chat_context"),
        (
            "agent-context.list",
            json!({ "memory_tier": "private", "session_id": "x" }),
            1,
            "agent_context_states",
        ),
        ("conversation.read", json!({ "conversation_id": "x" }), 3, "chat_messages"),
        ("conversation.read", json!({ "conversation_id": "x" }), 3, "chat_history"),
    ];
    for (query, mut body, secrets, table) in queries {
        let plain = reader.ask(query, 1, body.clone()).await.expect("an answer").to_string();
        assert_eq!(plain.matches("$encrypted").count(), secrets, "{plain}");
        assert!(!plain.contains(CANARY));
        body["reveal"] = true.into();
        let revealed = reader.ask(query, 1, body).await.expect("an answer").to_string();
        assert_eq!(
            (revealed.matches(CANARY).count(), revealed.matches("$encrypted").count()),
            (secrets, 0),
            "{revealed}"
        );
        let noted = fixture.lines(&format!("access_type FROM audit.data_access_log WHERE object_name = '{table}' ORDER BY id DESC LIMIT 2")).await;
        assert_eq!(noted, ["reveal", "read"], "{query}");
    }
    // A key store without the key: no answer, and not a wrong one.
    let database = fixture.settings.keys.url.clone();
    store::connect(&database).await.unwrap().batch_execute("DELETE FROM data_keys").await.unwrap();
    reader.end().await;
    let reader = Reader::start(&fixture).await;
    let body = json!({ "session_id": "x", "context_key": "pin", "reveal": true });
    let (code, error) = reader.ask("context.get", 1, body).await.expect_err("no key");
    assert_eq!((code.as_str(), &error["code"]), ("500", &json!("failed")));
    reader.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn conversations_agents_and_events() {
    let fixture = Fixture::new().await;
    let message = |n: i64, minute: i64| {
        request(
            "message.add",
            1,
            json!({ "message_id": Uuid::from_u64_pair(7, n.unsigned_abs()),
        "conversation_id": "c", "role": if n % 2 == 0 { "user" } else { "assistant" }, "content": format!("m{n}"),
        "sent_at": format!("2026-11-01T10:{minute:02}:00Z") }),
        )
    };
    let agent = |tier: &str, agent: &str, key: &str| {
        request(
            "agent-context.put",
            1,
            json!({ "agent_id": agent, "session_id": "s",
        "memory_tier": tier, "context_key": key, "context_value": tier, "version": 1 }),
        )
    };
    let mut requests = vec![user(1), session(1, "s")];
    // Two at the same minute: the page must not lose one of them.
    requests.extend([message(1, 1), message(0, 0), message(2, 2), message(3, 2), message(4, 3)]);
    requests.extend([
        agent("private", "a", "x"),
        agent("private", "b", "x"),
        agent("shared", "a", "y"),
        agent("consensus", "a", "z"),
    ]);
    fixture.process(ContextWriter, requests).await;
    let reader = Reader::start(&fixture).await;

    let (mut said, mut cursor) = (Vec::new(), Value::Null);
    for _ in 0..3 {
        let body = if cursor.is_null() {
            json!({ "conversation_id": "c", "limit": 2 })
        } else {
            json!({ "conversation_id": "c", "limit": 2, "cursor": cursor })
        };
        let page = reader.ask("conversation.read", 1, body).await.unwrap();
        said.extend(column(&page, "messages", "content").into_iter().cloned());
        cursor = page["next_cursor"].clone();
    }
    assert_eq!(
        (said, cursor),
        (vec![json!("m0"), json!("m1"), json!("m2"), json!("m3"), json!("m4")], Value::Null)
    );
    let (code, error) =
        reader.ask("conversation.read", 1, json!({ "conversation_id": "other" })).await.expect_err("none");
    assert_eq!((code.as_str(), &error["message"]), ("404", &json!("no conversation \"other\" of user 1")));

    for (body, agents) in [
        (json!({ "memory_tier": "private" }), vec!["a", "b"]),
        (json!({ "memory_tier": "private", "agent_id": "b" }), vec!["b"]),
        (json!({ "memory_tier": "shared", "session_id": "s" }), vec!["a"]),
        (json!({ "memory_tier": "consensus", "key_prefix": "z" }), vec!["a"]),
        (json!({ "memory_tier": "consensus", "session_id": "t" }), vec![]),
    ] {
        let found = reader.ask("agent-context.list", 1, body.clone()).await.unwrap();
        assert_eq!(column(&found, "contexts", "agent_id"), agents, "{body}");
    }

    let all = reader.ask("event.list", 1, json!({ "session_id": "s" })).await.unwrap();
    assert_eq!(all["events"].as_array().unwrap().len(), 5);
    assert_eq!(all["more"], false);
    let (mut after, mut numbers) = (json!(0), Vec::new());
    loop {
        let page = reader
            .ask("event.list", 1, json!({ "session_id": "s", "after": after, "limit": 2 }))
            .await
            .unwrap();
        numbers.extend(column(&page, "events", "event_sequence").into_iter().cloned());
        after = page["last"].clone();
        if page["more"] == false {
            break;
        }
    }
    assert_eq!(numbers.iter().collect::<Vec<_>>(), column(&all, "events", "event_sequence"));
    let account = reader.ask("event.list", 1, json!({})).await.unwrap();
    assert_eq!(column(&account, "events", "event_type"), ["user.stored"]);
    reader.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_learnt_from_decisions() {
    let fixture = Fixture::new().await;
    fixture.process(ContextWriter, [user(1), user(2), session(1, "s"), session(2, "s")]).await;
    let decision = |id: i32, hour: u32, route: &str, tools: &[&str], time: Option<i64>, success: bool| {
        request(
            "decision.log",
            id,
            json!({ "decision_id": Uuid::now_v7(), "session_id": "s", "user_request": "q",
            "routing_decision": route, "tools_invoked": tools, "processing_time_ms": time, "success": success, "complexity_score": 0.5,
            "confidence_score": 0.25, "tokens_used": 10, "model_used": "small", "decided_at": format!("2026-11-01T{hour:02}:30:00Z") }),
        )
    };
    let mut decisions = vec![
        decision(1, 9, "direct", &[], Some(10), true),
        decision(1, 9, "tools", &["a"], Some(30), false),
        decision(1, 10, "tools", &["a", "b"], None, true),
        decision(2, 9, "direct", &[], Some(99_999), true),
    ];
    decisions.extend((0..97).map(|_| decision(1, 11, "direct", &[], Some(100), true)));
    decisions.extend((0..3).map(|_| decision(1, 11, "direct", &[], Some(5_000), true)));
    fixture.process(RouterLogger, decisions).await;
    assert_eq!(fixture.dead_letters().await, Vec::<String>::new());
    let reader = Reader::start(&fixture).await;
    let day = |more: Value| {
        let mut body = json!({ "from": "2026-11-01T00:00:00Z", "until": "2026-11-01T23:00:00Z" });
        body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        body
    };
    let by_hour = reader.ask("router.analytics", 1, day(json!({}))).await.unwrap();
    assert_eq!(column(&by_hour, "rows", "decisions"), [2, 1, 100]);
    assert_eq!(
        column(&by_hour, "rows", "hour"),
        ["2026-11-01T09:00:00Z", "2026-11-01T10:00:00Z", "2026-11-01T11:00:00Z"]
    );
    assert_eq!(column(&by_hour, "rows", "success_rate"), [0.5, 1.0, 1.0]);
    assert_eq!(column(&by_hour, "rows", "mean_time_ms"), [&json!(20.0), &Value::Null, &json!(247.0)]);
    let p95 = by_hour["rows"][2]["p95_time_ms"].as_f64().unwrap();
    assert!((100.0..110.0).contains(&p95), "{p95}");
    assert_eq!(
        (
            &by_hour["rows"][0]["mean_complexity"],
            &by_hour["rows"][0]["mean_confidence"],
            &by_hour["rows"][0]["tokens_used"]
        ),
        (&json!(0.5), &json!(0.25), &json!(20))
    );

    let by_tool = reader.ask("router.analytics", 1, day(json!({ "by": ["tool"] }))).await.unwrap();
    assert_eq!(
        (column(&by_tool, "rows", "tool"), column(&by_tool, "rows", "decisions")),
        (vec![&json!("a"), &json!("b")], vec![&json!(2), &json!(1)])
    );
    let by_route = reader.ask("router.analytics", 1, day(json!({ "by": ["route", "model"] }))).await.unwrap();
    assert_eq!(column(&by_route, "rows", "route"), ["direct", "tools"]);
    assert_eq!(column(&by_route, "rows", "model"), ["small", "small"]);
    let of_tool = reader.ask("router.analytics", 1, day(json!({ "by": [], "tool": "a" }))).await.unwrap();
    assert_eq!(
        (column(&of_tool, "rows", "decisions"), &of_tool["truncated"]),
        (vec![&json!(2)], &json!(false))
    );
    let one = reader.ask("router.analytics", 1, day(json!({ "limit": 1 }))).await.unwrap();
    assert_eq!((column(&one, "rows", "decisions"), &one["truncated"]), (vec![&json!(2)], &json!(true)));
    let of_another = reader.ask("router.analytics", 2, day(json!({}))).await.unwrap();
    assert_eq!(column(&of_another, "rows", "decisions"), [1]);
    let (code, error) = reader
        .ask(
            "router.analytics",
            1,
            json!({ "from": "2026-11-02T00:00:00Z", "until": "2026-11-01T00:00:00Z" }),
        )
        .await
        .expect_err("backwards");
    assert_eq!((code.as_str(), &error["field"]), ("400", &json!("from")));
    reader.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_graph_around_a_node_also_in_circles() {
    let fixture = Fixture::new().await;
    fixture.process(ContextWriter, [user(1), user(2)]).await;
    // a → b → c → a, c → d → e; another user's nodes have the same keys.
    fixture
        .execute(
            "INSERT INTO consensus_memory_nodes (id, user_id, node_type, node_key, title, content)
                 SELECT md5(u || k)::uuid, u, 'fact', k, 'Title ' || k, jsonb_build_object('of', u)
                 FROM unnest(ARRAY['a', 'b', 'c', 'd', 'e']) AS k, unnest(ARRAY[1, 2]) AS u;
             INSERT INTO consensus_memory_relations (id, user_id, source_node_id, target_node_id, relation_type, strength)
                 SELECT uuid7(), 1, md5(1 || s)::uuid, md5(1 || t)::uuid, r, 0.5
                 FROM (VALUES ('a', 'b', 'supports'), ('b', 'c', 'supports'), ('c', 'a', 'supports'), ('c', 'd', 'contradicts'), ('d', 'e', 'supports')) AS v (s, t, r)",
        )
        .await;
    let reader = Reader::start(&fixture).await;
    let walk = async |body: Value| {
        let mut asked = json!({ "node_key": "a" });
        asked.as_object_mut().unwrap().extend(body.as_object().unwrap().clone());
        reader.ask("graph.walk", 1, asked).await.expect("a graph")
    };
    let depths = |answer: &Value| -> Vec<(String, i64)> {
        let nodes = answer["nodes"].as_array().unwrap().iter();
        nodes
            .map(|node| (node["node_key"].as_str().unwrap().to_owned(), node["depth"].as_i64().unwrap()))
            .collect()
    };
    let named =
        |of: &[(&str, i64)]| of.iter().map(|(key, depth)| ((*key).to_owned(), *depth)).collect::<Vec<_>>();
    let three = walk(json!({})).await;
    assert_eq!(depths(&three), named(&[("a", 0), ("b", 1), ("c", 2), ("d", 3)]));
    assert_eq!(three["relations"].as_array().unwrap().len(), 4);
    assert!(three["nodes"].as_array().unwrap().iter().all(|node| node["content"]["of"] == 1));
    assert_eq!(depths(&walk(json!({ "depth": 0 })).await), named(&[("a", 0)]));
    assert_eq!(depths(&walk(json!({ "depth": 8 })).await).len(), 5);
    assert_eq!(depths(&walk(json!({ "depth": 8, "relation_type": "supports" })).await).len(), 3);
    let cut = walk(json!({ "limit": 2 })).await;
    assert_eq!((depths(&cut).len(), &cut["truncated"]), (2, &json!(true)));
    let (code, error) = reader.ask("graph.walk", 1, json!({ "node_key": "z" })).await.expect_err("none");
    assert_eq!((code.as_str(), &error["field"]), ("404", &json!("node_key")));
    assert_eq!(error["message"], "no node \"z\" of user 1");
    reader.end().await;
}
