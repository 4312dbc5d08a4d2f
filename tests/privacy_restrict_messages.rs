//! What becomes of requests, ticks and questions about a person whose data are restricted.

use std::time::Duration;

use context_writer::ContextWriter;
use contract::{Outcome, OutcomeStatus, header};
use privacy::restriction::Meanwhile;
use serde_json::json;
use testkit::{Fixture, RequestMessage, eventually, request, session, set_redelivery, user};
use uuid::Uuid;

use crate::support::privacy::{lift, restrict};
use crate::support::reader::{Reader, filled};
use crate::support::retention::{cleaner, tick, with_old_sessions, without_schedule};

const PERSON: i32 = 42;
const OTHER: i32 = 420;
const REFUSED: &str = "the processing of the user's data is restricted";

async fn two_users() -> Fixture {
    with_two_users(Fixture::new().await).await
}

async fn with_two_users(fixture: Fixture) -> Fixture {
    let accounts = [PERSON, OTHER].into_iter().flat_map(|id| [user(id), session(id, "s")]);
    fixture.process(ContextWriter, accounts.collect::<Vec<_>>()).await;
    fixture
}

fn context(user: i32) -> RequestMessage {
    let key = Uuid::new_v4().to_string();
    request(
        "context.put",
        user,
        json!({ "session_id": "s", "context_key": key, "context_value": 1, "version": 1 }),
    )
}

/// 50 contexts of each of the two, in turns.
fn contexts() -> Vec<RequestMessage> {
    (0..50).flat_map(|_| [context(OTHER), context(PERSON)]).collect()
}

async fn stored(fixture: &Fixture, user: i32) -> i64 {
    fixture.count(&format!("simple_chat_context WHERE user_id = {user}")).await
}

