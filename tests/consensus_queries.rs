//! Queries about agents, their tasks and responses, and the nodes and dossiers these became.

use context_writer::ContextWriter;
use serde_json::{Value, json};
use testkit::{Fixture, session, user};
use uuid::Uuid;

use crate::support::reader::Reader;

/// For users 1 and 2, each with rows of the same names: three agents, a conversation with three tasks, the responses to two of
/// them, and the nodes `port` (superseded by a later one of the same key), `region`, `old` and `memory`.
const ROWS: &str = r#"
INSERT INTO agent_configurations (id, user_id, agent_id, agent_type, agent_role, assigned_llm, model_provider, model_family,
        system_prompt, capabilities, is_active)
    SELECT md5(u || a)::uuid, u, a, CASE a WHEN 'pm' THEN 'manager' ELSE 'expert' END, 'role of ' || a, 'm1', 'vllm', 'f-' || a,
        'You are ' || a || ' of ' || u, '["ports"]', a <> 'cy'
    FROM unnest(ARRAY['pm', 'ada', 'bo', 'cy']) AS a, unnest(ARRAY[1, 2]) AS u;
INSERT INTO agent_profiles (id, user_id, agent_id, config_id, display_name, description, expertise_areas, current_status)
    SELECT md5('p' || u || 'ada')::uuid, u, 'ada', md5(u || 'ada')::uuid, 'Ada', 'Knows networks', '["networks"]', 'busy'
    FROM unnest(ARRAY[1, 2]) AS u;
INSERT INTO agent_records (id, user_id, agent_id, task_kind, right_micro, wrong_micro, confidence_micro)
    SELECT md5(u || 'ada' || k)::uuid, u, 'ada', 'k' || k, k * 1000000, 250000, 0
    FROM generate_series(1, 30) AS k, unnest(ARRAY[1, 2]) AS u;
INSERT INTO multi_agent_conversations (id, user_id, session_id, conversation_title, current_phase, participating_agents,
        total_tasks_delegated, tasks_completed)
    SELECT md5(u || 'x')::uuid, u, 'x', 'Ports of ' || u, 'consensus', '["ada", "bo", "cy"]', 3, 1 FROM unnest(ARRAY[1, 2]) AS u;
INSERT INTO consensus_memory_nodes (id, user_id, node_type, node_key, title, content, validation_status, consensus_score,
        semantic_tags, established_at, valid_from, valid_to)
    SELECT md5(u || i)::uuid, u, t, k, 'Title ' || i, jsonb_build_object('of', u, 'says', i), s::validationstatus, 0.75,
        tags::jsonb, f::timestamptz, f::timestamptz, e::timestamptz
    FROM unnest(ARRAY[1, 2]) AS u, (VALUES
        ('port-1', 'fact', 'port', 'superseded', '["net"]', '2026-11-01 10:00+00', '2026-11-03 10:00+00'),
        ('port-2', 'fact', 'port', 'validated', '["net", "gateway"]', '2026-11-03 10:00+00', NULL),
        ('region', 'fact', 'region', 'disputed', '["cloud"]', '2026-11-02 10:00+00', NULL),
        ('old', 'fact', 'old', 'validated', '[]', '2026-11-01 09:00+00', '2026-11-02 09:00+00'),
        ('wrong', 'fact', 'wrong', 'rejected', '[]', '2026-11-01 08:00+00', '2026-11-01 08:30+00'),
        ('memory', 'memory', 'memory', 'unvalidated', '[]', '2026-11-04 10:00+00', NULL)) AS v (i, t, k, s, tags, f, e);
UPDATE consensus_memory_nodes SET superseded_by = md5(user_id || 'port-2')::uuid WHERE title = 'Title port-1';
UPDATE consensus_memory_nodes SET verdict = 'confirmed', verdict_by = 'vera', verdict_reason = 'I looked',
    verdict_at = '2026-11-03 11:00+00' WHERE title = 'Title port-2';
