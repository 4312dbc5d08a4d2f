//! The messages of a person whose erasure finds a broker that is away, another one than it should, or more messages than it reads at a time.

use async_nats::HeaderMap;
use context_writer::ContextWriter;
use contract::header;
use testkit::{Fixture, context, eventually, session, user};
use topology::Topology;

use crate::support::erasure::{
    ERASED_WITHIN, erase, file, json, messages_of, privacy, receipt, rows_of, with_receipts,
};
use crate::support::program::{Ended, memfleet, output_within};

const PERSON: i32 = 77_003;
/// More than are read at a time.
const MANY: i64 = 2_100;

/// Two users with a session each, and a place for receipts.
async fn two_users(mut fixture: Fixture) -> (Fixture, tempfile::TempDir) {
    let receipts = with_receipts(&mut fixture);
    let requests = [1, PERSON].into_iter().flat_map(|id| [user(id), session(id, "s")]);
    fixture.process(ContextWriter, requests).await;
    (fixture, receipts)
}

/// Stores a letter about a message whose subject is no request's.
async fn letter(fixture: &Fixture, of: i32) {
    let mut headers = HeaderMap::new();
    headers.insert(header::DEAD_SUBJECT, format!("memory.req.test.mistake.put.{of}").as_str());
    let subject = "memory.dead.context-writer.unknown";
    let sent = fixture.jetstream.publish_with_headers(subject, headers, "a body".into()).await;
    sent.expect("a publish").await.expect("an acknowledged publish");
}

/// How many messages each stream had of the person, without those that had none.
fn counted(receipt: &serde_json::Value) -> Vec<(String, i64)> {
    let stores = receipt["body"]["stores"].as_array().expect("stores").iter();
    let lines = stores.filter(|line| line["store"] == "nats" && line["before"] != 0);
    let line = |line: &serde_json::Value| {
        (line["name"].as_str().expect("a name").to_owned(), line["before"].as_i64().expect("a number"))
    };
    lines.map(line).collect()
}

/// At a broker with permissions, as in production.
#[tokio::test(flavor = "multi_thread")]
async fn all_messages_of_the_person_are_counted_and_go_and_no_other() {
    let (fixture, receipts) = two_users(Fixture::secured().await).await;
    fixture.publish((1..=MANY).map(|version| context(PERSON, "s", "k", version))).await;
    fixture.publish([context(1, "s", "k", 1)]).await;
    for of in [PERSON, 1, PERSON, 177_003] {
        letter(&fixture, of).await;
    }
    let of_other = messages_of(&fixture, 1).await;
    let events = messages_of(&fixture, PERSON).await.into_iter();
    let events = events.filter(|subject| subject.starts_with("memory.event.")).count();
    let signed = receipt(&erase(&fixture, receipts.path(), PERSON).await);
    let mut counted = counted(&signed);
    counted.sort();
    let events = i64::try_from(events).expect("a small number");
    assert!(events > 0);
    let expected = [("CONTEXT", MANY + 2), ("DEAD", 2), ("EVENTS", events)];
    assert_eq!(counted, expected.map(|(stream, count)| (stream.to_owned(), count)));
    assert_eq!(messages_of(&fixture, PERSON).await, Vec::<String>::new());
    assert_eq!(fixture.stored("DEAD").await, 2, "those of others");
    assert_eq!(messages_of(&fixture, 1).await, of_other);
}

/// Another account or a new server has none of the streams, or not all. What is on the right one would be left.
#[tokio::test(flavor = "multi_thread")]
async fn a_stream_that_is_missing_is_not_called_empty() {
    let (fixture, receipts) = two_users(Fixture::new().await).await;
    let missing =
        |stream: &str| format!("the stream {stream} is not there; `memfleet nats apply` creates it");
    fixture.jetstream.delete_stream("DEAD").await.expect("a deletion");
    let id = file(&fixture, PERSON).await;
    eventually("it stops at the messages", async || {
        fixture.execute("UPDATE privacy_requests SET retry_at = NULL").await;
        privacy(&fixture, &["run"]).await;
        let request = json(&fixture, &["show", &id]).await["request"].take();
        let error = request["last_error"].as_str().unwrap_or_default();
        (request["step"] == "streams" && error.contains(&missing("DEAD"))).then_some(())
    })
    .await;
    assert_eq!(fixture.stored("CONTEXT").await, 4, "nothing goes before all streams are counted");
    topology::apply(&fixture.jetstream, &Topology::shipped().expect("the streams"))
        .await
        .expect("the streams");
    let signed = receipts.path().join(format!("{id}.json"));
    eventually("it is complete", async || {
        fixture.execute("UPDATE privacy_requests SET retry_at = NULL").await;
        privacy(&fixture, &["run"]).await;
        signed.exists().then_some(())
    })
    .await;
    assert_eq!(messages_of(&fixture, PERSON).await, Vec::<String>::new());
    fixture.jetstream.delete_stream("EVENTS").await.expect("a deletion");
    let verified = privacy(&fixture, &["verify", signed.to_str().expect("a path")]).await;
    assert_eq!(verified.code, Some(1), "{}", verified.all());
    assert!(verified.err.contains(&missing("EVENTS")), "{}", verified.all());
}

#[tokio::test(flavor = "multi_thread")]
async fn an_erasure_that_is_waited_for_goes_on_when_the_broker_is_back() {
    let (mut fixture, receipts) = two_users(Fixture::new().await).await;
    fixture.nats.kill().await;
    let person = PERSON.to_string();
    let command =
        memfleet(&fixture, &["privacy", "erase", &person, "--reason", "a letter", "--yes", "--wait"]);
    let erased = tokio::spawn(output_within(ERASED_WITHIN, command));
    eventually("it stops at the messages", async || {
        let stopped =
            fixture.count("privacy_requests WHERE step = 'streams' AND last_error IS NOT NULL").await;
        (stopped == 1).then_some(())
    })
    .await;
    fixture.nats.resume().await.expect("the broker comes back");
    let ended: Ended = erased.await.expect("no panic").into();
    assert!(ended.is_success(), "{}", ended.all());
    assert!(ended.err.contains("stopped at the step streams: the broker"), "{}", ended.all());
    assert!(ended.err.contains("it is tried again"), "{}", ended.all());
    assert!(rows_of(&fixture, PERSON).await.is_empty(), "{:?}", rows_of(&fixture, PERSON).await);
    eventually("the test is connected again", async || fixture.jetstream.get_stream("DEAD").await.ok()).await;
    assert_eq!(messages_of(&fixture, PERSON).await, Vec::<String>::new());
    assert_eq!(std::fs::read_dir(receipts.path()).expect("the receipts").count(), 1);
}