/// The events of the contexts of a user: one for each that was stored, and none twice.
async fn events(fixture: &Fixture, user: i32) -> i64 {
    fixture
        .count(&format!("blackboard_events WHERE user_id = {user} AND event_type = 'context.stored'"))
        .await
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_become_dead_letters_and_those_of_others_are_stored() {
    let fixture = two_users().await;
    restrict(&fixture, PERSON, Meanwhile::Refuse).await;
    fixture.process(ContextWriter, contexts()).await;
    assert_eq!((stored(&fixture, OTHER).await, stored(&fixture, PERSON).await), (50, 0));
    let letters = fixture.dead_letters().await;
    assert_eq!(letters.len(), 50);
    let expected = format!("missing-prerequisite: {REFUSED}");
    assert!(letters.iter().all(|letter| letter.starts_with(&expected)), "{}", letters[0]);
    assert_eq!(fixture.count("audit.security_violations").await, 0, "it is nobody's fault");

    // The next ones are written apart from those of others at once, and are refused as well.
    fixture.process(ContextWriter, contexts()).await;
    assert_eq!((stored(&fixture, OTHER).await, fixture.dead_letters().await.len()), (100, 100));
    lift(&fixture, PERSON).await;
    fixture.process(ContextWriter, [context(PERSON)]).await;
    assert_eq!((stored(&fixture, PERSON).await, fixture.dead_letters().await.len()), (1, 100));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_publisher_is_told_that_the_data_are_restricted() {
    let fixture = two_users().await;
    restrict(&fixture, PERSON, Meanwhile::Refuse).await;
    let mut outcomes = fixture.subscribe("_INBOX.test.restricted").await;
    let refused = context(PERSON).with(header::REPLY_TO, "_INBOX.test.restricted");
    fixture.process(ContextWriter, [refused]).await;
    let told = testkit::next(&mut outcomes).await;
    let outcome: Outcome = serde_json::from_slice(&told.payload).expect("an outcome");
    assert_eq!((outcome.status, outcome.reason.as_deref()), (OutcomeStatus::Dead, Some(REFUSED)));
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_wait_and_are_stored_once_after_the_lift() {
    let fixture = two_users().await;
    restrict(&fixture, PERSON, Meanwhile::Wait).await;
    let worker = fixture.run(ContextWriter);
    fixture.publish(contexts()).await;
    let consumer = fixture.consumer("CONTEXT", "context-writer").await;
    eventually("those of the other one are stored, and those of the person wait", async || {
        let waiting = consumer.get_info().await.ok()?.num_ack_pending;
        (waiting == 50 && stored(&fixture, OTHER).await == 50).then_some(())
    })
    .await;
    assert_eq!(stored(&fixture, PERSON).await, 0);
    lift(&fixture, PERSON).await;
    fixture.drained::<ContextWriter>().await;
    worker.stop().await.expect("a clean end");
    for user in [PERSON, OTHER] {
        assert_eq!((stored(&fixture, user).await, events(&fixture, user).await), (50, 50), "user {user}");
    }
    assert_eq!(fixture.dead_letters().await, Vec::<String>::new());
    assert_eq!(fixture.count("audit.security_violations").await, 0, "it is nobody's fault");
}

/// What waits is refused when the restriction says so from then on.
#[tokio::test(flavor = "multi_thread")]
async fn requests_that_wait_are_refused_if_the_restriction_is_changed() {
    let fixture = two_users().await;
    restrict(&fixture, PERSON, Meanwhile::Wait).await;
    let worker = fixture.run(ContextWriter);
    fixture.publish([context(PERSON), context(OTHER)]).await;
    eventually("that of the other one is stored", async || {
        (stored(&fixture, OTHER).await == 1).then_some(())
    })
    .await;
    restrict(&fixture, PERSON, Meanwhile::Refuse).await;
    fixture.drained::<ContextWriter>().await;
    worker.stop().await.expect("a clean end");
    let letters = fixture.dead_letters().await;
    assert!(letters.len() == 1 && letters[0].contains(REFUSED), "{letters:?}");
    assert_eq!(stored(&fixture, PERSON).await, 0);
}

/// No message waits for ever. Whatever waits for too long keeps its body in a dead letter.
#[tokio::test(flavor = "multi_thread")]
async fn a_request_that_waits_for_too_long_becomes_a_dead_letter_that_says_why() {
    let fixture = Fixture::with_topology(|topology| {
        set_redelivery(topology, "context-writer", Duration::from_secs(30), 3);
    })
    .await;
    let fixture = with_two_users(fixture).await;
    restrict(&fixture, PERSON, Meanwhile::Wait).await;
    let worker = fixture.run(ContextWriter);
    fixture.publish([context(PERSON)]).await;
    eventually("there is a dead letter", async || (fixture.dead_letters().await.len() == 1).then_some(()))
        .await;
    worker.stop().await.expect("a clean end");
    let letter = fixture.dead_letters().await.remove(0);
    assert!(letter.starts_with("exhausted: ") && letter.contains("its user was restricted"), "{letter}");
    assert_eq!(stored(&fixture, PERSON).await, 0);
}

/// The sweep of retention goes on with the others, and with the person after the lift.
#[tokio::test(flavor = "multi_thread")]
async fn ticks_leave_the_person_out_and_resume_after_the_lift() {
    let fixture = Fixture::new().await;
    with_old_sessions(&fixture, 1..=2, 1).await;
    without_schedule(&fixture).await;
    restrict(&fixture, 1, Meanwhile::Wait).await;
    let worker = fixture.run(cleaner(&fixture));
    let expired = async |user: i32| {
        let of_user = format!(
            "simple_chat_context WHERE user_id = {user} AND context_key = 'expired' AND removed_at IS NULL"
        );
        fixture.count(&of_user).await
    };
    let before = expired(1).await;
    assert!(before > 0);
    eventually("those of the other one are removed", async || {
        tick(&fixture).await;
        (expired(2).await == 0).then_some(())
    })
    .await;
    assert_eq!(expired(1).await, before);
    lift(&fixture, 1).await;
    eventually("those of the person are removed", async || {
        tick(&fixture).await;
        (expired(1).await == 0).then_some(())
    })
    .await;
    worker.stop().await.expect("a clean end");
    assert_eq!(fixture.dead_letters().await, Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn questions_are_refused_and_say_so_until_the_lift() {
    let fixture = filled().await;
    let reader = Reader::start(&fixture).await;
    for meanwhile in [Meanwhile::Refuse, Meanwhile::Wait] {
        restrict(&fixture, 1, meanwhile).await;
        for (query, body) in [
            ("session.list", json!({})),
            ("context.get", json!({ "session_id": "s0", "context_key": "k0" })),
            ("context.get", json!({ "session_id": "s0", "context_key": "pin" })),
        ] {
            let (code, error) = reader.ask(query, 1, body.clone()).await.expect_err("a refusal");
            assert_eq!((code.as_str(), error["message"].as_str()), ("403", Some(REFUSED)), "{query}");
            reader.ask(query, 2, body).await.expect("an answer about the other one");
        }
    }
    lift(&fixture, 1).await;
    reader.ask("session.list", 1, json!({})).await.expect("an answer");
    reader.end().await;
    assert_eq!(fixture.count("audit.security_violations").await, 0, "it is nobody's fault");
}
