//! What an attacker, an operator or a broken server does to a worker, and what must not come of it.

use std::time::Duration;

use context_writer::ContextWriter;
use contract::{Event, header};
use futures::StreamExt;
use runtime::{NotReady, RunError};
use serde_json::json;
use stack::{Nats, NatsOptions, Programs};
use testkit::{
    DEADLINE, Fixture, context, eventually, request, session, set_duplicate_window, set_redelivery, user,
};
use tokio::time::timeout;
use topology::Topology;
use uuid::Uuid;

use crate::support::program::{Ended, memfleet, output};

#[tokio::test(flavor = "multi_thread")]
async fn a_message_that_is_held_for_long_is_not_delivered_again() {
    let fixture = Fixture::with_topology(|topology| {
        set_redelivery(topology, "context-writer", Duration::from_millis(900), 64);
    })
    .await;
    let worker = fixture.run(ContextWriter);
    fixture.publish([user(1), session(1, "s")]).await;
    fixture.drained::<ContextWriter>().await;
    let before =
        fixture.consumer("CONTEXT", "context-writer").await.cached_info().delivered.consumer_sequence;

    let client = fixture.jetstream.client();
    let mut told = client.subscribe("$JS.ACK.CONTEXT.context-writer.>").await.expect("a subscription");
    let mut lock = fixture.connection().await;
    use diesel_async::SimpleAsyncConnection as _;
    lock.batch_execute("BEGIN; LOCK TABLE simple_chat_context").await.expect("a lock");
    fixture.publish((0..10).map(|n| context(1, "s", &format!("k{n}"), 1))).await;
    // Each renewal comes a third of ack_wait after the one before: after five of them it is long over.
    for _ in 0..5 * 10 {
        let message = timeout(DEADLINE, told.next()).await.expect("in time").expect("an acknowledgement");
        assert_eq!(message.payload.as_ref(), b"+WPI", "nothing is settled while the table is locked");
    }
    lock.batch_execute("COMMIT").await.expect("the table is free");
    fixture.drained::<ContextWriter>().await;
    assert_eq!(fixture.count("simple_chat_context").await, 10);
    let consumer = fixture.consumer("CONTEXT", "context-writer").await;
    assert_eq!(consumer.cached_info().delivered.consumer_sequence, before + 10, "each was delivered once");
    worker.stop().await.expect("a clean end");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_consumer_that_is_made_again_is_found_again() {
    let fixture = Fixture::new().await;
    let worker = fixture.run(ContextWriter);
    fixture.publish([user(1)]).await;
    fixture.drained::<ContextWriter>().await;
    fixture.jetstream.delete_consumer_from_stream("context-writer", "CONTEXT").await.expect("a deletion");
    topology::apply(&fixture.jetstream, &Topology::shipped().expect("the files")).await.expect("a consumer");
    fixture.publish([user(2)]).await;
    fixture.drained::<ContextWriter>().await;
    assert_eq!(fixture.count("users WHERE id > 0").await, 2);
    assert_eq!(fixture.count("blackboard_events").await, 2, "what came again had no second effect");
    worker.stop().await.expect("a clean end");
}

#[tokio::test(flavor = "multi_thread")]
async fn two_copies_in_one_batch_share_their_fate() {
    let fixture = Fixture::with_topology(|topology| {
        set_duplicate_window(topology, "CONTEXT", Duration::from_millis(100));
    })
    .await;
    let (fine, waiting) = (user(1), context(1, "never", "k", 1));
    fixture.publish([fine.clone(), waiting.clone()]).await;
    eventually("the broker takes both again", async || {
        fixture.publish([fine.clone(), waiting.clone()]).await;
        (fixture.stored("CONTEXT").await >= 4).then_some(())
    })
    .await;
    let stored = fixture.stored("CONTEXT").await;
    let worker = fixture.run(ContextWriter);
    fixture.drained::<ContextWriter>().await;

    let report = worker.stats.report();
    assert_eq!((report.applied, report.repeated), (1, stored / 2 - 1), "the user, and its copies");
    assert_eq!(
        report.dead.get("missing-prerequisite"),
        Some(&(stored / 2)),
        "no copy passed for one that was written before"
    );
    let event = Event::ACCOUNT_SESSION;
    assert_eq!(fixture.lines("session_id FROM blackboard_events").await, [event]);
    assert_eq!(fixture.count("inbox").await, 1);
    worker.stop().await.expect("a clean end");
}

#[tokio::test(flavor = "multi_thread")]
async fn headers_and_ids_too_large_for_a_dead_letter_stay_behind() {
    let fixture = Fixture::new().await;
    let bad = |id: &str| {
        let mut bad = request("user.put", 1, json!({ "username": "no address" }));
        bad.headers.push((header::MESSAGE_ID, id.to_owned()));
        bad
    };
    let worker = fixture.run(ContextWriter);
    let long = "x".repeat(60_000);
    fixture.publish([bad("short").with("Baggage", &long), bad(&long), user(1)]).await;
    fixture.drained::<ContextWriter>().await;

    assert_eq!(fixture.count("users WHERE id = 1").await, 1);
    let letters = fixture.messages("DEAD").await;
    assert_eq!(letters.len(), 2);
    let reason = letters[0].headers.get(header::DEAD_REASON).expect("a reason").as_str();
    assert!(reason.ends_with("its headers are too large to move, they are still at CONTEXT/1"), "{reason}");
    let id = letters[1].headers.get(header::DEAD_REQUEST_ID).expect("an id").as_str();
    assert_eq!(id.len(), 64);
    worker.stop().await.expect("a clean end");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reply_subject_too_long_for_the_broker_costs_no_connection() {
    let fixture = Fixture::new().await;
    let worker = fixture.run(ContextWriter);
    let reply_to = format!("_INBOX.test.{}", "x".repeat(8_000));
    fixture.publish([user(1).with(header::REPLY_TO, &reply_to)]).await;
    fixture.publish((2..50).map(user)).await;
    fixture.drained::<ContextWriter>().await;
    // Acknowledgements that were lost with a connection would bring messages again.
    let report = worker.stats.report();
    assert_eq!((report.applied, report.repeated), (49, 0));
    worker.stop().await.expect("a clean end");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_effect_that_was_never_told_is_told_by_the_backstop() {
    let fixture = Fixture::with_topology(|topology| {
        set_redelivery(topology, "context-writer", Duration::from_millis(300), 1);
    })
    .await;
    let request = user(7);
    fixture.publish([request.clone()]).await;
    // A worker took the message, committed, and died for good before it told anybody.
    let event_id = Uuid::now_v7();
    fixture
        .execute(&format!(
            "INSERT INTO users (id, username, email) VALUES (7, 'u', 'u@example.org');
             INSERT INTO inbox (worker, user_id, message_id, event_id)
                 VALUES ('context-writer', 7, '{}', '{event_id}');
             INSERT INTO blackboard_events (id, event_type, performative, source_agent_id, user_id, session_id,
                 event_payload, logical_timestamp)
                 VALUES ('{event_id}', 'user.stored', 'inform', 'test', 7, '@account', '{{}}', 1)",
            request.id
        ))
        .await;
    let consumer = fixture.consumer("CONTEXT", "context-writer").await;
    eventually("a delivery", async || {
        let mut batch = consumer.fetch().max_messages(1).messages().await.ok()?;
        batch.next().await?.ok().map(|_| ())
    })
    .await;
    let worker = fixture.run(ContextWriter);
    let told = eventually("the event", async || fixture.messages("EVENTS").await.into_iter().next()).await;
    let event: Event = serde_json::from_slice(&told.payload).expect("an event");
    assert_eq!((event.event_id, told.subject.as_str()), (event_id, "memory.event.user.stored.7"));
    assert_eq!(fixture.dead_letters().await, Vec::<String>::new());
    worker.stop().await.expect("a clean end");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_brokers_bound_is_never_reached_by_messages_that_are_put_off() {
    let fixture = Fixture::with_topology(|topology| {
        set_redelivery(topology, "context-writer", Duration::from_secs(30), 3);
    })
    .await;
    let worker = fixture.run(ContextWriter);
    fixture.publish([user(1), context(1, "never", "k", 1)]).await;
    fixture.drained::<ContextWriter>().await;
    assert_eq!(
        fixture.dead_letters().await,
        ["missing-prerequisite: session_id: user 1 has opened no session never"]
    );
    assert_eq!(worker.stats.report().retried, 2);
    worker.stop().await.expect("a clean end");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_that_kills_its_backend_is_found_and_given_up() {
    let fixture = Fixture::new().await;
    fixture
        .execute(
            "CREATE FUNCTION die() RETURNS trigger LANGUAGE plpgsql AS $$
             BEGIN PERFORM pg_terminate_backend(pg_backend_pid()); RETURN NEW; END $$;
             CREATE TRIGGER die BEFORE INSERT ON simple_chat_context
             FOR EACH ROW WHEN (NEW.context_key = 'deadly') EXECUTE FUNCTION die()",
        )
        .await;
    fixture.publish([user(1), session(1, "s"), context(1, "s", "deadly", 1)]).await;
    fixture.publish((0..6).map(|n| context(1, "s", &format!("k{n}"), 1))).await;
    let mut settings = fixture.settings.clone();
    settings.worker.retry_attempts = 2;
    let worker = fixture.run_with(ContextWriter, settings);
    fixture.drained::<ContextWriter>().await;
    assert_eq!(fixture.count("simple_chat_context").await, 6);
    let letters = fixture.dead_letters().await;
    assert!(letters.len() == 1 && letters[0].starts_with("exhausted: "), "{letters:?}");
    worker.stop().await.expect("a clean end");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_database_that_is_not_set_up_right_is_waited_for() {
    let fixture = Fixture::new().await;
    let mut settings = fixture.settings.clone();
    settings.worker.retry_attempts = 1;
    let worker = fixture.run_with(ContextWriter, settings);
    fixture.publish([user(1), session(1, "s")]).await;
    fixture.drained::<ContextWriter>().await;
    fixture.execute("ALTER TABLE simple_chat_context RENAME TO elsewhere").await;
    fixture.publish([context(1, "s", "k", 1)]).await;
    let consumer = fixture.consumer("CONTEXT", "context-writer").await;
    eventually("the worker holds it", async || {
        (consumer.get_info().await.ok()?.num_ack_pending == 1).then_some(())
    })
    .await;
    fixture.execute("ALTER TABLE elsewhere RENAME TO simple_chat_context").await;
    fixture.drained::<ContextWriter>().await;
    assert_eq!(fixture.count("simple_chat_context").await, 1);
    assert_eq!(fixture.dead_letters().await, Vec::<String>::new());
    worker.stop().await.expect("a clean end");
}

/// Has the database report a division by zero in German, as a server with `lc_messages = de_DE` does. The servers of the
/// tests speak English only.
async fn speak_german(fixture: &Fixture, role: &str) {
    fixture
        .execute(&format!(
            "CREATE SCHEMA german;
             GRANT USAGE ON SCHEMA german TO PUBLIC;
             CREATE FUNCTION german.divide(integer, integer) RETURNS integer LANGUAGE plpgsql AS $$
             BEGIN RAISE division_by_zero USING MESSAGE = 'Division durch Null'; END $$;
             GRANT EXECUTE ON FUNCTION german.divide TO PUBLIC;
             CREATE OPERATOR german./ (LEFTARG = integer, RIGHTARG = integer, FUNCTION = german.divide);
             DO $$ BEGIN EXECUTE format('ALTER ROLE {role} IN DATABASE %I SET search_path = german, pg_catalog, public',
                 current_database()); END $$"
        ))
        .await;
}

async fn speak_english(fixture: &Fixture, role: &str) {
    fixture
        .execute(&format!(
            "DO $$ BEGIN EXECUTE format('ALTER ROLE {role} IN DATABASE %I RESET search_path', current_database()); END $$"
        ))
        .await;
}

/// Ends the connections of a role, so that the next ones have its current settings.
async fn disconnect(fixture: &Fixture, role: &str) {
    let ended = format!(
        "pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database() AND usename = '{role}'"
    );
    fixture.lines(&ended).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_database_that_does_not_report_errors_in_english_is_refused_at_start() {
    let fixture = Fixture::new().await;
    speak_german(&fixture, "w_context_writer").await;
    let mut settings = fixture.settings.clone();
    settings.worker.startup_timeout_s = 1;
    match fixture.run_with(ContextWriter, settings).failure().await {
        Err(RunError::Startup(NotReady { problem, .. })) => {
            let expected = ["\"Division durch Null\"", "set lc_messages = 'C'"];
            assert!(expected.iter().all(|part| problem.contains(part)), "{problem}");
        }
        other => panic!("expected a failure at start, got {other:?}"),
    }
    // Commands say so and go on.
    let owner = fixture.lines("current_user FROM (VALUES (1)) AS one").await.remove(0);
    fixture.execute("DROP SCHEMA german CASCADE").await;
    speak_german(&fixture, &owner).await;
    for arguments in [["migrate", "status"], ["status", "--json"]] {
        let ended: Ended = output(memfleet(&fixture, &arguments)).await.into();
        let told = format!("{}{}", ended.out, ended.err);
        assert!(ended.is_success() && told.contains("set lc_messages = 'C'"), "{arguments:?}: {told}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_fault_in_another_language_costs_no_try() {
    let fixture = Fixture::new().await;
    let mut settings = fixture.settings.clone();
    settings.worker.retry_attempts = 1;
    let worker = fixture.run_with(ContextWriter, settings);
    fixture.publish([user(1), session(1, "s")]).await;
    fixture.drained::<ContextWriter>().await;
    fixture
        .execute(
            "CREATE SEQUENCE attempts; GRANT USAGE ON SEQUENCE attempts TO PUBLIC;
             CREATE FUNCTION full_disk() RETURNS trigger LANGUAGE plpgsql AS $$
             BEGIN PERFORM nextval('public.attempts'); RAISE 'Auf dem Gerät ist kein Speicherplatz mehr verfügbar'; END $$;
             CREATE TRIGGER full_disk BEFORE INSERT ON simple_chat_context FOR EACH ROW EXECUTE FUNCTION full_disk()",
        )
        .await;
    speak_german(&fixture, "w_context_writer").await;
    disconnect(&fixture, "w_context_writer").await;
    fixture.publish([context(1, "s", "k", 1)]).await;
    eventually("it is tried more often than its budget allows", async || {
        (fixture.count("attempts WHERE last_value > 5").await == 1).then_some(())
    })
    .await;
    assert_eq!(fixture.dead_letters().await, Vec::<String>::new());
    speak_english(&fixture, "w_context_writer").await;
    fixture.execute("DROP TRIGGER full_disk ON simple_chat_context").await;
    fixture.drained::<ContextWriter>().await;
    assert_eq!(fixture.count("simple_chat_context").await, 1);
    assert_eq!(worker.stats.report().retried, 0);
    worker.stop().await.expect("a clean end");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broker_that_takes_too_little_is_refused_at_start() {
    let fixture = Fixture::new().await;
    let folder = tempfile::tempdir().expect("a folder");
    let options = NatsOptions { max_payload_bytes: 1024 * 1024, ..NatsOptions::default() };
    let small = Nats::start(&Programs::find().expect("the programs"), folder.path(), options).await;
    let small = small.expect("a broker");
    let mut settings = fixture.settings.clone();
    settings.nats.url = small.url().to_owned();
    settings.worker.startup_timeout_s = 1;
    match fixture.run_with(ContextWriter, settings).failure().await {
        Err(RunError::Startup(NotReady { problem, .. })) => {
            assert!(
                problem.contains("at most 1048576 bytes") && problem.contains("max_payload"),
                "{problem}"
            );
        }
        other => panic!("expected a failure at start, got {other:?}"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_leaves_a_server_that_accepts_it_and_serves_nothing() {
    let mut fixture = Fixture::new().await;
    // A server that lost its cluster: it accepts the worker and knows no stream.
    let folder = tempfile::tempdir().expect("a folder");
    std::fs::write(folder.path().join("password"), fixture.nats.password()).expect("a password");
    let programs = Programs::find().expect("the servers' programs");
    let other = Nats::start(&programs, folder.path(), NatsOptions::default()).await;
    let mut other = other.expect("another server");
    other.kill().await;
    let mut settings = fixture.settings.clone();
    settings.nats.url = format!("{},{}", fixture.nats.url(), other.url());
    let worker = fixture.run_with(ContextWriter, settings);
    fixture.publish([user(1)]).await;
    fixture.drained::<ContextWriter>().await;

    fixture.nats.kill().await;
    other.resume().await.expect("the other server");
    eventually("the worker uses the other server", async || {
        let missing = worker.readiness.report().missing;
        eprintln!("{missing:?}");
        missing.iter().find(|one| one.problem.contains("not found")).map(drop)
    })
    .await;
    fixture.nats.resume().await.expect("the broker comes back");
    eventually("a request is stored", async || {
        let request = user(2);
        let headers = request.header_map();
        let sent = fixture.jetstream.publish_with_headers(request.subject, headers, request.body.into());
        sent.await.ok()?.await.ok()
    })
    .await;
    eventually("it takes effect", async || (fixture.count("users WHERE id = 2").await == 1).then_some(()))
        .await;
    worker.stop().await.expect("a clean end");
    other.stop().await.expect("a clean end");
}
