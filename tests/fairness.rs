//! What one service sends holds up no other one.

use std::time::Duration;

use config::Settings;
use context_writer::ContextWriter;
use diesel_async::SimpleAsyncConnection;
use serde_json::json;
use testkit::{Fixture, RequestMessage, context, eventually, request, session, user};
use tokio::time::timeout;

use crate::support::broker::answer;
use crate::support::reader::{Reader, filled};

/// The service that floods, for user 1.
const FLOODING: &str = "flooding";

/// Two users with a session each; the second one's service has been seen before.
async fn with_sessions(change: impl FnOnce(&mut Settings)) -> (Fixture, testkit::RunningWorker) {
    let fixture = Fixture::new().await;
    fixture.register(FLOODING, "*:*").await;
    let mut settings = fixture.settings.clone();
    change(&mut settings);
    let worker = fixture.run_with(ContextWriter, settings);
    fixture.publish([user(1), user(2), session(1, "s"), session(2, "s")]).await;
    fixture.drained::<ContextWriter>().await;
    (fixture, worker)
}

fn by(service: &str, mut request: RequestMessage) -> RequestMessage {
    request.subject = request.subject.replacen(".test.", &format!(".{service}."), 1);
    request
}

fn by_flooding(request: RequestMessage) -> RequestMessage {
    by(FLOODING, request)
}

/// A context of nearly 1 MB.
fn large(key: usize, service: &str) -> RequestMessage {
    let value = vec!["museum ".repeat(1_400); 90];
    let body =
        json!({ "session_id": "s", "context_key": format!("k{key}"), "context_value": value, "version": 1 });
    by(service, request("context.put", 1, body))
}

fn large_by_flooding(key: usize) -> RequestMessage {
    large(key, FLOODING)
}

async fn written(fixture: &Fixture, user: i32) -> i64 {
    fixture.count(&format!("simple_chat_context WHERE user_id = {user}")).await
}

/// Waits until the second user's context is written, and returns how many of the first one's are.
async fn written_before_neighbour(fixture: &Fixture) -> i64 {
    fixture.publish([context(2, "s", "quiet", 1)]).await;
    eventually("the neighbour's is written", async || (written(fixture, 2).await == 1).then_some(())).await;
    written(fixture, 1).await
}

#[tokio::test(flavor = "multi_thread")]
async fn large_requests_of_one_service_hold_up_no_other() {
    let (fixture, worker) = with_sessions(|_| {}).await;
    fixture.publish((0..60).map(large_by_flooding)).await;
    let before = written_before_neighbour(&fixture).await;
    assert!(before < 40, "{before} of 60 were written before");
    fixture.drained::<ContextWriter>().await;
    assert_eq!(written(&fixture, 1).await, 60);
    assert_eq!(fixture.dead_letters().await, Vec::<String>::new());
    let report = worker.stats.report();
    assert!(report.delayed > 0 && report.retried == 0, "beyond its share, it is set aside: {report:?}");
    worker.stop().await.expect("a clean end");
}

