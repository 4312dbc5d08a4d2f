//! Queries about syncs between sessions: how far they are, what they did to keys, and what was lost.

use serde_json::{Value, json};
use testkit::{CANARY, Fixture};

use crate::support::reader::Reader;
use crate::support::sync::{Sync, process, put_as, with_sessions, write};
use crate::support::sync_history::{filled, sync_id};

fn column<'a>(answer: &'a Value, list: &str, field: &str) -> Vec<&'a Value> {
    answer[list].as_array().unwrap_or_else(|| panic!("{answer}")).iter().map(|item| &item[field]).collect()
}

/// All items of a list, read page by page.
async fn paged(reader: &Reader, query: &str, list: &str, mut body: Value) -> Value {
    let mut items = Vec::new();
    body["limit"] = 2.into();
    loop {
        let page = reader.ask(query, 1, body.clone()).await.expect("a page");
        assert!(page[list].as_array().unwrap().len() <= 2, "{page}");
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
async fn syncs_by_session_type_and_status() {
    let fixture = filled().await;
    let reader = Reader::start(&fixture).await;
    let ids = [sync_id(&fixture, 1, 1).await, sync_id(&fixture, 1, 2).await, sync_id(&fixture, 1, 3).await];
    let foreign = sync_id(&fixture, 2, 1).await;
    for (body, expected) in [
        (json!({}), vec![3, 2, 1]),
        (json!({ "session_id": "y" }), vec![2, 1]),
        (json!({ "session_id": "z" }), vec![3]),
        (json!({ "sync_type": "state_sync" }), vec![2]),
        (json!({ "sync_status": "completed" }), vec![3, 1]),
        (json!({ "sync_status": "completed", "session_id": "y" }), vec![1]),
        (json!({ "sync_id": ids[1] }), vec![2]),
        (json!({ "sync_id": foreign }), vec![]),
    ] {
        let found = reader.ask("sync.status", 1, body.clone()).await.expect("syncs");
        let expected: Vec<Value> = expected.into_iter().map(|number| json!(ids[number - 1])).collect();
        assert_eq!(column(&found, "syncs", "sync_id"), expected.iter().collect::<Vec<_>>(), "{body}");
        assert_eq!(noted(&fixture).await, [format!("cross_service_memory_sync {}", expected.len())]);
    }
    let all = reader.ask("sync.status", 1, json!({})).await.expect("syncs");
    assert_eq!(paged(&reader, "sync.status", "syncs", json!({})).await, all["syncs"]);
    let (undone, running, first) = (&all["syncs"][0], &all["syncs"][1], &all["syncs"][2]);
    for (field, value) in [
        ("source_session_id", json!("x")),
        ("target_session_id", json!("y")),
        ("end_reason", json!("carried")),
        ("crosses_private", json!(false)),
        ("service", json!("test")),
        ("rounds", json!(1)),
        ("created_at", json!("2026-11-01T11:00:00Z")),
        ("updated_at", json!("2026-11-01T11:01:00Z")),
        ("completed_at", json!("2026-11-01T11:01:00Z")),
        ("undone_at", Value::Null),
    ] {
        assert_eq!(first[field], value, "{field}");
    }
    assert_eq!(first["filter"]["prefixes"], json!(["a", "b"]));
    assert_eq!(
        (&first["transferred"]["merged"], &first["transferred"]["fast_forwarded"]),
        (&json!(3), &json!(0))
    );
    assert_eq!((&running["end_reason"], &running["crosses_private"]), (&Value::Null, &json!(true)));
    assert_eq!(undone["undone_at"], json!("2026-11-01T13:02:00Z"));
    reader.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_syncs_did_to_keys_and_what_was_lost() {
    let fixture = filled().await;
    let reader = Reader::start(&fixture).await;
    let (first, second) = (sync_id(&fixture, 1, 1).await, sync_id(&fixture, 1, 2).await);
    let foreign = sync_id(&fixture, 2, 1).await;
    for (body, expected) in [
        (json!({}), vec!["port", "b", "e", "fact.d", "c", "b", "a"]),
        (json!({ "sync_id": first }), vec!["e", "fact.d", "c", "b", "a"]),
        (json!({ "sync_id": first, "only_conflicts": true }), vec!["e", "fact.d", "c", "b"]),
        (json!({ "session_id": "x" }), vec!["b"]),
        (json!({ "context_key": "b" }), vec!["b", "b"]),
        (json!({ "context_key": "b", "sync_id": second }), vec!["b"]),
        (json!({ "sync_id": foreign }), vec![]),
    ] {
        let found = reader.ask("sync.history", 1, body.clone()).await.expect("changes");
        assert_eq!(column(&found, "changes", "context_key"), expected, "{body}");
        assert_eq!(noted(&fixture).await, [format!("sync_changes {}", expected.len())]);
    }
    let all = reader.ask("sync.history", 1, json!({})).await.expect("changes");
    assert_eq!(paged(&reader, "sync.history", "changes", json!({})).await, all["changes"]);
    let of = |place: usize| &all["changes"][place];
    let (shared, hidden, disputed, failed, merged) = (of(0), of(2), of(3), of(4), of(5));
    assert_eq!(
        (&shared["effect"], &shared["undone_at"]),
        (&json!("referenced"), &json!("2026-11-01T13:02:00Z"))
    );
    assert!(shared["node_id"].is_string());
    assert_eq!((&merged["agent_id"], &merged["memory_tier"]), (&json!("ada"), &json!("shared")));
    let conflict = &merged["conflicts"][0];
    for (field, value) in [
        ("path", json!("/theme")),
        ("cause", json!("edited")),
        ("rule", json!("preference")),
        ("base", json!("light")),
        ("ours", json!("blue")),
        ("theirs", json!("dark")),
        ("kept", json!("blue")),
        (
            "lost",
            json!([{ "session_id": "x", "write": 3, "written_at": "2026-11-01T10:59:00Z", "value": "dark" }]),
        ),
    ] {
        assert_eq!(conflict[field], value, "{field}");
    }
    assert_eq!(failed["effect"], json!("failed"));
    assert!(failed["reason"].as_str().unwrap().contains("lower it in one session"));
    // What each session says; one of them removed it.
    assert_eq!(column(disputed, "disputed", "session_id"), ["x", "y"]);
    assert_eq!(disputed["disputed"][0]["value"], json!("vegan"));
    assert!(disputed["disputed"][1].get("value").is_none());
    assert_eq!((&hidden["sensitive"], &hidden["conflicts"][0]["kept"]), (&json!(true), &json!("$encrypted")));
    reader.end().await;
}

/// An answer is one message of the broker, however much was lost.
#[tokio::test(flavor = "multi_thread")]
async fn a_page_ends_where_an_answer_has_no_more_room() {
    let fixture = filled().await;
    fixture
        .execute(
            "UPDATE sync_changes SET conflicts = jsonb_build_array(jsonb_build_object('path', '', 'cause', 'edited', 'rule', 'text',
                'kept', repeat('x', 300000)))",
        )
        .await;
    let reader = Reader::start(&fixture).await;
    let (mut seen, mut pages, mut body) = (0, 0, json!({}));
    loop {
        let page = reader.ask("sync.history", 1, body.clone()).await.expect("a page");
        seen += page["changes"].as_array().unwrap().len();
        pages += 1;
        if page["next_cursor"].is_null() {
            break;
        }
        body["cursor"] = page["next_cursor"].clone();
    }
    assert!(seen == 7 && pages > 3, "{seen} in {pages}");
    reader.end().await;
}

/// What lost is as secret as what it lost to: it is stored encrypted, and read by who may reveal it.
#[tokio::test(flavor = "multi_thread")]
async fn what_was_lost_of_an_encrypted_value_is_revealed_to_who_may_see_it() {
    let fixture = with_sessions(&["x", "y"]).await;
    let lost = format!("{CANARY}-lost");
    let secret = |session: &str, value: &str| {
        put_as(session, "pin", json!(value), 1, json!({ "access_level": "shared", "sensitive": true }))
    };
    write(&fixture, [secret("x", &lost), secret("y", "kept")]).await;
    process(&fixture, [Sync::new().transfer("x", "y")]).await;
    assert_eq!(fixture.dead_letters().await, Vec::<String>::new());
    let reader = Reader::start(&fixture).await;
    let hidden = reader.ask("sync.history", 1, json!({})).await.expect("changes");
    let change = &hidden["changes"][0];
    assert_eq!((&change["context_key"], &change["sensitive"]), (&json!("pin"), &json!(true)), "{hidden}");
    assert_eq!(change["conflicts"][0]["lost"][0]["value"], json!("$encrypted"));
    assert!(!hidden.to_string().contains(CANARY), "{hidden}");
    let shown = reader.ask("sync.history", 1, json!({ "reveal": true })).await.expect("changes");
    let conflict = &shown["changes"][0]["conflicts"][0];
    assert_eq!((&conflict["kept"], &conflict["lost"][0]["value"]), (&json!("kept"), &json!(lost)));
    reader.end().await;
}
