//! Messages whose bytes the client library cannot read, or reads differently from the server: each becomes a dead letter
//! at its first delivery, and no other message is affected.

use std::time::{Duration, Instant};

use async_nats::HeaderValue;
use async_nats::jetstream::message::StreamMessage;
use context_writer::ContextWriter;
use contract::header;
use futures::StreamExt;
use serde_json::json;
use testkit::{Fixture, RequestMessage, context, eventually, request, session, set_redelivery, user};
use tokio::time::timeout;

use crate::support::raw_nats::{RawPublisher, block};
use crate::support::reader::{Reader, filled};

/// Header lines that the server stores and the client library refuses, panics on or reads differently.
const LINES: [&[u8]; 12] = [
    b"X Trace: 1",
    "Gr\u{f6}\u{df}e: 1".as_bytes(),
    b"X-Name: J\xfcrgen",
    b"a line without a colon",
    b"X-A: 1\nX-B: 2",
    b"X-A: 1\rX-B: 2",
    b"X-A: 1\r",
    b" X-Folded: 1",
    b": no name",
    b"X-A: \0",
    "X-A: 1\u{a0}".as_bytes(),
    "\u{2028}X-A: 1".as_bytes(),
];

/// What follows the user's id in a subject.
const ENDINGS: [&[u8]; 6] =
    ["\u{a0}".as_bytes(), "\u{2028}".as_bytes(), "\u{85}".as_bytes(), b"\x0b", b"\xff", b"\x1b[31m"];

/// The header lines of a valid request.
fn lines(request: &RequestMessage) -> Vec<Vec<u8>> {
    let headers = request.header_map();
    let line = |name: &async_nats::HeaderName, value: &HeaderValue| format!("{name}: {value}").into_bytes();
    headers.iter().flat_map(|(name, values)| values.iter().map(move |value| line(name, value))).collect()
}

/// A valid request with one more header line.
fn with_line(request: &RequestMessage, line: &[u8]) -> Vec<u8> {
    let lines = lines(request);
    let mut all: Vec<&[u8]> = lines.iter().map(Vec::as_slice).collect();
    all.insert(all.len() / 2, line);
    block(&all)
}

