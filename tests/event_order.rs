//! The events of a session: numbered, seen and published in one order, whoever appends them and whatever happens to whom.

use std::collections::{BTreeMap, HashSet};
use std::time::Duration;

use context_writer::ContextWriter;
use contract::{Event, header};
use diesel_async::{AsyncConnection, SimpleAsyncConnection};
use router_logger::RouterLogger;
use serde_json::json;
use store::Fault;
use testkit::attack::{assert_refused, attempt, grant, login};
use testkit::{
    Fixture, RequestMessage, RunningWorker, context, eventually, request, session, set_redelivery, user,
};
use tokio::process::Child;
use uuid::Uuid;

use crate::support::program::{Ended, memfleet, output, start_worker};

const USERS: i32 = 6;

fn decision(user: i32) -> RequestMessage {
    request(
        "decision.log",
        user,
        json!({ "decision_id": Uuid::now_v7(), "session_id": "s", "user_request": "q", "routing_decision": "direct" }),
    )
}

/// What was published, without repeats, in the order in which the broker stored it.
async fn published(fixture: &Fixture) -> Vec<Event> {
    let mut seen = HashSet::new();
    let messages = fixture.messages("EVENTS").await;
    let events =
        messages.iter().map(|message| serde_json::from_slice::<Event>(&message.payload).expect("an event"));
    events.filter(|event| seen.insert(event.event_id)).collect()
}

/// Everything was published, each session's events in the order of their numbers.
async fn assert_in_order(fixture: &Fixture) {
    let events = published(fixture).await;
    assert_eq!(events.len() as i64, fixture.count("blackboard_events").await);
    let mut last: BTreeMap<(i32, String), i64> = BTreeMap::new();
    for event in &events {
        let last = last.entry((event.user_id.get(), event.session_id.clone())).or_default();
        assert!(
            event.event_sequence > *last,
            "{} after {last} in {}",
            event.event_sequence,
            event.session_id
        );
        *last = event.event_sequence;
    }
}

fn start(fixture: &Fixture, worker: &str, crash_at: Option<&str>) -> Child {
    start_worker(fixture, worker, crash_at, &[("MEMFLEET_WORKER__BATCH_SIZE", "20")])
}

#[tokio::test(flavor = "multi_thread")]
async fn replicas_of_two_workers_publish_the_events_of_a_session_in_order_also_when_they_die() {
    let fixture = Fixture::with_topology(|topology| {
        for worker in [contract::CONTEXT_WRITER.name, contract::ROUTER_LOGGER.name] {
            set_redelivery(topology, worker, Duration::from_secs(2), 1_000);
        }
    })
    .await;
    fixture
        .process(ContextWriter, (1..=USERS).flat_map(|id| [user(id), session(id, "s")]).collect::<Vec<_>>())
        .await;
    // Few sessions and small batches: nearly every batch has a neighbour in the same sessions.
    let writers = [start(&fixture, "context-writer", None), start(&fixture, "context-writer", None)];
    let logger = start(&fixture, "router-logger", None);
    let publishing = async {
        for part in 0..30 {
            let contexts = (0..60).map(|n| context(1 + n % USERS, "s", &format!("k{part}.{n}"), 1));
            fixture.publish(contexts).await;
            fixture.publish((0..30).map(|n| decision(1 + n % USERS))).await;
        }
    };
    let deaths = std::sync::atomic::AtomicU32::new(0);
    let dying = async {
        // When its events are committed and not published, or published and not noted as such.
        for (stream, worker, point) in [
            ("CONTEXT", "context-writer", "Committed:2"),
            ("ROUTER", "router-logger", "Committed:1"),
            ("CONTEXT", "context-writer", "EventsPublished:3"),
            ("CONTEXT", "context-writer", "Committed:4"),
        ] {
            let mut victim = start(&fixture, worker, Some(point));
            // There may be nothing left for it to die of.
            let consumer = fixture.consumer(stream, worker).await;
            let idle = eventually("nothing is left to do", async || {
                (consumer.get_info().await.ok()?.num_pending == 0).then_some(())
            });
            tokio::select! {
                ended = victim.wait() => {
                    assert!(!ended.expect("a status").success());
                    deaths.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
                }
                () = idle => {}
            }
        }
    };
    tokio::join!(publishing, dying);
    assert!(deaths.into_inner() > 0, "none died");
    fixture.drained::<ContextWriter>().await;
    fixture.drained::<RouterLogger>().await;
    drop((writers, logger));
    assert_eq!(fixture.dead_letters().await, Vec::<String>::new());
    assert_in_order(&fixture).await;
}

