//! The order in which a conversation is read.

use context_writer::ContextWriter;
use serde_json::{Value, json};
use testkit::{Fixture, RequestMessage, request, user};
use uuid::Uuid;

use crate::support::reader::Reader;

/// A message of the conversation `c`, whose id sorts as the number.
fn said(content: &str, id: u64, sent_at: Option<&str>) -> RequestMessage {
    let id = Uuid::from_u64_pair(id, 0);
    let body = json!({ "message_id": id, "conversation_id": "c", "role": "user", "content": content,
        "sent_at": sent_at });
    request("message.add", 1, body)
}

/// The conversation, read in pages of this size.
async fn read(reader: &Reader, limit: u64) -> Vec<String> {
    let (mut contents, mut cursor) = (Vec::new(), Value::Null);
    loop {
        let body = json!({ "conversation_id": "c", "limit": limit, "cursor": cursor });
        let page = reader.ask("conversation.read", 1, body).await.expect("a page");
        let messages = page["messages"].as_array().expect("messages");
        contents.extend(messages.iter().map(|one| one["content"].as_str().expect("a text").to_owned()));
        cursor = page["next_cursor"].clone();
        if cursor.is_null() {
            return contents;
        }
    }
}

async fn assert_order(fixture: &Fixture, expected: &[&str]) {
    let reader = Reader::start(fixture).await;
    for limit in [1, 2, 3, 200] {
        assert_eq!(read(&reader, limit).await, expected, "in pages of {limit}");
    }
    reader.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn messages_of_one_time_are_read_as_they_were_stored() {
    let fixture = Fixture::new().await;
    let second = Some("2026-11-01T10:00:00Z");
    let requests = [
        user(1),
        said("question", 9, second),
        said("answer", 3, second),
        said("and", 7, second),
        said("so on", 1, second),
        said("before", 8, Some("2026-11-01T09:59:59Z")),
    ];
    fixture.process(ContextWriter, requests).await;
    // In batches of their own too.
    fixture.process(ContextWriter, [said("last", 0, second)]).await;
    assert_order(&fixture, &["before", "question", "answer", "and", "so on", "last"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_clock_that_is_ahead_puts_no_message_behind_later_ones() {
    let fixture = Fixture::new().await;
    let future = Some("2099-01-01T00:00:00Z");
    let requests = [
        user(1),
        said("first", 9, None),
        said("from 2099", 8, future),
        said("second", 7, None),
        said("from 2099 again", 6, future),
        said("third", 5, None),
    ];
    fixture.process(ContextWriter, requests).await;
    assert_order(&fixture, &["first", "from 2099", "second", "from 2099 again", "third"]).await;
    // Two requests of one user and one time: only where they are in the stream tells them apart.
    fixture.execute("UPDATE chat_messages SET \"timestamp\" = '2026-11-01Z'").await;
    assert_order(&fixture, &["first", "from 2099", "second", "from 2099 again", "third"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn no_time_after_the_year_9999_is_answered() {
    let fixture = Fixture::new().await;
    let context = json!({ "session_id": "s", "context_key": "k", "context_value": 1, "version": 1,
        "expires_at": "9999-12-31T23:59:59.999999999Z" });
    let device = json!({ "device_id": Uuid::nil(), "device_name": "d", "device_type": "phone",
        "last_seen_at": "2016-12-31T23:59:60Z" });
    let requests = [
        user(1),
        testkit::session(1, "s"),
        request("context.put", 1, context),
        request("device.put", 1, device),
        said("x", 1, None),
    ];
    fixture.process(ContextWriter, requests).await;
    let seen = fixture.lines("last_seen_at AT TIME ZONE 'UTC' FROM registered_devices").await;
    assert_eq!(seen, ["2017-01-01 00:00:00"]);
    let reader = Reader::start(&fixture).await;
    let get = json!({ "session_id": "s", "context_key": "k" });
    let last = "9999-12-31T23:59:59.999999Z";
    let stored = reader.ask("context.get", 1, get.clone()).await.expect("a context");
    assert_eq!(stored["context"]["expires_at"], last);
    // What was stored before the database had a check.
    for table in ["simple_chat_context", "chat_messages"] {
        fixture.execute(&format!("ALTER TABLE {table} DROP CONSTRAINT times_are_bounded")).await;
    }
    fixture
        .execute(
            "UPDATE simple_chat_context SET expires_at = '9999-12-31T23:59:60Z';
             UPDATE chat_messages SET \"timestamp\" = '9999-12-31T23:59:60Z'",
        )
        .await;
    let stored = reader.ask("context.get", 1, get).await.expect("a context");
    assert_eq!(stored["context"]["expires_at"], last);
    let page = reader.ask("conversation.read", 1, json!({ "conversation_id": "c" })).await.expect("a page");
    assert_eq!(page["messages"][0]["sent_at"], last);
    reader.end().await;
}
