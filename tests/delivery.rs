//! The way of a message: once, in order, whatever happens to the servers.

use std::time::Duration;

use async_nats::jetstream::AckKind;
use context_writer::ContextWriter;
use contract::{Event, Outcome, OutcomeStatus, header};
use futures::StreamExt;
use runtime::{NotReady, RunError};
use serde_json::json;
use testkit::{Fixture, context, eventually, request, session, set_duplicate_window, set_redelivery, user};
use uuid::Uuid;

#[tokio::test(flavor = "multi_thread")]
async fn an_effect_its_event_and_its_follow_up_happen_once() {
    let fixture = Fixture::with_topology(|topology| {
        set_duplicate_window(topology, "CONTEXT", Duration::from_millis(100));
    })
    .await;
    let requests = vec![user(1), session(1, "s"), context(1, "s", "k", 1)];
    let worker = fixture.run(ContextWriter);
    fixture.publish(requests.clone()).await;
    fixture.drained::<ContextWriter>().await;

    // The broker has forgotten these ids by now; the inbox has not.
    let before = fixture.stored("CONTEXT").await;
    eventually("the broker takes the same messages again", async || {
        fixture.publish(requests.clone()).await;
        (fixture.stored("CONTEXT").await >= before + 3).then_some(())
    })
    .await;
    fixture.drained::<ContextWriter>().await;

    for (table, rows) in [
        ("users WHERE id > 0", 1),
        ("chat_mode_sessions", 1),
        ("simple_chat_context", 1),
        ("inbox", 3),
        ("blackboard_events", 3),
    ] {
        assert_eq!(fixture.count(table).await, rows, "{table}");
    }
    let events: Vec<Event> = fixture
        .messages("EVENTS")
        .await
        .iter()
        .map(|message| serde_json::from_slice(&message.payload).expect("an event"))
        .collect();
    let mut published: Vec<String> = events.iter().map(|event| event.event_id.to_string()).collect();
    published.sort();
    published.dedup();
    assert_eq!(published, fixture.lines("id FROM blackboard_events ORDER BY id").await);
    assert_eq!(worker.stats.report().applied, 3);
    worker.stop().await.expect("a clean end");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_context_waits_for_its_session_and_is_given_up_if_none_comes() {
    let fixture = Fixture::new().await;
    let worker = fixture.run(ContextWriter);
    fixture.publish([user(1), context(1, "late", "k", 1), context(1, "never", "k", 1)]).await;
    let stats = &worker.stats;
    eventually("the contexts are tried again", async || (stats.report().retried >= 2).then_some(())).await;
    fixture.publish([session(1, "late")]).await;
    fixture.drained::<ContextWriter>().await;

    assert_eq!(fixture.lines("session_id FROM simple_chat_context").await, ["late"]);
    assert_eq!(
        fixture.dead_letters().await,
        ["missing-prerequisite: session_id: user 1 has opened no session never"]
    );
    let dead = &fixture.messages("DEAD").await[0];
    assert_eq!(dead.headers.get(header::DEAD_TRIES).map(async_nats::HeaderValue::as_str), Some("12"));
    assert_eq!(dead.subject.as_str(), "memory.dead.context-writer.1");
    assert_eq!(fixture.count("inbox").await, 3, "what had no effect left no trace");
    worker.stop().await.expect("a clean end");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_order_of_arrival_does_not_matter() {
    let fixture = Fixture::new().await;
    // One batch holds a key several times, newer before older too; the session comes last.
    fixture
        .publish([
            context(1, "s", "k", 1),
            context(1, "s", "k", 3),
            context(1, "s", "k", 2),
            request("context.remove", 1, json!({ "session_id": "s", "context_key": "gone", "version": 9 })),
            context(1, "s", "gone", 8),
            session(1, "s"),
            user(1),
        ])
        .await;
    let worker = fixture.run(ContextWriter);
    fixture.drained::<ContextWriter>().await;
    fixture.publish([context(1, "s", "k", 2)]).await;
    fixture.drained::<ContextWriter>().await;

    let rows = fixture
        .lines("concat_ws(' ', context_key, version, context_value, removed_at IS NOT NULL) FROM simple_chat_context ORDER BY context_key")
        .await;
    assert_eq!(rows, ["gone 9 t", "k 3 {\"v\": 3} f"]);
    let events = fixture
        .lines("concat_ws(' ', event_type, event_payload->>'version') FROM blackboard_events WHERE event_type::text LIKE 'context%' ORDER BY event_sequence")
        .await;
    assert_eq!(events, ["context.stored 1", "context.stored 3", "context.removed 9"]);
    assert_eq!(fixture.dead_letters().await, Vec::<String>::new());
    assert_eq!(worker.stats.report().unchanged, 3);
    worker.stop().await.expect("a clean end");
}

#[tokio::test(flavor = "multi_thread")]
async fn replicas_share_the_work_and_stopping_one_loses_nothing() {
    let fixture = Fixture::new().await;
    let mut settings = fixture.settings.clone();
    settings.worker.batch_size = 20;
    let first = fixture.run_with(ContextWriter, settings.clone());
    let second = fixture.run_with(ContextWriter, settings);
    fixture.publish((1..=20).map(user)).await;
    fixture.publish((1..=20).map(|id| session(id, "s"))).await;
    fixture.publish((0..2_000).map(|n| context(n % 20 + 1, "s", &format!("k{n}"), 1))).await;
    let stats = first.stats.clone();
    eventually("the first replica has worked", async || (stats.report().applied > 0).then_some(())).await;
    first.stop().await.expect("being stopped is no failure");
    fixture.drained::<ContextWriter>().await;

    assert_eq!(fixture.count("simple_chat_context").await, 2_000);
    assert_eq!(fixture.count("blackboard_events").await, 2_040);
    assert!(second.stats.report().applied > 0, "the second replica worked too");
    assert_eq!(fixture.dead_letters().await, Vec::<String>::new());
    second.stop().await.expect("a clean end");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replica_that_stops_hands_back_everything_that_was_sent_to_it() {
    let fixture = Fixture::with_topology(|topology| {
        // What is not handed back comes again after the deadline of this test.
        set_redelivery(topology, "context-writer", Duration::from_secs(600), 1_000);
    })
    .await;
    let mut settings = fixture.settings.clone();
    settings.worker.batch_size = 200;
    fixture
        .process(ContextWriter, (1..=20).flat_map(|id| [user(id), session(id, "s")]).collect::<Vec<_>>())
        .await;
    let publishing = async {
        for part in 0..60 {
            fixture.publish((0..300).map(|n| context(n % 20 + 1, "s", &format!("k{part}.{n}"), 1))).await;
        }
    };
    let stopping = async {
        // Each replica is stopped while the server is sending to it.
        for _ in 0..10 {
            let worker = fixture.run_with(ContextWriter, settings.clone());
            eventually("it works", async || (worker.stats.report().batches > 0).then_some(())).await;
            worker.stop().await.expect("a clean end");
        }
    };
    futures::join!(publishing, stopping);
    let last = fixture.run_with(ContextWriter, settings);
    fixture.drained::<ContextWriter>().await;
    assert_eq!(fixture.count("simple_chat_context").await, 60 * 300);
    assert_eq!(fixture.dead_letters().await, Vec::<String>::new());
    last.stop().await.expect("a clean end");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_database_that_goes_away_costs_no_try() {
    let fixture = Fixture::new().await;
    let mut settings = fixture.settings.clone();
    settings.worker.retry_attempts = 1;
    let worker = fixture.run_with(ContextWriter, settings);
    fixture.publish([user(1), session(1, "s")]).await;
    fixture.drained::<ContextWriter>().await;

    let name = fixture.settings.postgres.url.rsplit('/').next().expect("a database").to_owned();
    let server = fixture.settings.postgres.url.replace(&name, "postgres");
    let mut admin = store::connect(&server).await.expect("a connection");
    use diesel_async::SimpleAsyncConnection as _;
    let refuse = format!(
        "ALTER DATABASE {name} ALLOW_CONNECTIONS false;
         SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{name}'"
    );
    admin.batch_execute(&refuse).await.expect("the database goes away");
    fixture.publish((1..=100).map(|n| context(1, "s", &format!("k{n}"), 1))).await;
    let consumer = fixture.consumer("CONTEXT", "context-writer").await;
    eventually("the worker holds messages that it cannot write", async || {
        (consumer.get_info().await.ok()?.num_ack_pending > 0).then_some(())
    })
    .await;
    admin.batch_execute(&format!("ALTER DATABASE {name} ALLOW_CONNECTIONS true")).await.expect("it is back");
    fixture.drained::<ContextWriter>().await;
    assert_eq!(fixture.count("simple_chat_context").await, 100);
    assert_eq!(fixture.dead_letters().await, Vec::<String>::new());
    assert_eq!(worker.stats.report().retried, 0);
    worker.stop().await.expect("a clean end");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broker_that_is_restarted_loses_nothing() {
    // A broker that is killed forgets acknowledgements it has not written down, and delivers again.
    let mut fixture = Fixture::with_topology(|topology| {
        set_redelivery(topology, "context-writer", Duration::from_secs(1), 64);
    })
    .await;
    let worker = fixture.run(ContextWriter);
    fixture.publish([user(1), session(1, "s")]).await;
    fixture.drained::<ContextWriter>().await;
    fixture.nats.kill().await;
    fixture.nats.resume().await.expect("the broker comes back");
    eventually("the broker takes messages", async || {
        let request = context(1, "s", "probe", 1);
        let headers = request.header_map();
        let sent =
            fixture.jetstream.publish_with_headers(request.subject, headers, request.body.into()).await;
        sent.ok()?.await.ok().map(|_| ())
    })
    .await;
    fixture.publish((1..=100).map(|n| context(1, "s", &format!("k{n}"), 1))).await;
    fixture.drained::<ContextWriter>().await;
    assert_eq!(fixture.count("simple_chat_context WHERE context_key LIKE 'k%'").await, 100);
    assert_eq!(fixture.dead_letters().await, Vec::<String>::new());
    worker.stop().await.expect("a clean end");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_never_settled_becomes_a_dead_letter() {
    let fixture = Fixture::with_topology(|topology| {
        set_redelivery(topology, "context-writer", Duration::from_millis(300), 2);
    })
    .await;
    fixture.publish([user(7)]).await;
    // Something takes the message twice and dies of it.
    let consumer = fixture.consumer("CONTEXT", "context-writer").await;
    for _ in 0..2 {
        eventually("a delivery", async || {
            let mut batch = consumer.fetch().max_messages(1).messages().await.ok()?;
            batch.next().await?.ok().map(|_| ())
        })
        .await;
    }
    // The server tells of it when it would deliver the message a third time.
    let worker = fixture.run(ContextWriter);
    let dead = eventually("the dead letter", async || {
        let dead = fixture.dead_letters().await;
        (!dead.is_empty()).then_some(dead)
    })
    .await;
    assert_eq!(dead, ["undeliverable: delivered 2 times and never settled; it may have crashed a worker"]);
    assert_eq!(fixture.messages("DEAD").await[0].payload, fixture.messages("CONTEXT").await[0].payload);
    worker.stop().await.expect("a clean end");
}

/// The broker would check the condition again, and refuse the dead letter for ever.
#[tokio::test(flavor = "multi_thread")]
async fn the_conditions_of_a_publish_do_not_hold_for_its_dead_letter() {
    let fixture = Fixture::new().await;
    let worker = fixture.run(ContextWriter);
    let conditional = request("session.open", 1, json!({ "session_id": "s" }))
        .with("Nats-Expected-Stream", "CONTEXT")
        .with("X-Own", "kept");
    fixture.publish([conditional]).await;
    fixture.drained::<ContextWriter>().await;
    let dead = fixture.messages("DEAD").await.remove(0);
    assert_eq!(dead.headers.get("Nats-Expected-Stream"), None);
    assert_eq!(dead.headers.get("X-Own").map(async_nats::HeaderValue::as_str), Some("kept"));
    worker.stop().await.expect("a clean end");
}

/// A message that is settled and then delivered again, because its consumer was reset after a restore, has all its tries.
#[tokio::test(flavor = "multi_thread")]
async fn the_tries_of_a_settled_message_are_forgotten() {
    let fixture = Fixture::new().await;
    fixture.register("alpha", "*:*").await;
    let alpha = "alpha".parse().expect("a service");
    let mut settings = fixture.settings.clone();
    // Some seconds, in which a service is disabled and a session opened.
    settings.worker.retry_attempts = 40;
    let attempts = u64::from(settings.worker.retry_attempts);
    let worker = fixture.run_with(ContextWriter, settings);
    let retried = || worker.stats.report().retried;
    let of_alpha = |request: testkit::RequestMessage| testkit::RequestMessage {
        subject: request.subject.replace(".test.", ".alpha."),
        ..request
    };
    // One will be applied, one denied, and one dead-lettered when its tries are spent.
    let applied = context(1, "late", "k", 1);
    fixture.publish([user(1), applied.clone(), of_alpha(context(1, "late", "denied", 1))]).await;
    eventually("both are tried again", async || (retried() >= 4).then_some(())).await;
    store::registry::disable_service(&mut fixture.connection().await, &alpha).await.expect("a service");
    eventually("the one of the disabled service is denied", async || {
        (fixture.stored("DEAD").await == 1).then_some(())
    })
    .await;
    fixture.publish([session(1, "late")]).await;
    fixture.drained::<ContextWriter>().await;
    fixture.publish([context(1, "never", "k", 1)]).await;
    fixture.drained::<ContextWriter>().await;
    assert_eq!(fixture.stored("DEAD").await, 2);

    fixture.register("alpha", "*:*").await;
    fixture
        .execute(&format!(
            "DELETE FROM inbox WHERE message_id = '{}'; DELETE FROM simple_chat_context; DELETE FROM chat_mode_sessions",
            applied.id
        ))
        .await;
    eventually("the worker knows the service again", async || {
        let known = request("user.put", 2, json!({ "username": "u", "email": "u@example.org" }));
        fixture.publish([of_alpha(known)]).await;
        fixture.drained::<ContextWriter>().await;
        (fixture.count("users WHERE id = 2").await == 1).then_some(())
    })
    .await;
    let before = retried();
    let stream = fixture.jetstream.get_stream("CONTEXT").await.expect("a stream");
    stream.reset_consumer("context-writer", Some(1)).await.expect("a reset");
    fixture.drained::<ContextWriter>().await;
    assert_eq!(retried() - before, 3 * (attempts - 1), "all tries of three messages");
    worker.stop().await.expect("a clean end");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_publisher_is_told_the_outcome_in_its_own_inbox_only() {
    let fixture = Fixture::new().await;
    let client = fixture.jetstream.client();
    let mut own = client.subscribe("_INBOX.test.1.>").await.expect("a subscription");
    let mut foreign = client.subscribe("_INBOX.other.>").await.expect("a subscription");
    let fine = user(1).with(header::REPLY_TO, "_INBOX.test.1.fine");
    let bad =
        request("session.open", 1, json!({ "session_id": "s" })).with(header::REPLY_TO, "_INBOX.test.1.bad");
    let nosy = session(1, "s").with(header::REPLY_TO, "_INBOX.other.x");
    let worker = fixture.run(ContextWriter);
    fixture.publish([nosy, fine.clone(), bad.clone()]).await;
    let mut outcomes = Vec::new();
    while outcomes.len() < 2 {
        let message =
            tokio::time::timeout(testkit::DEADLINE, own.next()).await.expect("in time").expect("an outcome");
        outcomes.push(serde_json::from_slice::<Outcome>(&message.payload).expect("an outcome"));
    }
    outcomes.sort_by_key(|outcome| outcome.request_id);
    assert_eq!((outcomes[0].request_id, outcomes[0].status), (Some(fine.id), OutcomeStatus::Applied));
    assert!(outcomes[0].event_id.is_some());
    assert_eq!((outcomes[1].request_id, outcomes[1].status), (Some(bad.id), OutcomeStatus::Dead));
    assert!(outcomes[1].reason.as_deref().is_some_and(|reason| reason.contains("chat_mode")), "{outcomes:?}");
    fixture.drained::<ContextWriter>().await;
    worker.stop().await.expect("a clean end");
    client.flush().await.expect("a flush");
    assert!(futures::FutureExt::now_or_never(foreign.next()).is_none(), "nothing went to another's inbox");
}

#[tokio::test(flavor = "multi_thread")]
async fn no_text_of_the_database_reaches_a_publisher() {
    let fixture = Fixture::new().await;
    fixture.process(ContextWriter, [user(1), session(1, "s")]).await;
    fixture
        .execute(
            "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
                 RAISE EXCEPTION 'host 10.1.2.3: % violates row-level security policy', NEW.context_key
                 USING ERRCODE = CASE NEW.context_key WHEN 'permanent' THEN '23514' WHEN 'missing' THEN '23503'
                     WHEN 'transient' THEN '40001' ELSE '42501' END;
             END $$;
             CREATE TRIGGER refuse BEFORE INSERT ON simple_chat_context FOR EACH ROW EXECUTE FUNCTION refuse()",
        )
        .await;
    let client = fixture.jetstream.client();
    let mut outcomes = client.subscribe("_INBOX.test.reasons.*").await.expect("a subscription");
    let sentences = [
        ("denied", "denied"),
        ("missing", "a record that it refers to does not exist"),
        ("permanent", "the database cannot store it; the operator finds the cause in its dead letter"),
        ("transient", "the database repeatedly failed to store it"),
    ];
    let put = |(key, _): &(&str, &str)| {
        context(1, "s", key, 1).with(header::REPLY_TO, format!("_INBOX.test.reasons.{key}"))
    };
    fixture.process(ContextWriter, sentences.iter().map(put)).await;
    let mut found = Vec::new();
    for _ in sentences {
        let message = testkit::next(&mut outcomes).await;
        let outcome: Outcome = serde_json::from_slice(&message.payload).expect("an outcome");
        assert_eq!(outcome.status, OutcomeStatus::Dead);
        let key = message.subject.trim_start_matches("_INBOX.test.reasons.").to_owned();
        found.push((key, outcome.reason.expect("a reason")));
    }
    found.sort();
    assert_eq!(found, sentences.map(|(key, reason)| (key.to_owned(), reason.to_owned())));
    // Operators read all of it.
    let letters = fixture.dead_letters().await;
    assert!(letters.len() == 4 && letters.iter().all(|letter| letter.contains("10.1.2.3")), "{letters:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_event_names_its_cause_which_is_the_same_users() {
    let fixture = Fixture::new().await;
    let worker = fixture.run(ContextWriter);
    fixture.publish([user(1), user(2), session(1, "s"), session(2, "s")]).await;
    fixture.drained::<ContextWriter>().await;
    let parent: Uuid = fixture
        .lines("id FROM blackboard_events WHERE event_type = 'session.opened' AND user_id = 1")
        .await[0]
        .parse()
        .expect("an id");
    fixture
        .publish([
            context(1, "s", "k", 1).with(header::PARENT_EVENT, parent),
            context(2, "s", "k", 1).with(header::PARENT_EVENT, parent),
        ])
        .await;
    fixture.drained::<ContextWriter>().await;
    let caused = fixture
        .lines("concat_ws(' ', user_id, parent_event_id, logical_timestamp, causality_chain) FROM blackboard_events WHERE event_type = 'context.stored'")
        .await;
    assert_eq!(caused, [format!("1 {parent} 2 [\"{parent}\"]")]);
    assert_eq!(
        fixture.dead_letters().await,
        ["permanent: Memfleet-Parent-Event: no event with this id for this user"]
    );
    worker.stop().await.expect("a clean end");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_says_what_it_waits_for_and_gives_up_in_time() {
    let fixture = Fixture::new().await;
    let mut settings = fixture.settings.clone();
    settings.worker.startup_timeout_s = 1;
    let starts =
        async |settings: config::Settings| match fixture.run_with(ContextWriter, settings).failure().await {
            Err(RunError::Startup(NotReady { problem, .. })) => problem,
            other => panic!("expected a failure at start, got {other:?}"),
        };

    let mut no_broker = settings.clone();
    no_broker.nats.url = "nats://someone:secret@127.0.0.1:1".to_owned();
    let problem = starts(no_broker).await;
    assert!(problem.contains("NATS at nats://***@127.0.0.1:1") && !problem.contains("secret"), "{problem}");

    let mut no_schema = settings.clone();
    no_schema.postgres.worker_url = Some(fixture.settings.postgres.url.replace("/test_", "/nothing_"));
    let problem = starts(no_schema).await;
    assert!(problem.contains("PostgreSQL") && problem.contains("postgres.url"), "{problem}");

    fixture.jetstream.delete_consumer_from_stream("context-writer", "CONTEXT").await.expect("a deletion");
    let problem = starts(settings).await;
    assert!(problem.contains("memfleet nats apply"), "{problem}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hand_back_is_taken_by_the_next_worker_at_once() {
    let fixture = Fixture::new().await;
    fixture.publish([user(1)]).await;
    let consumer = fixture.consumer("CONTEXT", "context-writer").await;
    let mut batch = consumer.fetch().max_messages(1).messages().await.expect("a fetch");
    let message = batch.next().await.expect("a message").expect("a message");
    message.ack_with(AckKind::Nak(None)).await.expect("a hand-back");
    let worker = fixture.run(ContextWriter);
    fixture.drained::<ContextWriter>().await;
    assert_eq!(fixture.count("users WHERE id = 1").await, 1);
    worker.stop().await.expect("a clean end");
}