/// Waits until a decision is committed and its message set aside.
async fn decision_waits(fixture: &Fixture) {
    let consumer = fixture.consumer("ROUTER", contract::ROUTER_LOGGER.name).await;
    eventually("the decision is committed and delivered again", async || {
        let committed = fixture.count("blackboard_events WHERE event_type = 'decision.logged'").await > 0;
        (committed && consumer.get_info().await.ok()?.num_redelivered > 0).then_some(())
    })
    .await;
}

/// What another worker has committed and never published is published by itself, before what comes after it.
#[tokio::test(flavor = "multi_thread")]
async fn an_event_waits_for_an_earlier_one_of_another_worker_and_others_do_not() {
    let fixture = Fixture::with_topology(|topology| {
        set_redelivery(topology, "context-writer", Duration::from_secs(2), 1_000);
    })
    .await;
    fixture.process(ContextWriter, [user(1), session(1, "s"), user(2), session(2, "s")]).await;
    let mut victim = start(&fixture, "context-writer", Some("Committed:1"));
    // More than are looked at of a session.
    fixture.publish((0..40).map(|n| context(1, "s", &format!("k{n}"), 1))).await;
    victim.wait().await.expect("a status");
    let unpublished = fixture.count("simple_chat_context").await;
    assert!(unpublished > 0);

    let logger = fixture.run(RouterLogger);
    fixture.publish([decision(1), decision(2)]).await;
    decision_waits(&fixture).await;
    let types = async || -> Vec<String> {
        published(&fixture).await.iter().skip(4).map(|event| event.event_type.to_string()).collect()
    };
    eventually("that of another session is published", async || {
        let types = types().await;
        (!types.is_empty()).then(|| assert_eq!(types, ["decision.logged"]))
    })
    .await;
    fixture.execute("UPDATE sec.unpublished_transactions SET since = since - interval '15 seconds'").await;
    let status: Ended = output(memfleet(&fixture, &["status"])).await.into();
    assert!(status.all().contains("warning: context-writer committed events"), "{}", status.all());
    // More of its own events of the session wait too, in order.
    fixture.publish([decision(1)]).await;
    let writer = fixture.run(ContextWriter);
    fixture.drained::<ContextWriter>().await;
    fixture.drained::<RouterLogger>().await;
    assert_eq!(types().await.len(), 3 + 40);
    assert_in_order(&fixture).await;
    assert_eq!(fixture.dead_letters().await, Vec::<String>::new());
    assert_eq!(fixture.count("sec.unpublished_transactions").await, 0);
    logger.stop().await.expect("a clean end");
    writer.stop().await.expect("a clean end");
}

/// A router-logger with a decision whose event comes after one of a context-writer that died before it published it.
async fn logger_after_a_dead_writer(fixture: &Fixture) -> RunningWorker {
    fixture.process(ContextWriter, [user(1), session(1, "s")]).await;
    let mut victim = start(fixture, "context-writer", Some("Committed:1"));
    fixture.publish([context(1, "s", "k", 1)]).await;
    victim.wait().await.expect("a status");
    let logger = fixture.run(RouterLogger);
    fixture.publish([decision(1)]).await;
    logger
}