#[tokio::test(flavor = "multi_thread")]
async fn many_requests_of_one_service_hold_up_no_other() {
    let (fixture, worker) = with_sessions(|_| {}).await;
    let many = (0..3_000).map(|key| by_flooding(context(1, "s", &format!("k{key}"), 1)));
    fixture.publish(many).await;
    let before = written_before_neighbour(&fixture).await;
    assert!(before < 2_000, "{before} of 3000 were written before");
    fixture.drained::<ContextWriter>().await;
    assert_eq!(written(&fixture, 1).await, 3_000);
    assert_eq!(fixture.dead_letters().await, Vec::<String>::new());
    worker.stop().await.expect("a clean end");
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_waits_for_the_batch_of_a_service_that_floods() {
    // Its first batch is made up when all of it has come, so that none of it is in the lane of others.
    let (fixture, worker) = with_sessions(|settings| {
        (settings.postgres.lock_timeout_ms, settings.worker.batch_wait_ms) = (60_000, 1_000);
    })
    .await;
    let mut owner = fixture.connection().await;
    let lock = "BEGIN; SELECT FROM chat_mode_sessions WHERE user_id = 1 FOR UPDATE";
    owner.batch_execute(lock).await.unwrap();
    fixture.publish((0..400).map(|key| by_flooding(context(1, "s", &format!("k{key}"), 1)))).await;
    let before = timeout(Duration::from_secs(30), written_before_neighbour(&fixture)).await;
    assert_eq!(before, Ok(0), "its batch waits for the lock");
    owner.batch_execute("COMMIT").await.unwrap();
    fixture.drained::<ContextWriter>().await;
    assert_eq!(written(&fixture, 1).await, 400);
    worker.stop().await.expect("a clean end");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_user_sent_before_a_large_request_is_written_before_it() {
    let fixture = Fixture::new().await;
    // The large ones need the sessions, and the small ones need what the large ones store.
    let mut requests = vec![user(1), user(2), session(1, "s"), session(2, "s")];
    for key in 0..5 {
        requests.push(large(key, "test"));
        let remove = json!({ "session_id": "s", "context_key": format!("k{key}"), "version": 2 });
        requests.push(request("context.remove", 1, remove));
    }
    fixture.publish(requests).await;
    let worker = fixture.run(ContextWriter);
    fixture.drained::<ContextWriter>().await;
    let left = "simple_chat_context WHERE removed_at IS NULL";
    assert_eq!(fixture.count(left).await, 0, "all are removed again");
    let report = worker.stats.report();
    assert_eq!((report.retried, report.applied), (0, 14), "{report:?}");
    worker.stop().await.expect("a clean end");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_malformed_or_denied_counts_against_the_rate_of_its_service() {
    let (fixture, worker) = with_sessions(|settings| settings.trust.service_per_second = 20).await;
    let malformed = (0..30).map(|_| by_flooding(context(1, "s", "k", 1)).map_body(|_| "no JSON".to_owned()));
    let denied = (0..30).map(|_| by_flooding(context(1, "s", "k", 1)).without_token());
    fixture.publish(malformed.chain(denied)).await;
    eventually("some are delayed", async || (worker.stats.report().delayed > 10).then_some(())).await;
    fixture.drained::<ContextWriter>().await;
    assert_eq!(fixture.dead_letters().await.len(), 60);
    worker.stop().await.expect("a clean end");
}

#[tokio::test(flavor = "multi_thread")]
async fn bytes_count_against_the_rate_of_their_service() {
    let (fixture, worker) = with_sessions(|settings| settings.trust.service_kib_per_second = 2_000).await;
    fixture.publish((0..6).map(large_by_flooding)).await;
    eventually("some are delayed", async || (worker.stats.report().delayed > 2).then_some(())).await;
    assert_eq!(written_before_neighbour(&fixture).await.max(5), 5, "not all of them");
    fixture.drained::<ContextWriter>().await;
    assert_eq!(written(&fixture, 1).await, 6);
    worker.stop().await.expect("a clean end");
}

#[tokio::test(flavor = "multi_thread")]
async fn refused_queries_of_one_service_hold_up_no_other() {
    let fixture = filled().await;
    let reader = Reader::start(&fixture).await;
    let mut owner = fixture.connection().await;
    let lock = "BEGIN; LOCK TABLE audit.security_violations IN ACCESS EXCLUSIVE MODE";
    owner.batch_execute(lock).await.unwrap();
    let client = fixture.jetstream.client();
    let inbox = "_INBOX.flooding.all";
    let mut answers = client.subscribe(inbox).await.unwrap();
    for _ in 0..300 {
        let (subject, body) =
            ("memory.ask.context.get.flooding", r#"{"session_id": "s0", "context_key": "k1"}"#);
        client.publish_with_reply(subject, inbox, body.into()).await.unwrap();
    }
    let mut codes = Vec::new();
    while codes.len() < 300 - 64 {
        codes.extend(answer(&testkit::next(&mut answers).await).0);
    }
    assert!(codes.iter().all(|code| code == "429"), "those beyond its share are refused at once: {codes:?}");
    // No refusal can be recorded now, but the neighbour's answer depends on none.
    let answered = reader.ask("context.get", 1, json!({ "session_id": "s0", "context_key": "k1" })).await;
    assert!(answered.is_ok(), "{answered:?}");
    owner.batch_execute("COMMIT").await.unwrap();
    while codes.len() < 300 {
        codes.extend(answer(&testkit::next(&mut answers).await).0);
    }
    let denied = codes.iter().filter(|code| *code == "403").count();
    assert_eq!((codes.len(), denied), (300, 64));
    assert_eq!(fixture.count("audit.security_violations").await, 64, "each of them is on record");
    reader.end().await;
}
