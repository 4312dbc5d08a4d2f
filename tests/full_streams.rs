//! Streams that are full. No service fills the stream of dead letters, and when it is full only what must go there waits.
//! A full stream of events drops the oldest ones, and nobody waits.

use context_writer::ContextWriter;
use contract::{DeadLetterSummary, header};
use futures::{FutureExt, StreamExt};
use runtime::Dependency;
use serde_json::json;
use testkit::{Fixture, RequestMessage, context, eventually, request, session, user};

use crate::support::program::{Ended, memfleet, output};
use crate::support::reader::Reader;

/// A request that is malformed, with a body of so many bytes.
fn malformed(bytes: usize) -> RequestMessage {
    request("context.put", 1, json!({ "unknown": "x".repeat(bytes) }))
}

#[tokio::test(flavor = "multi_thread")]
async fn beyond_its_share_a_service_gets_one_dead_letter_for_many_messages() {
    let fixture = Fixture::new().await;
    let worker = fixture.run(ContextWriter);
    fixture.publish([user(1), session(1, "s")]).await;
    for _ in 0..12 {
        fixture.publish((0..100).map(|_| malformed(10))).await;
    }
    fixture.publish([context(1, "s", "good", 1)]).await;
    let mut other = malformed(10);
    other.subject = other.subject.replace(".test.", ".other.");
    fixture.publish([other]).await;
    let stats = &worker.stats;
    eventually("the good messages take effect", async || (stats.report().applied == 3).then_some(())).await;
    eventually("the dead letter of another service", async || {
        let dead = stats.report().dead;
        (dead.get("malformed") >= Some(&1_001)).then_some(())
    })
    .await;
    // What is listed together is acknowledged together, after a minute or at the end.
    worker.stop().await.expect("a clean end");

    let letters = fixture.messages("DEAD").await;
    let listed: Vec<_> = letters.iter().filter(|one| one.headers.get(header::DEAD_COUNT).is_some()).collect();
    assert_eq!(letters.len() - listed.len(), 1_001, "1,000 of the service, one of the other");
    assert!(listed.len() < 5, "{}", listed.len());
    let mut sequences = Vec::new();
    for letter in listed {
        let summary: DeadLetterSummary = serde_json::from_slice(&letter.payload).expect("a summary");
        assert_eq!(summary.stream, "CONTEXT");
        let count = summary.ranges.iter().map(|(first, last)| last - first + 1).sum::<u64>();
        let told = letter.headers.get(header::DEAD_COUNT).map(async_nats::HeaderValue::as_str);
        assert_eq!(told, Some(count.to_string().as_str()));
        sequences.extend(summary.ranges.into_iter().flat_map(|(first, last)| first..=last));
    }
    sequences.sort_unstable();
    assert_eq!(sequences, (1_003..=1_202).collect::<Vec<u64>>());
    let consumer = fixture.consumer("CONTEXT", "context-writer").await;
    assert_eq!(consumer.get_info().await.expect("a consumer").num_ack_pending, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn messages_that_wait_to_be_listed_hold_up_no_large_one_of_their_user() {
    let fixture = Fixture::new().await;
    let worker = fixture.run(ContextWriter);
    fixture.publish([user(1), session(1, "s")]).await;
    fixture.publish((0..1_050).map(|_| malformed(10))).await;
    let consumer = fixture.consumer("CONTEXT", "context-writer").await;
    eventually("only those to be listed are left", async || {
        let info = consumer.get_info().await.ok()?;
        (info.num_pending == 0 && info.num_ack_pending <= 50 && fixture.stored("DEAD").await == 1_000)
            .then_some(())
    })
    .await;
    let large =
        json!({ "session_id": "s", "context_key": "k", "context_value": "x".repeat(100_000), "version": 1 });
    fixture.publish([request("context.put", 1, large)]).await;
    eventually("the large one is written", async || {
        (fixture.count("simple_chat_context").await == 1).then_some(())
    })
    .await;
    assert_eq!(fixture.stored("DEAD").await, 1_000, "the others are not listed yet");
    worker.stop().await.expect("a clean end");
}

#[tokio::test(flavor = "multi_thread")]
async fn when_the_stream_is_full_only_what_must_go_there_waits() {
    let fixture = Fixture::with_topology(|topology| {
        for stream in topology.streams.iter_mut().filter(|stream| stream.name == "DEAD") {
            stream.config.insert("max_bytes".to_owned(), 100_000.into());
        }
    })
    .await;
    fixture.publish([user(1), session(1, "s")]).await;
    for number in 0..20 {
        let good = (0..10).map(|n| context(1, "s", &format!("k{number}.{n}"), 1));
        fixture.publish(std::iter::once(malformed(20_000)).chain(good)).await;
    }
    let worker = fixture.run(ContextWriter);
    let stats = &worker.stats;
    eventually("every good message takes effect", async || (stats.report().applied == 202).then_some(()))
        .await;
    let problem = eventually("the worker says what is full", async || {
        let missing = worker.readiness.report().missing;
        missing.into_iter().find(|one| one.dependency == Dependency::DeadLetterStream)
    })
    .await;
    assert!(problem.problem.contains("maximum bytes exceeded"), "{problem:?}");
    assert!(fixture.stored("DEAD").await < 5);

    let mut config =
        fixture.jetstream.get_stream("DEAD").await.expect("a stream").cached_info().config.clone();
    config.max_bytes = 10_000_000;
    fixture.jetstream.update_stream(config).await.expect("a larger stream");
    fixture.drained::<ContextWriter>().await;
    assert_eq!(fixture.stored("DEAD").await, 20);
    assert!(worker.readiness.report().ready);
    worker.stop().await.expect("a clean end");
}

#[tokio::test(flavor = "multi_thread")]
async fn while_the_stream_is_full_few_dead_letters_are_tried() {
    let fixture = Fixture::with_topology(|topology| {
        for stream in topology.streams.iter_mut().filter(|stream| stream.name == "DEAD") {
            stream.config.insert("max_bytes".to_owned(), 1_000.into());
        }
    })
    .await;
    let client = fixture.jetstream.client();
    let mut tried = client.subscribe("memory.dead.>").await.expect("a subscription");
    fixture.publish([user(1), session(1, "s")]).await;
    fixture.publish((0..100).map(|_| malformed(2_000))).await;
    fixture.publish([context(1, "s", "k", 1)]).await;
    let worker = fixture.run(ContextWriter);
    let stats = &worker.stats;
    eventually("the one behind them takes effect", async || (stats.report().applied == 3).then_some(()))
        .await;
    worker.stop().await.expect("a clean end");
    let mut count = 0;
    while let Some(Some(_)) = tried.next().now_or_never() {
        count += 1;
    }
    assert!((1..60).contains(&count), "each one costs time: {count} of 300 tries");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_service_has_a_limited_number_of_messages_that_wait_for_a_retry() {
    let mut fixture = Fixture::new().await;
    (fixture.settings.worker.retry_first_delay_ms, fixture.settings.worker.retry_longest_delay_ms) =
        (60_000, 60_000);
    let worker = fixture.run(ContextWriter);
    fixture.publish([user(1)]).await;
    for part in 0..5 {
        fixture.publish((0..1_004).map(|n| context(1, "unknown", &format!("k{part}.{n}"), 1))).await;
    }
    eventually("those beyond are dead-lettered", async || (fixture.stored("DEAD").await >= 20).then_some(()))
        .await;
    let letters = fixture.messages("DEAD").await;
    let reason = letters[0].headers.get(header::DEAD_REASON).map(ToString::to_string);
    let reason = reason.unwrap_or_default();
    assert!(reason.contains("too many messages of its service wait for a retry"), "{reason}");
    eventually("all others wait", async || (worker.stats.report().retried == 5_000).then_some(())).await;
    assert_eq!(letters.len(), 20);
    worker.stop().await.expect("a clean end");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_messages_of_a_list_are_replayed_from_their_stream() {
    let mut fixture = Fixture::new().await;
    fixture.settings.worker.retry_attempts = 1;
    let worker = fixture.run(ContextWriter);
    fixture.publish([user(1), context(1, "s", "a", 1), context(1, "s", "b", 1)]).await;
    fixture.drained::<ContextWriter>().await;
    let ended = output(memfleet(&fixture, &["dead", "drop", "--all", "--yes"])).await;
    assert!(ended.status.success(), "{ended:?}");
    let list = |ranges: &str| {
        let mut headers = async_nats::HeaderMap::new();
        headers.insert(header::DEAD_COUNT, "3");
        headers.insert(header::DEAD_CLASS, "missing-prerequisite");
        let body = format!(r#"{{"service": "test", "stream": "CONTEXT", "ranges": [{ranges}]}}"#);
        fixture.jetstream.publish_with_headers("memory.dead.context-writer.none", headers, body.into())
    };
    list("[2, 3], [900, 900]").await.expect("sent").await.expect("stored");
    fixture.publish([session(1, "s")]).await;
    fixture.drained::<ContextWriter>().await;
    let replayed = Ended::from(output(memfleet(&fixture, &["dead", "replay", "--all"])).await);
    assert!(replayed.out.contains("replayed 2 of the messages that it lists to CONTEXT"), "{replayed:?}");
    assert!(replayed.out.contains("1 are no longer in the stream"), "{replayed:?}");
    fixture.drained::<ContextWriter>().await;
    assert_eq!(fixture.count("simple_chat_context").await, 2);
    assert_eq!(fixture.stored("DEAD").await, 0);

    // A service cannot describe the dead letter of its message.
    let mut headers = async_nats::HeaderMap::new();
    headers.insert(header::REQUEST_ID, uuid::Uuid::now_v7().to_string());
    headers.insert(header::DEAD_COUNT, "1");
    let body = r#"{"service": "test", "stream": "CONTEXT", "ranges": [[1, 1]]}"#;
    let sent =
        fixture.jetstream.publish_with_headers("memory.req.other.session.open.9", headers, body.into());
    sent.await.expect("sent").await.expect("stored");
    fixture.drained::<ContextWriter>().await;
    assert_eq!(fixture.messages("DEAD").await[0].headers.get(header::DEAD_COUNT), None);
    let ended = output(memfleet(&fixture, &["dead", "drop", "--all", "--yes"])).await;
    assert!(ended.status.success(), "{ended:?}");

    // A list may be of a worker that was taken over.
    list("[0, 18446744073709551615]").await.expect("sent").await.expect("stored");
    let replayed = Ended::from(output(memfleet(&fixture, &["dead", "replay", "--all"])).await);
    assert!(replayed.err.contains("it is forged"), "{replayed:?}");
    let others = r#"{"service": "other", "stream": "CONTEXT", "ranges": [[1, 1]]}"#;
    let mut headers = async_nats::HeaderMap::new();
    headers.insert(header::DEAD_COUNT, "1");
    let sent =
        fixture.jetstream.publish_with_headers("memory.dead.context-writer.none", headers, others.into());
    sent.await.expect("sent").await.expect("stored");
    let replayed = Ended::from(output(memfleet(&fixture, &["dead", "replay", "--all"])).await);
    assert!(replayed.err.contains("not of the service whose messages are listed"), "{replayed:?}");
    worker.stop().await.expect("a clean end");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_body_beyond_the_share_is_read_from_its_stream_when_it_is_replayed() {
    let mut fixture = Fixture::new().await;
    fixture.settings.worker.retry_attempts = 1;
    let worker = fixture.run(ContextWriter);
    let large = |number: usize| {
        let value = "x".repeat(1_000_000);
        request(
            "context.put",
            1,
            json!({ "session_id": "s", "context_key": number.to_string(), "context_value": value, "version": 1 }),
        )
    };
    fixture.publish([user(1)]).await;
    for number in 0..70 {
        fixture.publish([large(number)]).await;
    }
    fixture.drained::<ContextWriter>().await;
    let letters = fixture.messages("DEAD").await;
    let without = letters.iter().filter(|letter| letter.payload.is_empty()).count();
    assert_eq!(letters.len(), 70);
    assert!((1..10).contains(&without), "{without}");

    fixture.publish([session(1, "s")]).await;
    fixture.drained::<ContextWriter>().await;
    let replayed = Ended::from(output(memfleet(&fixture, &["dead", "replay", "--all"])).await);
    assert!(replayed.out.contains("replayed 70, not replayed 0"), "{replayed:?}");
    fixture.drained::<ContextWriter>().await;
    assert_eq!(fixture.count("simple_chat_context").await, 70);
    worker.stop().await.expect("a clean end");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_stream_of_events_drops_the_oldest_and_a_query_returns_them() {
    let fixture = Fixture::with_topology(|topology| {
        for stream in topology.streams.iter_mut().filter(|stream| stream.name == "EVENTS") {
            stream.config.insert("max_bytes".to_owned(), 30_000.into());
        }
    })
    .await;
    let opened = [user(1), session(1, "s")];
    let contexts = (0..200).map(|n| context(1, "s", &format!("k{n}"), 1));
    fixture.process(ContextWriter, opened.into_iter().chain(contexts)).await;
    assert!(fixture.stored("EVENTS").await < 150);

    let reader = Reader::start(&fixture).await;
    let (mut after, mut events) = (json!(0), 0);
    loop {
        let page =
            reader.ask("event.list", 1, json!({ "session_id": "s", "after": after, "limit": 100 })).await;
        let page = page.expect("a page");
        events += page["events"].as_array().map_or(0, Vec::len);
        after = page["last"].clone();
        if page["more"] != json!(true) {
            break;
        }
    }
    assert_eq!(events, 201, "the session and its contexts");
    reader.end().await;
}