/// A message that waits is no dead letter when it has been delivered as often as it may be.
#[tokio::test(flavor = "multi_thread")]
async fn an_event_that_waits_until_its_last_delivery_is_published_all_the_same() {
    let fixture = Fixture::with_topology(|topology| {
        set_redelivery(topology, "context-writer", Duration::from_secs(3_600), 1_000);
        set_redelivery(topology, "router-logger", Duration::from_secs(1), 3);
    })
    .await;
    let logger = logger_after_a_dead_writer(&fixture).await;
    decision_waits(&fixture).await;
    let of_logger = "sec.unpublished_transactions WHERE role_name = 'w_router_logger'";
    eventually("the decision is published", async || (fixture.count(of_logger).await == 0).then_some(()))
        .await;
    assert_eq!(published(&fixture).await.last().expect("an event").event_type.as_str(), "decision.logged");
    assert_eq!(fixture.dead_letters().await, Vec::<String>::new());
    logger.stop().await.expect("a clean end");
}

/// Those that wait count against what the broker delivers to all services.
#[tokio::test(flavor = "multi_thread")]
async fn a_service_has_a_limited_number_of_messages_whose_events_wait() {
    let mut fixture = Fixture::with_topology(|topology| {
        set_redelivery(topology, "context-writer", Duration::from_secs(3_600), 1_000);
    })
    .await;
    fixture.settings.worker.waiting_per_service = 1;
    let logger = logger_after_a_dead_writer(&fixture).await;
    decision_waits(&fixture).await;
    assert_eq!(published(&fixture).await.len(), 2);
    fixture.publish([decision(1), decision(1), decision(1)]).await;
    let consumer = fixture.consumer("ROUTER", contract::ROUTER_LOGGER.name).await;
    eventually("one waits", async || {
        let info = consumer.get_info().await.ok()?;
        (info.num_pending == 0 && info.num_ack_pending <= 1 && published(&fixture).await.len() >= 2 + 3)
            .then_some(())
    })
    .await;
    assert_eq!(fixture.dead_letters().await, Vec::<String>::new());
    logger.stop().await.expect("a clean end");
}

/// Nobody waits for a worker for longer than an hour.
#[tokio::test(flavor = "multi_thread")]
async fn after_an_hour_an_event_waits_for_no_other_worker() {
    let fixture = Fixture::with_topology(|topology| {
        set_redelivery(topology, "context-writer", Duration::from_secs(3_600), 1_000);
    })
    .await;
    let logger = logger_after_a_dead_writer(&fixture).await;
    decision_waits(&fixture).await;
    assert_eq!(published(&fixture).await.len(), 2);
    fixture.execute("UPDATE sec.unpublished_transactions SET since = now() - interval '61 minutes'").await;
    fixture.drained::<RouterLogger>().await;
    assert_eq!(published(&fixture).await.len(), 3);
    logger.stop().await.expect("a clean end");
}

/// Session s of user 1, without events.
fn clock_of_session(published: i64, enqueued: i64) -> store::clock::Session<'static> {
    let user_id = contract::UserId::new(1).unwrap();
    store::clock::Session { user_id, session_id: "s", events: 0, causes: 0, published, enqueued }
}