INSERT INTO consensus_tasks (id, user_id, session_id, pm_agent_id, question, task_kind, node_type, node_key, title, options, quorum,
        asked, responded, answered, deadline, state, close_reason, closed_at, node_id, created_at)
    SELECT md5(u || 't' || n)::uuid, u, 'x', 'pm', 'Question ' || n || ' of ' || u, CASE n WHEN 3 THEN 'guess' ELSE 'fact' END, 'fact',
        'port', 'The port', CASE n WHEN 1 THEN '["80", "8080"]'::jsonb END, 2, 3, 3 - n, 3 - n,
        '2026-11-05 10:00+00', CASE n WHEN 1 THEN 'closed' ELSE 'open' END, CASE n WHEN 1 THEN 'quorum' END,
        CASE n WHEN 1 THEN '2026-11-03 10:00+00'::timestamptz END, CASE n WHEN 1 THEN md5(u || 'port-2')::uuid END,
        '2026-11-01 10:00+00'::timestamptz + n * interval '1 hour'
    FROM generate_series(1, 3) AS n, unnest(ARRAY[1, 2]) AS u;
INSERT INTO task_estimates (user_id, id, answer, probability, estimated_at)
    SELECT user_id, id, 1, 0.875, closed_at FROM consensus_tasks WHERE state = 'closed';
UPDATE consensus_memory_nodes SET task_id = md5(user_id || 't1')::uuid WHERE title = 'Title port-2';
INSERT INTO task_delegations (id, user_id, session_id, pm_agent_id, target_agent_id, task_description, status, task_id)
    SELECT md5(u || 'd' || n || a)::uuid, u, 'x', 'pm', a, 'd', CASE WHEN a = 'cy' THEN 'pending' ELSE 'completed' END::taskdelegationstatus,
        md5(u || 't' || n)::uuid
    FROM generate_series(1, 3) AS n, unnest(ARRAY['cy', 'ada', 'bo']) AS a, unnest(ARRAY[1, 2]) AS u WHERE n < 3 OR a = 'ada';
INSERT INTO agent_responses (id, user_id, task_delegation_id, task_id, agent_id, response_text, claim, evidence, confidence_score,
        processing_time_seconds, stored_sequence, is_counted, created_at)
    SELECT md5('r' || u || n || a)::uuid, u, md5(u || 'd' || n || a)::uuid, md5(u || 't' || n)::uuid, a, a || ' says ' || n,
        CASE a WHEN 'ada' THEN '{"port": 8080}'::jsonb END, '[{"source": "rfc"}]', CASE a WHEN 'ada' THEN 0.5 END, 1.5, n, a = 'ada',
        -- Two at the same time: the page must not lose one of them.
        '2026-11-02 10:00+00'::timestamptz + n * interval '1 hour'
    FROM generate_series(1, 2) AS n, unnest(ARRAY['ada', 'bo']) AS a, unnest(ARRAY[1, 2]) AS u;
INSERT INTO consensus_dossiers (id, user_id, inputs, standing, dossier, rules_version, inputs_sha256)
    SELECT md5(u || 'port-2')::uuid, u, '{}', '{}', convert_to(format('{"format":1,"of":%s}', u), 'UTF8'), 1, repeat('a', 64)
    FROM unnest(ARRAY[1, 2]) AS u;
"#;

async fn filled() -> Fixture {
    let fixture = Fixture::new().await;
    fixture.process(ContextWriter, [user(1), user(2), session(1, "x"), session(2, "x")]).await;
    fixture.execute(ROWS).await;
    fixture
}

/// The id of a row of a user, as [`ROWS`] makes it.
async fn id(fixture: &Fixture, user: i32, name: &str) -> Uuid {
    fixture
        .lines(&format!("md5('{user}' || '{name}')::uuid::text FROM users LIMIT 1"))
        .await
        .remove(0)
        .parse()
        .expect("an id")
}

fn column<'a>(answer: &'a Value, list: &str, field: &str) -> Vec<&'a Value> {
    answer[list].as_array().unwrap_or_else(|| panic!("{answer}")).iter().map(|item| &item[field]).collect()
}

/// All items of a list, read page by page.
async fn paged(reader: &Reader, query: &str, list: &str, limit: usize, mut body: Value) -> Value {
    let mut items = Vec::new();
    body["limit"] = limit.into();
    loop {
        let page = reader.ask(query, 1, body.clone()).await.expect("a page");
        assert!(page[list].as_array().unwrap().len() <= limit, "{page}");
        items.extend(page[list].as_array().unwrap().clone());
        if page["next_cursor"].is_null() {
            return items.into();
        }
        body["cursor"] = page["next_cursor"].clone();
    }
}