/// Waits until the stream CONTEXT holds so many messages.
async fn stored(fixture: &Fixture, messages: u64) {
    eventually("the stream holds the messages", async || {
        (fixture.stored("CONTEXT").await >= messages).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unreadable_message_is_malformed_at_its_first_delivery_and_affects_no_other() {
    let fixture = Fixture::with_topology(|topology| {
        // Whoever is delivered again would wait for longer than the test.
        set_redelivery(topology, "context-writer", Duration::from_secs(600), 64);
    })
    .await;
    fixture.publish([user(42), session(42, "s")]).await;
    let mut raw = RawPublisher::connect(fixture.nats.url()).await;
    let odd = || context(42, "s", "odd", 1);
    let first = odd();
    let mut odd_requests = std::iter::once(first.clone()).chain(std::iter::repeat_with(odd));
    let mut next = move || odd_requests.next().expect("a request");
    let (mut published, mut count) = (2, 0);
    let mut good = Vec::new();
    for line in LINES {
        good.push(context(42, "s", &format!("good{count}"), 1));
        fixture.publish(good.last().cloned()).await;
        let odd = next();
        raw.publish(odd.subject.as_bytes(), &with_line(&odd, line), &odd.body).await;
        (published, count) = (published + 2, count + 1);
        stored(&fixture, published).await;
    }
    for ending in ENDINGS {
        let odd = next();
        let subject = [odd.subject.as_bytes(), ending].concat();
        good.push(context(42, "s", &format!("good{count}"), 1));
        fixture.publish(good.last().cloned()).await;
        raw.publish(&subject, &with_line(&odd, b"X-A: 1"), &odd.body).await;
        (published, count) = (published + 2, count + 1);
        stored(&fixture, published).await;
    }
    // The server itself takes a status out of the first line of what it stores.
    let odd = next();
    let readable = with_line(&odd, b"X-A: 1");
    let block = [b"NATS/2.0", &readable[b"NATS/1.0".len()..]].concat();
    raw.publish(odd.subject.as_bytes(), &block, &odd.body).await;
    (published, count) = (published + 1, count + 1);
    stored(&fixture, published).await;

    let (worker, since) = (fixture.run(ContextWriter), Instant::now());
    fixture.drained::<ContextWriter>().await;
    assert!(since.elapsed() < Duration::from_secs(20), "took {:?}", since.elapsed());
    let consumer = fixture.consumer("CONTEXT", "context-writer").await;
    let delivered = consumer.get_info().await.expect("a consumer").delivered.consumer_sequence;
    assert_eq!(delivered, published, "every message is delivered once");

    let dead = fixture.dead_letters().await;
    assert_eq!(dead.len(), count, "{dead:#?}");
    for letter in &dead {
        assert!(letter.starts_with("malformed: headers: "), "{letter}");
    }
    assert_eq!(fixture.count("simple_chat_context WHERE context_key LIKE 'good%'").await, 18);
    assert_eq!(fixture.count("simple_chat_context WHERE context_key = 'odd'").await, 0);
    let letters = fixture.messages("DEAD").await;
    // Services take turns, so that the letters are in another order than their messages.
    let told = |name: &str, value: &str| {
        let is_it =
            |letter: &&StreamMessage| letter.headers.get(name).is_some_and(|told| told.as_str() == value);
        letters.iter().find(is_it).unwrap_or_else(|| panic!("no letter with {name}: {value}"))
    };
    // What can be read stays with the letter, and the rest where it is.
    let letter = told(header::DEAD_REQUEST_ID, &first.id.to_string());
    assert_eq!(letter.headers.get(header::AUTHORIZATION), None);
    assert_eq!(letter.payload, first.body);
    let letter = told(header::DEAD_SUBJECT, "memory.req.test.context.put.42%C2%A0");
    assert_eq!(letter.subject.as_str(), "memory.dead.context-writer.unknown");
    worker.stop().await.expect("a clean end");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unreadable_message_that_no_worker_settled_becomes_a_dead_letter_too() {
    let fixture = Fixture::with_topology(|topology| {
        set_redelivery(topology, "context-writer", Duration::from_millis(300), 1);
    })
    .await;
    let odd = user(1);
    let mut raw = RawPublisher::connect(fixture.nats.url()).await;
    raw.publish(odd.subject.as_bytes(), &with_line(&odd, b"X-A: 1\rX-B: 2"), &odd.body).await;
    stored(&fixture, 1).await;
    // Somebody takes it and settles nothing.
    let consumer = fixture.consumer("CONTEXT", "context-writer").await;
    let mut taken = consumer.fetch().max_messages(1).messages().await.expect("a pull");
    taken.next().await.expect("a message").expect("a message that can be read");
    // The server tells of it when it would deliver the message again.
    let worker = fixture.run(ContextWriter);
    let dead = eventually("a dead letter", async || {
        Some(fixture.dead_letters().await).filter(|dead| !dead.is_empty())
    })
    .await;
    assert_eq!(dead, ["undeliverable: delivered 1 times and never settled; it may have crashed a worker"]);
    worker.stop().await.expect("a clean end");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unreadable_query_is_answered_and_affects_no_other() {
    let fixture = filled().await;
    let reader = Reader::start(&fixture).await;
    let mut raw = RawPublisher::connect(fixture.nats.url()).await;
    let mut answers = fixture.subscribe("_INBOX.test.>").await;
    for (number, line) in LINES.iter().enumerate() {
        let reply = format!("_INBOX.test.{number}");
        raw.publish_to(b"memory.ask.session.list.test", &reply, &block(&[line]), b"{}").await;
    }
    raw.publish_to(b"memory.ask.session.list.test\xc2\xa0", "_INBOX.test.never", &block(&[]), b"{}").await;
    raw.flush().await;
    for _ in LINES {
        let message = testkit::next(&mut answers).await;
        let body: serde_json::Value = serde_json::from_slice(&message.payload).expect("JSON");
        assert_eq!((&body["code"], &body["field"]), (&json!("malformed"), &json!("headers")), "{body}");
    }
    let answer = reader.ask("session.list", 1, json!({})).await.expect("an answer");
    assert_eq!(answer["sessions"].as_array().map(Vec::len), Some(5), "{answer}");
    reader.end().await;
}

/// JetStream stores no more than 64 KiB of headers. A query is not stored.
#[tokio::test(flavor = "multi_thread")]
async fn a_query_of_many_headers_is_refused_before_they_are_read() {
    let fixture = filled().await;
    let reader = Reader::start(&fixture).await;
    let mut raw = RawPublisher::connect(fixture.nats.url()).await;
    let mut answers = fixture.subscribe("_INBOX.test.>").await;
    for (lines, problem) in [(580_000, "65536 bytes"), (257, "256 lines")] {
        let block = block(&vec![b"A:".as_slice(); lines]);
        raw.publish_to(b"memory.ask.session.list.test", "_INBOX.test.many", &block, b"{}").await;
        raw.flush().await;
        let message = testkit::next(&mut answers).await;
        let body: serde_json::Value = serde_json::from_slice(&message.payload).expect("JSON");
        assert_eq!((&body["code"], &body["field"]), (&json!("malformed"), &json!("headers")), "{body}");
        let said = format!("headers: the header block has more than {problem}");
        assert_eq!(body["message"], json!(said));
    }
    let answer = reader.ask("session.list", 1, json!({})).await.expect("an answer");
    assert_eq!(answer["sessions"].as_array().map(Vec::len), Some(5), "{answer}");
    reader.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_of_many_headers_becomes_a_dead_letter_with_the_first_of_them() {
    let fixture = Fixture::new().await;
    let mut raw = RawPublisher::connect(fixture.nats.url()).await;
    let many = user(1);
    let mut all = lines(&many);
    all.extend(vec![b"X-A: 1".to_vec(); 300]);
    let all: Vec<&[u8]> = all.iter().map(Vec::as_slice).collect();
    raw.publish(many.subject.as_bytes(), &block(&all), &many.body).await;
    stored(&fixture, 1).await;
    fixture.process(ContextWriter, [user(2)]).await;
    let dead = fixture.dead_letters().await;
    assert_eq!(dead, ["malformed: headers: the header block has more than 256 lines"]);
    let letters = fixture.messages("DEAD").await;
    let id = letters[0].headers.get(header::DEAD_REQUEST_ID).map(HeaderValue::as_str);
    assert_eq!(id, Some(many.id.to_string().as_str()));
    assert_eq!(fixture.count("users WHERE id IN (1, 2)").await, 1);
}

/// Bytes that matter to somebody who parses headers or subjects.
const FUZZ: [&[u8]; 24] = [
    b"\r",
    b"\n",
    b"\r\n",
    b"\r\n\r\n",
    b":",
    b" ",
    b"\t",
    b"\0",
    b"\x0b",
    b"\x1b",
    b"\x7f",
    b"\xff",
    b"\xc2",
    b"\xc2\xa0",
    b"\xc2\x85",
    b"\xe2\x80\xa8",
    b"NATS/1.0",
    b"NATS/1.0 100",
    b"404",
    b"Nats-Msg-Id: ",
    b"A: b",
    "\u{f6}".as_bytes(),
    b"\xef\xbb\xbf",
    b"HMSG x 1 12 12\r\n",
];

/// A block and a subject with random faults. `seed` determines them.
fn faulty(random: &mut fastrand::Rng) -> (Vec<u8>, Vec<u8>) {
    let mut header = block(&[b"Nats-Expected: 1", b"X-Name: J\xc3\xbcrgen", b"A: b", b"A: c"]);
    for _ in 0..random.usize(0..4) {
        let at = random.usize(0..=header.len());
        let part = FUZZ[random.usize(0..FUZZ.len())];
        match random.u8(0..3) {
            0 => drop(header.splice(at..at, part.iter().copied())),
            1 => drop(header.splice(at..header.len().min(at + part.len()), part.iter().copied())),
            _ => drop(header.drain(at..header.len().min(at + 1 + part.len()))),
        }
    }
    let mut subject = b"fuzz.x".to_vec();
    if random.u8(0..4) == 0 {
        let part = FUZZ[random.usize(0..FUZZ.len())];
        // The server splits the arguments of a message at these, and gives others a meaning in a subject.
        subject.extend(part.iter().filter(|byte| !b" \t\r\n.*>".contains(byte)));
    }
    (header, subject)
}

/// The number of fuzzed messages: `MEMFLEET_FUZZ`, or few enough for every run of the tests.
fn fuzzed() -> u64 {
    std::env::var("MEMFLEET_FUZZ").ok().and_then(|number| number.parse().ok()).unwrap_or(50_000)
}

#[tokio::test(flavor = "multi_thread")]
async fn any_header_block_and_subject_reaches_the_client_in_order_on_one_connection() {
    let fixture = Fixture::new().await;
    let client = runtime::broker::connect(&fixture.settings.nats, "fuzz").await.expect("a connection");
    let mut received = client.subscribe("fuzz.>").await.expect("a subscription");
    client.flush().await.expect("a connection");
    let messages = fuzzed();
    let url = fixture.nats.url().to_owned();
    let publishing = tokio::spawn(async move {
        let mut raw = RawPublisher::connect(&url).await;
        let mut random = fastrand::Rng::with_seed(17);
        for number in 0..messages {
            let (header, subject) = faulty(&mut random);
            raw.publish(&subject, &header, &number.to_be_bytes()).await;
            // The client drops what its subscription has no room for.
            if number % 1_000 == 0 {
                raw.flush().await;
            }
        }
        raw.flush().await;
    });
    let mut random = fastrand::Rng::with_seed(17);
    let mut unreadable = 0;
    for number in 0..messages {
        let next = timeout(testkit::DEADLINE, received.next()).await;
        let message = next.expect("a message in time").expect("a subscription that goes on");
        let (header, subject) = faulty(&mut random);
        let shown = || format!("{number}: {} at {}", header.escape_ascii(), subject.escape_ascii());
        assert_eq!(message.payload.as_ref(), number.to_be_bytes(), "{}", shown());
        assert!(message.status.is_none(), "{}", shown());
        let headers = message.headers.as_ref().expect("headers");
        if headers.get(header::UNREADABLE).is_some() {
            unreadable += 1;
        } else {
            // What is readable is what was sent, byte by byte.
            assert_eq!(message.subject.as_bytes(), subject, "{}", shown());
            assert!(header.is_ascii() || std::str::from_utf8(&header).is_ok(), "{}", shown());
            let lines = headers.iter().map(|(_, values)| values.len()).sum::<usize>();
            assert_eq!(lines, header_lines(&header), "{}", shown());
        }
    }
    publishing.await.expect("a publisher");
    assert!(unreadable > messages / 4 && unreadable < messages, "{unreadable} of {messages}");
    assert_eq!(client.statistics().connects.load(std::sync::atomic::Ordering::Relaxed), 1);
}

/// The number of header lines in a readable block.
fn header_lines(block: &[u8]) -> usize {
    block.windows(2).filter(|two| two == b"\r\n").count().saturating_sub(2)
}

#[tokio::test(flavor = "multi_thread")]
async fn fuzzed_messages_in_the_stream_of_a_worker_are_dead_letters_and_good_ones_take_effect() {
    let fixture = Fixture::new().await;
    let mut raw = RawPublisher::connect(fixture.nats.url()).await;
    let mut random = fastrand::Rng::with_seed(4);
    fixture.publish([user(1), session(1, "s")]).await;
    let messages = 1_000;
    for number in 0..messages {
        let (header, subject) = faulty(&mut random);
        let subject = [b"memory.req.test.context.put.1", &subject[b"fuzz.x".len()..]].concat();
        raw.publish(&subject, &header, b"{}").await;
        if number % 10 == 0 {
            raw.flush().await;
            fixture.publish([context(1, "s", &format!("good{number}"), 1)]).await;
        }
    }
    raw.flush().await;
    let worker = fixture.run(ContextWriter);
    fixture.publish([request("session.close", 1, json!({ "session_id": "s" }))]).await;
    fixture.drained::<ContextWriter>().await;
    assert_eq!(fixture.count("simple_chat_context").await, messages / 10);
    let applied = worker.stats.report().applied;
    assert_eq!(applied, 3 + u64::try_from(messages / 10).expect("a number"));
    let dead: u64 = worker.stats.report().dead.values().sum();
    assert_eq!(dead + applied, fixture.stored("CONTEXT").await);
    worker.stop().await.expect("a clean end");
}

/// How long a worker takes for 10,000 good messages, with so many unreadable ones among them.
async fn time_of(unreadable: usize) -> Duration {
    let fixture = Fixture::new().await;
    let mut raw = RawPublisher::connect(fixture.nats.url()).await;
    fixture.publish((1..=10).flat_map(|id| [user(id), session(id, "s")])).await;
    for chunk in 0..100 {
        let good = (0..100).map(|n| context(n % 10 + 1, "s", &format!("k{chunk}.{n}"), 1));
        fixture.publish(good).await;
        for _ in 0..unreadable / 100 {
            let odd = context(1, "s", "odd", 1);
            raw.publish(odd.subject.as_bytes(), &with_line(&odd, b"X Trace: 1"), &odd.body).await;
        }
        raw.flush().await;
    }
    stored(&fixture, 10_020 + u64::try_from(unreadable).expect("a number")).await;
    let (worker, since) = (fixture.run(ContextWriter), Instant::now());
    let stats = &worker.stats;
    eventually("the good messages take effect", async || (stats.report().applied == 10_020).then_some(()))
        .await;
    let took = since.elapsed();
    worker.stop().await.expect("a clean end");
    took
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "measures time, so it needs the machine for itself"]
async fn a_hundred_unreadable_messages_slow_ten_thousand_good_ones_by_less_than_a_tenth() {
    let mut times = Vec::new();
    for _ in 0..5 {
        times.push((time_of(100).await, time_of(0).await));
    }
    let median = |mut times: Vec<Duration>| {
        times.sort();
        times[times.len() / 2]
    };
    let with = median(times.iter().map(|pair| pair.0).collect());
    let without = median(times.iter().map(|pair| pair.1).collect());
    assert!(with < without.mul_f64(1.1), "{with:?} with them, {without:?} without: {times:?}");
}