/// A reader who has seen a number has seen all before it: nobody draws a number in a session in which another one holds one
/// that is not committed.
#[tokio::test(flavor = "multi_thread")]
async fn numbers_become_visible_in_the_order_in_which_they_are_drawn() {
    let fixture = Fixture::new().await;
    fixture.process(ContextWriter, [user(1), session(1, "s"), session(1, "other")]).await;
    let mut slow = login(&fixture, "w_context_writer").await;
    let (begun, go_on) =
        (std::sync::Arc::new(tokio::sync::Notify::new()), std::sync::Arc::new(tokio::sync::Notify::new()));
    let (told, asked) = (begun.clone(), go_on.clone());
    let holding = tokio::spawn(async move {
        let held: Result<(), Fault> = slow
            .transaction(async |connection| {
                store::security::open_context(connection, &[&grant(1, "w_context_writer")]).await?;
                store::clock::take(connection, &contract::CONTEXT_WRITER, &[clock_of_session(0, i64::MAX)])
                    .await?;
                told.notify_one();
                asked.notified().await;
                Ok(())
            })
            .await;
        held.expect("a transaction");
    });
    begun.notified().await;
    let worker = fixture.run(ContextWriter);
    fixture.publish([context(1, "other", "k", 1)]).await;
    fixture.drained::<ContextWriter>().await;
    fixture.publish([context(1, "s", "k", 1)]).await;
    eventually("the worker waits for the session's clock", async || {
        (fixture
            .count("pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'")
            .await
            > 0)
        .then_some(())
    })
    .await;
    assert_eq!(fixture.count("simple_chat_context WHERE session_id = 's'").await, 0);
    go_on.notify_one();
    holding.await.expect("no panic");
    fixture.drained::<ContextWriter>().await;
    assert_eq!(fixture.count("simple_chat_context WHERE session_id = 's'").await, 1);
    worker.stop().await.expect("a clean end");
}

/// Of two replicas, the one that knows less does not make the other's events count as unpublished again.
#[tokio::test(flavor = "multi_thread")]
async fn the_published_mark_of_a_session_never_goes_back() {
    let fixture = Fixture::new().await;
    fixture.process(ContextWriter, [user(1), session(1, "s"), context(1, "s", "k", 1)]).await;
    let last = fixture
        .lines("event_sequence FROM blackboard_events WHERE session_id = 's' ORDER BY event_sequence DESC LIMIT 1")
        .await[0]
        .parse::<i64>()
        .expect("a number");
    let mut replica = login(&fixture, "w_context_writer").await;
    // The number of events that count as unpublished, and the mark in the database.
    let mut take = async |published: i64| {
        let taken: Result<usize, Fault> = replica
            .transaction(async |connection| {
                store::security::open_context(connection, &[&grant(1, "w_context_writer")]).await?;
                Ok(store::clock::take(
                    connection,
                    &contract::CONTEXT_WRITER,
                    &[clock_of_session(published, published)],
                )
                .await?
                .earlier
                .len())
            })
            .await;
        let mark = fixture.lines("published_sequence FROM session_clocks WHERE session_id = 's'").await;
        (taken.expect("a transaction"), mark)
    };
    assert_eq!(take(last).await, (0, vec![last.to_string()]));
    assert_eq!(take(0).await, (0, vec![last.to_string()]));
    assert_eq!(take(last - 1).await, (0, vec![last.to_string()]));
    assert_eq!(take(last + 1).await, (0, vec![(last + 1).to_string()]));
}

/// Also where one session has more of them than are read at once.
#[tokio::test(flavor = "multi_thread")]
async fn however_much_was_not_told_is_told_first() {
    let fixture = Fixture::with_topology(|topology| {
        set_redelivery(topology, "context-writer", Duration::from_secs(3_600), 1_000);
    })
    .await;
    fixture.process(ContextWriter, [user(1), session(1, "s")]).await;
    for batch in 0..5 {
        fixture.publish((0..900).map(|n| context(1, "s", &format!("k{batch}.{n}"), 1))).await;
        let options = [("MEMFLEET_WORKER__BATCH_SIZE", "1000"), ("MEMFLEET_WORKER__BATCH_WAIT_MS", "1000")];
        let mut worker = start_worker(&fixture, "context-writer", Some("Committed:1"), &options);
        worker.wait().await.expect("a status");
    }
    let untold = fixture.count("blackboard_events").await - published(&fixture).await.len() as i64;
    assert!(untold > 2_000, "{untold}");
    let worker = fixture.run(ContextWriter);
    fixture.publish([context(1, "s", "last", 1)]).await;
    eventually("the last one is published", async || {
        let last = published(&fixture).await.pop()?;
        last.payload.as_str().contains("\"last\"").then_some(())
    })
    .await;
    assert_in_order(&fixture).await;
    worker.stop().await.expect("a clean end");
}