/// What was noted as read for the last query: tables and numbers of rows.
async fn noted(fixture: &Fixture) -> Vec<String> {
    let query = "object_name || ' ' || rows_returned FROM audit.data_access_log
        WHERE request_id = (SELECT request_id FROM audit.data_access_log ORDER BY id DESC LIMIT 1) ORDER BY 1";
    fixture.lines(query).await
}

#[tokio::test(flavor = "multi_thread")]
async fn nodes_by_type_status_tag_and_time() {
    let fixture = filled().await;
    let reader = Reader::start(&fixture).await;
    for (body, expected) in [
        (json!({}), vec!["memory", "port-2", "region"]),
        (json!({ "include_past": true }), vec!["memory", "port-2", "region", "port-1", "old", "wrong"]),
        (json!({ "node_type": "fact" }), vec!["port-2", "region"]),
        (json!({ "node_key": "port", "include_past": true }), vec!["port-2", "port-1"]),
        (json!({ "status": "disputed" }), vec!["region"]),
        (json!({ "status": "superseded" }), vec!["port-1"]),
        (json!({ "status": "rejected" }), vec!["wrong"]),
        (json!({ "status": "validated" }), vec!["port-2"]),
        (json!({ "tag": "net" }), vec!["port-2"]),
        (json!({ "tag": "%" }), vec![]),
        (json!({ "since": "2026-11-03T10:00:00Z" }), vec!["memory", "port-2"]),
        (json!({ "until": "2026-11-03T10:00:00Z" }), vec!["region"]),
    ] {
        let found = reader.ask("node.list", 1, body.clone()).await.expect("nodes");
        let says: Vec<&str> =
            column(&found, "nodes", "content").iter().map(|of| of["says"].as_str().unwrap()).collect();
        assert_eq!(says, expected, "{body}");
        assert!(column(&found, "nodes", "content").iter().all(|content| content["of"] == 1));
        assert_eq!(noted(&fixture).await, [format!("consensus_memory_nodes {}", expected.len())]);
    }
    let all = reader.ask("node.list", 1, json!({ "include_past": true })).await.unwrap();
    assert_eq!(paged(&reader, "node.list", "nodes", 2, json!({ "include_past": true })).await, all["nodes"]);
    let past = &all["nodes"][3];
    assert_eq!(
        (&past["valid_from"], &past["valid_to"], &past["superseded_by"], &past["tags"]),
        (
            &json!("2026-11-01T10:00:00Z"),
            &json!("2026-11-03T10:00:00Z"),
            &json!(id(&fixture, 1, "port-2").await),
            &json!(["net"])
        )
    );
    reader.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_with_its_dossier() {
    let fixture = filled().await;
    let reader = Reader::start(&fixture).await;
    let (port, region) = (id(&fixture, 1, "port-2").await, id(&fixture, 1, "region").await);
    let ask = async |node: Uuid| reader.ask("node.dossier", 1, json!({ "node_id": node })).await;
    let found = ask(port).await.expect("a node");
    assert_eq!(noted(&fixture).await, ["consensus_dossiers 1", "consensus_memory_nodes 1"]);
    assert_eq!(found["dossier"]["content"], json!({ "format": 1, "of": 1 }));
    assert_eq!(
        (&found["dossier"]["rules_version"], &found["dossier"]["inputs_sha256"]),
        (&json!(1), &json!("a".repeat(64)))
    );
    assert_eq!(
        (&found["node"]["node_key"], &found["node"]["task_id"]),
        (&json!("port"), &json!(id(&fixture, 1, "t1").await))
    );
    assert_eq!(
        found["verdict"],
        json!({ "verdict": "confirmed", "given_by": "vera", "reason": "I looked", "given_at": "2026-11-03T11:00:00Z" })
    );
    let without = ask(region).await.expect("a node");
    assert_eq!((&without["dossier"], &without["verdict"]), (&Value::Null, &Value::Null));
    // Of another user, and of nobody.
    for node in [id(&fixture, 2, "port-2").await, Uuid::nil()] {
        let (code, error) = ask(node).await.expect_err("none");
        assert_eq!((code.as_str(), &error["field"]), ("404", &json!("node_id")));
        assert_eq!(error["message"], format!("no node {node} of user 1"));
    }
    // What is no JSON is not passed on.
    fixture.execute("UPDATE consensus_dossiers SET dossier = '\\xff' WHERE user_id = 1").await;
    let (code, error) = ask(port).await.expect_err("unreadable");
    assert_eq!((code.as_str(), &error["code"]), ("500", &json!("failed")));
    reader.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn agents_with_profiles_and_records() {
    let fixture = filled().await;
    let reader = Reader::start(&fixture).await;
    let all = reader.ask("agent.list", 1, json!({})).await.expect("agents");
    assert_eq!(column(&all, "agents", "agent_id"), ["ada", "bo", "cy", "pm"]);
    // Of the records those with the most answers.
    assert_eq!(noted(&fixture).await, ["agent_configurations 4", "agent_profiles 1", "agent_records 20"]);
    let ada = &all["agents"][0];
    assert_eq!(
        (&ada["system_prompt"], &ada["model_family"], &ada["capabilities"], &ada["model_provider"]),
        (&json!("You are ada of 1"), &json!("f-ada"), &json!(["ports"]), &json!("vllm"))
    );
    assert_eq!(
        (
            &ada["profile"]["display_name"],
            &ada["profile"]["current_status"],
            &ada["profile"]["expertise_areas"]
        ),
        (&json!("Ada"), &json!("busy"), &json!(["networks"]))
    );
    let best = &ada["records"][0];
    assert_eq!(
        (&best["task_kind"], &best["right"], &best["wrong"]),
        (&json!("k30"), &json!(30.0), &json!(0.25))
    );
    assert!(best["estimated_at"].is_string());
    assert_eq!((&all["agents"][1]["profile"], &all["agents"][1]["records"]), (&Value::Null, &json!([])));
    for (body, expected) in [
        (json!({ "agent_type": "manager" }), vec!["pm"]),
        (json!({ "active": false }), vec!["cy"]),
        (json!({ "active": true, "agent_type": "expert" }), vec!["ada", "bo"]),
    ] {
        let found = reader.ask("agent.list", 1, body.clone()).await.expect("agents");
        assert_eq!(column(&found, "agents", "agent_id"), expected, "{body}");
    }
    assert_eq!(paged(&reader, "agent.list", "agents", 2, json!({})).await, all["agents"]);
    reader.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn tasks_and_whom_they_were_given_to() {
    let fixture = filled().await;
    let reader = Reader::start(&fixture).await;
    let all = reader.ask("task.list", 1, json!({})).await.expect("tasks");
    assert_eq!(column(&all, "tasks", "question"), ["Question 3 of 1", "Question 2 of 1", "Question 1 of 1"]);
    assert_eq!(noted(&fixture).await, ["consensus_tasks 3", "task_delegations 7", "task_estimates 1"]);
    let closed = &all["tasks"][2];
    for (field, value) in [
        ("state", json!("closed")),
        ("close_reason", json!("quorum")),
        ("options", json!(["80", "8080"])),
        ("quorum", json!(2)),
        ("asked", json!(3)),
        ("responded", json!(2)),
        ("answered", json!(2)),
        ("node_id", json!(id(&fixture, 1, "port-2").await)),
        ("estimated_answer", json!(1)),
        ("estimated_probability", json!(0.875)),
        (
            "agents",
            json!([
                { "agent_id": "ada", "status": "completed" },
                { "agent_id": "bo", "status": "completed" },
                { "agent_id": "cy", "status": "pending" }
            ]),
        ),
    ] {
        assert_eq!(closed[field], value, "{field}");
    }
    for (body, expected) in [
        (json!({ "state": "closed" }), vec!["Question 1 of 1"]),
        (json!({ "task_kind": "guess" }), vec!["Question 3 of 1"]),
        (json!({ "agent_id": "bo" }), vec!["Question 2 of 1", "Question 1 of 1"]),
        (json!({ "agent_id": "bo", "state": "open", "session_id": "x" }), vec!["Question 2 of 1"]),
        (json!({ "session_id": "y" }), vec![]),
    ] {
        let found = reader.ask("task.list", 1, body.clone()).await.expect("tasks");
        assert_eq!(column(&found, "tasks", "question"), expected, "{body}");
    }
    assert_eq!(paged(&reader, "task.list", "tasks", 2, json!({})).await, all["tasks"]);
    reader.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_conversation_of_experts_with_its_responses() {
    let fixture = filled().await;
    let reader = Reader::start(&fixture).await;
    let all = reader
        .ask("expert-conversation.read", 1, json!({ "session_id": "x" }))
        .await
        .expect("a conversation");
    assert_eq!(noted(&fixture).await, ["agent_responses 4", "multi_agent_conversations 1"]);
    for (field, value) in [
        ("title", json!("Ports of 1")),
        ("phase", json!("consensus")),
        ("participating_agents", json!(["ada", "bo", "cy"])),
        ("total_tasks_delegated", json!(3)),
        ("tasks_completed", json!(1)),
    ] {
        assert_eq!(all[field], value, "{field}");
    }
    let mut said: Vec<&Value> = column(&all, "responses", "response_text");
    assert!(said[..2].iter().all(|text| text.as_str().unwrap().ends_with('1')), "the oldest first: {said:?}");
    said.sort_by_key(|text| text.as_str());
    assert_eq!(said, ["ada says 1", "ada says 2", "bo says 1", "bo says 2"]);
    let of = |text: &str| {
        all["responses"].as_array().unwrap().iter().find(|one| one["response_text"] == text).unwrap()
    };
    let (ada, bo) = (of("ada says 1"), of("bo says 1"));
    assert_eq!(
        (&ada["claim"], &ada["evidence"], &ada["confidence_score"], &ada["counted"]),
        (&json!({ "port": 8080 }), &json!([{ "source": "rfc" }]), &json!(0.5), &json!(true))
    );
    assert_eq!(
        (&bo["claim"], &bo["confidence_score"], &bo["counted"]),
        (&Value::Null, &Value::Null, &json!(false))
    );
    let second = id(&fixture, 1, "t2").await;
    let of_task = reader
        .ask("expert-conversation.read", 1, json!({ "session_id": "x", "task_id": second }))
        .await
        .expect("a conversation");
    assert_eq!(column(&of_task, "responses", "task_id"), [&json!(second), &json!(second)]);
    // Each page of three ends between two responses of one time, or at the end.
    let body = json!({ "session_id": "x" });
    assert_eq!(paged(&reader, "expert-conversation.read", "responses", 3, body).await, all["responses"]);
    let (code, error) =
        reader.ask("expert-conversation.read", 1, json!({ "session_id": "y" })).await.expect_err("none");
    assert_eq!((code.as_str(), &error["field"]), ("404", &json!("session_id")));
    assert_eq!(error["message"], "no conversation of experts \"y\" of user 1");
    reader.end().await;
}

/// An answer is one message of the broker, however large the values are.
#[tokio::test(flavor = "multi_thread")]
async fn pages_end_where_an_answer_has_no_more_room() {
    let fixture = filled().await;
    // Escapes make the texts six times as large.
    fixture
        .execute(
            "UPDATE agent_responses SET response_text = repeat(E'\\u0001', 60000) || id;
             UPDATE consensus_tasks SET question = repeat(E'\\u0001', 60000) || id;
             UPDATE agent_configurations SET system_prompt = repeat(E'\\u0001', 60000) || id;
             UPDATE consensus_memory_nodes SET content = jsonb_build_object('text', repeat('x', 300000))",
        )
        .await;
    let reader = Reader::start(&fixture).await;
    for (query, list, mut body, items) in [
        ("expert-conversation.read", "responses", json!({ "session_id": "x" }), 4),
        ("task.list", "tasks", json!({}), 3),
        ("agent.list", "agents", json!({}), 4),
        ("node.list", "nodes", json!({ "include_past": true }), 6),
    ] {
        let (mut seen, mut pages) = (0, 0);
        loop {
            let page = reader.ask(query, 1, body.clone()).await.expect("a page");
            seen += page[list].as_array().unwrap().len();
            pages += 1;
            if page["next_cursor"].is_null() {
                break;
            }
            body["cursor"] = page["next_cursor"].clone();
        }
        assert!(seen == items && pages > 1, "{query}: {seen} in {pages}");
    }
    reader.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_graph_of_an_earlier_time() {
    let fixture = filled().await;
    // region → port-1 and port-2; port-1 → old; region → memory, which was removed on the 4th.
    fixture
        .execute(
            "INSERT INTO consensus_memory_relations (id, user_id, source_node_id, target_node_id, relation_type, created_at, removed_at)
             SELECT uuid7(), u, md5(u || s)::uuid, md5(u || t)::uuid, 'supports', f::timestamptz, e::timestamptz
             FROM unnest(ARRAY[1, 2]) AS u, (VALUES
                ('region', 'port-1', '2026-11-02 11:00+00', NULL), ('region', 'port-2', '2026-11-03 11:00+00', NULL),
                ('port-1', 'old', '2026-11-01 11:00+00', NULL), ('port-1', 'port-2', '2026-11-01 11:00+00', NULL),
                ('region', 'memory', '2026-11-04 11:00+00', '2026-11-04 12:00+00')) AS v (s, t, f, e)",
        )
        .await;
    let reader = Reader::start(&fixture).await;
    let walk = async |key: &str, as_of: Option<&str>| {
        let mut body = json!({ "node_key": key });
        if let Some(time) = as_of {
            body["as_of"] = json!(format!("2026-11-{time}:00Z"));
        }
        let found = reader.ask("graph.walk", 1, body).await?;
        let says = column(&found, "nodes", "content");
        let says: Vec<String> = says.iter().map(|of| of["says"].as_str().unwrap().to_owned()).collect();
        Ok::<_, (String, Value)>((says, found["relations"].as_array().unwrap().len()))
    };
    let nodes =
        |names: &[&str], relations| (names.iter().map(|name| (*name).to_owned()).collect(), relations);
    for (key, as_of, expected) in [
        // Now: a superseded node is not passed through, nor a relation that was removed.
        ("region", None, nodes(&["region", "port-2"], 1)),
        ("region", Some("04T11:30"), nodes(&["region", "memory", "port-2"], 2)),
        ("region", Some("03T10:30"), nodes(&["region"], 0)),
        // What ends at a time is not there any more, and what begins at it is.
        ("port", Some("03T10:00"), nodes(&["port-2"], 0)),
        ("port", Some("03T09:59"), nodes(&["port-1"], 0)),
        ("region", Some("02T12:00"), nodes(&["region", "port-1"], 1)),
        ("port", Some("01T12:00"), nodes(&["port-1", "old"], 1)),
        ("port", None, nodes(&["port-2"], 0)),
    ] {
        assert_eq!(walk(key, as_of).await.expect("a graph"), expected, "{key} {as_of:?}");
    }
    for (key, as_of) in [("old", None), ("region", Some("02T09:59")), ("memory", Some("01T10:00"))] {
        let (code, _) = walk(key, as_of).await.expect_err("not there");
        assert_eq!(code, "404", "{key} {as_of:?}");
    }
    reader.end().await;
}

/// A token for one session answers about no other.
#[tokio::test(flavor = "multi_thread")]
async fn a_token_of_one_session_reads_that_conversation_only() {
    let fixture = filled().await;
    let reader = Reader::start(&fixture).await;
    let mut request = testkit::token::request("test", 1);
    request.session = Some(contract::SessionId::new("x").unwrap());
    let token =
        testkit::token::issuer().issue(&request, std::time::SystemTime::now()).expect("a token").token;
    let ask = async |query: &str, body: Value| reader.ask_with(query, Some(&token), body, &[]).await;
    assert!(ask("expert-conversation.read", json!({ "session_id": "x" })).await.is_ok());
    assert!(ask("task.list", json!({ "session_id": "x" })).await.is_ok());
    for (query, body) in [
        ("expert-conversation.read", json!({ "session_id": "y" })),
        ("task.list", json!({ "session_id": "y" })),
        ("task.list", json!({})),
        ("node.list", json!({})),
        ("node.dossier", json!({ "node_id": Uuid::nil() })),
        ("agent.list", json!({})),
    ] {
        let (code, _) = ask(query, body.clone()).await.expect_err("denied");
        assert_eq!(code, "403", "{query} {body}");
    }
    reader.end().await;
}