/// What this worker can publish comes before events of others, also when it is more than is read at once.
#[tokio::test(flavor = "multi_thread")]
async fn of_many_earlier_events_those_before_another_workers_come_first() {
    const OWN: usize = 2_100;
    let fixture = Fixture::new().await;
    fixture.process(ContextWriter, [user(1), session(1, "s"), context(1, "s", "k", 1)]).await;
    // Its own, one of another worker, and three of its own behind it: all of a transaction that nobody has published.
    fixture
        .execute(&format!(
            "SET session_replication_role = replica;
             INSERT INTO sec.unpublished_transactions (transaction_id, role_name, since, events)
             VALUES (7, 'w_context_writer', now(), {OWN} + 4);
             INSERT INTO blackboard_events SELECT (r).* FROM (SELECT jsonb_populate_record(e, jsonb_build_object(
                'id', overlay(uuid7_at(now())::text PLACING lpad(to_hex(n), 12, '0') FROM 25), 'transaction_id', 7,
                'event_sequence', nextval('blackboard_event_sequence'),
                'event_type', CASE n WHEN {OWN} + 1 THEN 'decision.logged' ELSE 'context.stored' END)) AS r
             FROM blackboard_events e, generate_series(1, {OWN} + 4) AS n WHERE e.event_type = 'context.stored') AS c"
        ))
        .await;
    let mut replica = login(&fixture, "w_context_writer").await;
    let mut take = async |published: i64| {
        let taken: Result<store::clock::Taken, Fault> = replica
            .transaction(async |connection| {
                store::security::open_context(connection, &[&grant(1, "w_context_writer")]).await?;
                let session = clock_of_session(published, published);
                store::clock::take(connection, &contract::CONTEXT_WRITER, &[session]).await
            })
            .await;
        taken.expect("a transaction")
    };
    let first = take(0).await;
    assert!(first.has_more);
    assert_eq!((first.earlier.len(), first.earlier.iter().filter(|one| one.is_own).count()), (2_000, 2_000));
    let last = first.earlier.last().expect("an event").stored.event.event_sequence;
    let second = take(last).await;
    assert!(!second.has_more);
    let is_own: Vec<bool> = second.earlier.iter().map(|one| one.is_own).collect();
    let expected = (1..=OWN + 4).map(|n| n != OWN + 1).skip(2_000);
    assert_eq!(is_own, expected.collect::<Vec<_>>());
    assert!(second.earlier.iter().all(|one| one.stored.event.event_sequence > last && !one.is_cut));
}

/// Takes the clock of session s of user 1 for a worker that knows nothing of it.
async fn take(fixture: &Fixture, worker: &contract::WorkerInfo, role: &str) -> store::clock::Taken {
    let mut replica = login(fixture, role).await;
    let taken: Result<store::clock::Taken, Fault> = replica
        .transaction(async |connection| {
            store::security::open_context(connection, &[&grant(1, role)]).await?;
            store::clock::take(connection, worker, &[clock_of_session(0, 0)]).await
        })
        .await;
    taken.expect("a transaction")
}

/// However many published events there are in a session, whether they were noted one by one or all together: a batch looks at a limited
/// number at a time, and none looks at them again.
#[tokio::test(flavor = "multi_thread")]
async fn published_events_of_a_session_are_looked_at_once_and_in_parts() {
    const MANY: usize = 5_000;
    let fixture = Fixture::new().await;
    fixture.process(ContextWriter, [user(1), session(1, "s"), context(1, "s", "k", 1)]).await;
    let mark = async || {
        let marks = fixture.lines("published_sequence FROM session_clocks WHERE session_id = 's'").await;
        marks[0].parse::<i64>().expect("a number")
    };
    let start = mark().await;
    fixture
        .execute(&format!(
            "SET session_replication_role = replica;
             INSERT INTO blackboard_events SELECT (r).* FROM (SELECT jsonb_populate_record(e, jsonb_build_object(
                'id', overlay(uuid7_at(now())::text PLACING lpad(to_hex(n), 12, '0') FROM 25), 'transaction_id', 7,
                'event_sequence', nextval('blackboard_event_sequence'), 'event_type', 'decision.logged')) AS r
             FROM blackboard_events e, generate_series(1, {MANY}) AS n WHERE e.event_type = 'context.stored') AS c"
        ))
        .await;
    let taken = take(&fixture, &contract::CONTEXT_WRITER, "w_context_writer").await;
    assert!(taken.earlier.is_empty() && !taken.has_more, "{taken:?}");
    let seen = format!(
        "event_sequence FROM blackboard_events WHERE session_id = 's' AND event_sequence > {start} ORDER BY event_sequence OFFSET 4035 LIMIT 1"
    );
    assert_eq!(
        fixture.lines(&seen).await,
        [mark().await.to_string()],
        "two parts need not be looked at again"
    );

    // All but the last one are noted as published.
    fixture
        .execute(&format!(
            "INSERT INTO sec.unpublished_transactions (transaction_id, role_name, since, events) VALUES (7, 'w_router_logger', now(), {MANY});
             INSERT INTO sec.published_events SELECT 7, id FROM blackboard_events WHERE transaction_id = 7
                AND event_sequence < (SELECT max(event_sequence) FROM blackboard_events)"
        ))
        .await;
    let taken = take(&fixture, &contract::CONTEXT_WRITER, "w_context_writer").await;
    assert_eq!((taken.earlier.len(), taken.has_more), (1, false));
    assert!(!taken.earlier[0].is_own && !taken.earlier[0].is_cut, "{taken:?}");

    // Nor is the first one: what comes after those that are looked at is not known.
    fixture
        .execute(&format!(
            "UPDATE session_clocks SET published_sequence = {start} WHERE session_id = 's';
             DELETE FROM sec.published_events WHERE event_id = (SELECT id FROM blackboard_events WHERE transaction_id = 7
                ORDER BY event_sequence LIMIT 1)"
        ))
        .await;
    let taken = take(&fixture, &contract::CONTEXT_WRITER, "w_context_writer").await;
    assert_eq!((taken.earlier.len(), taken.has_more), (1, false));
    assert!(!taken.earlier[0].is_own && taken.earlier[0].is_cut, "{taken:?}");
    assert_eq!(mark().await, start, "the mark stays before what is not published");
    let own = take(&fixture, &contract::ROUTER_LOGGER, "w_router_logger").await;
    assert_eq!((own.earlier.len(), own.has_more), (1, true), "its worker publishes it, and looks again");
    assert!(own.earlier[0].is_own);
}

/// A Lamport clock: later than what came before in the session, and than what caused it.
#[tokio::test(flavor = "multi_thread")]
async fn logical_time_grows_in_a_session_and_follows_causes_between_sessions() {
    let fixture = Fixture::new().await;
    let many = (0..40).map(|n| context(1, "busy", &format!("k{n}"), 1));
    fixture
        .process(ContextWriter, [user(1), session(1, "busy"), session(1, "s")].into_iter().chain(many))
        .await;
    let last = fixture.lines("concat_ws(' ', id, logical_timestamp) FROM blackboard_events WHERE session_id = 'busy' ORDER BY event_sequence DESC LIMIT 1").await.remove(0);
    let (cause, time) = last.split_once(' ').unwrap();
    assert_eq!(time, "41");
    let caused = decision(1).with(header::PARENT_EVENT, cause);
    fixture.process(RouterLogger, [decision(1), caused, decision(1)]).await;
    fixture.process(ContextWriter, [context(1, "s", "k", 1), context(1, "busy", "again", 1)]).await;
    let times = |session: &str| {
        format!(
            "logical_timestamp FROM blackboard_events WHERE session_id = '{session}' ORDER BY event_sequence"
        )
    };
    // What is appended together is later than every cause of it.
    assert_eq!(fixture.lines(&times("s")).await, ["1", "42", "43", "44", "45"]);
    let busy: Vec<String> = (1..=42).map(|time| time.to_string()).collect();
    assert_eq!(fixture.lines(&times("busy")).await, busy);
    let wrong = "blackboard_events c JOIN blackboard_events p ON p.id = c.parent_event_id WHERE c.logical_timestamp <= p.logical_timestamp";
    assert_eq!(fixture.count(wrong).await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn causes_are_kept_and_clocks_follow_them() {
    let fixture = Fixture::new().await;
    fixture.process(ContextWriter, [user(1), session(1, "s")]).await;
    let mut parent =
        fixture.lines("id FROM blackboard_events WHERE event_type = 'session.opened'").await.remove(0);
    let mut chain = vec![parent.clone()];
    for number in 2..=5 {
        let (of, id) = if number % 2 == 0 {
            (decision(1), "decision.logged")
        } else {
            (context(1, "s", &format!("k{number}"), 1), "context.stored")
        };
        let caused = of.with(header::PARENT_EVENT, &parent);
        if number % 2 == 0 {
            fixture.process(RouterLogger, [caused]).await;
        } else {
            fixture.process(ContextWriter, [caused]).await;
        }
        let line = fixture
            .lines(&format!("concat_ws(' ', id, logical_timestamp, parent_event_id, causality_chain) FROM blackboard_events WHERE event_type = '{id}' ORDER BY event_sequence DESC LIMIT 1"))
            .await
            .remove(0);
        let expected =
            format!("{number} {parent} {}", serde_json::to_string(&chain).unwrap().replace(',', ", "));
        let (own, rest) = line.split_once(' ').unwrap();
        assert_eq!(rest, expected);
        parent = own.to_owned();
        chain.push(parent.clone());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_changes_or_deletes_an_event() {
    let fixture = Fixture::new().await;
    fixture.process(ContextWriter, [user(1), session(1, "s")]).await;
    for role in fixture.lines("role_name FROM sec.worker_privileges GROUP BY role_name").await {
        let mut worker = login(&fixture, &role).await;
        for statement in [
            "UPDATE blackboard_events SET logical_timestamp = 9",
            "DELETE FROM blackboard_events",
            "TRUNCATE blackboard_events",
        ] {
            let refused = worker.batch_execute(statement).await.expect_err("no right");
            assert!(refused.to_string().contains("permission denied"), "{role}: {statement}: {refused}");
        }
    }
    assert_eq!(fixture.count("blackboard_events WHERE logical_timestamp = 1").await, 2);
}

/// Each batch of a session reads which of these events are published.
#[tokio::test(flavor = "multi_thread")]
async fn a_transaction_notes_at_most_as_many_events_as_a_batch_has() {
    let fixture = Fixture::new().await;
    let mut worker = login(&fixture, "w_router_logger").await;
    for sql in [
        "SELECT sec.note_unpublished(2000000000)",
        "SELECT sec.note_unpublished(0)",
        "SELECT sec.note_unpublished(NULL)",
        "SELECT sec.note_unpublished(6000) FROM generate_series(1, 2)",
    ] {
        assert_refused(attempt(&mut worker, sql).await, "a transaction notes 1 to 10000 events", sql);
    }
    assert_eq!(fixture.count("sec.unpublished_transactions").await, 0);
    assert_eq!(attempt(&mut worker, "SELECT sec.note_unpublished(10000)").await, Ok(1));
}
