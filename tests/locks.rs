//! Rows and tables that other transactions keep locked: whom they hold up, and what an operator sees.

use std::time::Duration;

use context_writer::ContextWriter;
use diesel_async::{AsyncPgConnection, SimpleAsyncConnection};
use futures::StreamExt;
use runtime::{Phase, ReadinessReport};
use testkit::{Fixture, context, eventually, session, user};

const USERS: i32 = 100;
const LOCKED: i32 = 7;

/// A fixture with users who have a session and a context each, of version 1.
async fn with_contexts() -> Fixture {
    let fixture = Fixture::new().await;
    let requests = (1..=USERS).flat_map(|id| [user(id), session(id, "s"), context(id, "s", "k", 1)]);
    fixture.process(ContextWriter, requests.collect::<Vec<_>>()).await;
    fixture
}

/// A transaction that holds a lock until it is rolled back.
async fn lock(fixture: &Fixture, sql: &str) -> AsyncPgConnection {
    let mut connection = fixture.connection().await;
    connection
        .batch_execute(&format!(
            "SET application_name = 'an import'; SET idle_in_transaction_session_timeout = 0; BEGIN; {sql}"
        ))
        .await
        .expect("a lock");
    connection
}

/// Whether users other than the locked one have a context of this version.
async fn others_have(fixture: &Fixture, version: i64) -> Option<()> {
    let from = format!("simple_chat_context WHERE user_id <> {LOCKED} AND version = {version}");
    (fixture.count(&from).await == i64::from(USERS - 1)).then_some(())
}

/// Waits until a worker is ready again and nobody is blocked.
async fn free(report: impl Fn() -> ReadinessReport) {
    eventually("nobody is blocked", async || {
        let report = report();
        (report.ready && report.blocked.is_empty()).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn locked_rows_of_one_user_hold_up_that_user_alone() {
    let fixture = with_contexts().await;
    let mut settings = fixture.settings.clone();
    settings.worker.retry_attempts = 1;
    settings.worker.batch_size = 200;
    let worker = fixture.run_with(ContextWriter, settings);
    let mut holder =
        lock(&fixture, &format!("SELECT FROM simple_chat_context WHERE user_id = {LOCKED} FOR UPDATE")).await;

    let all = |version| (1..=USERS).map(move |id| context(id, "s", "k", version));
    // The first batch finds the locked user, and the later ones know it.
    for version in 2..=20 {
        fixture.publish(all(version)).await;
        eventually("the others are written", async || others_have(&fixture, version).await).await;
    }
    let report = eventually("the locked user is reported", async || {
        let report = worker.readiness.report();
        (!report.blocked.is_empty()).then_some(report)
    })
    .await;
    assert!(report.ready, "other users' messages are written");
    assert_eq!(report.blocked.len(), 1);
    assert_eq!(report.blocked[0].user_id, Some(LOCKED));
    let held_by = &report.blocked[0].held_by;
    assert!(held_by.starts_with("process ") && held_by.ends_with(", application \"an import\""), "{held_by}");
    let locked = format!("version FROM simple_chat_context WHERE user_id = {LOCKED}");
    assert_eq!(fixture.lines(&locked).await, ["1"]);

    holder.batch_execute("ROLLBACK").await.expect("no lock");
    fixture.drained::<ContextWriter>().await;
    assert_eq!(fixture.lines(&locked).await, ["20"]);
    free(|| worker.readiness.report()).await;
    let stats = worker.stats.report();
    assert!(stats.delayed > 0 && stats.retried == 0, "{stats:?}");
    assert_eq!(fixture.dead_letters().await, Vec::<String>::new());
    worker.stop().await.expect("a clean end");
}

#[tokio::test(flavor = "multi_thread")]
async fn many_locked_users_do_not_stop_the_rest() {
    let fixture = with_contexts().await;
    let worker = fixture.run(ContextWriter);
    let mut holder = lock(&fixture, "SELECT FROM simple_chat_context WHERE user_id <= 90 FOR UPDATE").await;
    for version in 2..=4 {
        fixture.publish((1..=USERS).map(|id| context(id, "s", "k", version))).await;
        let free = format!("simple_chat_context WHERE user_id > 90 AND version = {version}");
        eventually("the others are written", async || (fixture.count(&free).await == 10).then_some(())).await;
    }
    assert_eq!(worker.readiness.report().blocked.len(), 20, "a report is limited");
    holder.batch_execute("ROLLBACK").await.expect("no lock");
    fixture.drained::<ContextWriter>().await;
    assert_eq!(fixture.count("simple_chat_context WHERE version = 4").await, i64::from(USERS));
    assert_eq!(fixture.dead_letters().await, Vec::<String>::new());
    worker.stop().await.expect("a clean end");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_locked_table_is_waited_for_and_reported() {
    let fixture = with_contexts().await;
    let worker = fixture.run(ContextWriter);
    eventually("it runs", async || (worker.readiness.report().phase == Phase::Running).then_some(())).await;
    let mut settled = fixture.subscribe("$JS.ACK.CONTEXT.context-writer.>").await;
    let mut holder = lock(&fixture, "LOCK TABLE simple_chat_context").await;
    fixture.publish((1..=USERS).map(|id| context(id, "s", "k", 2))).await;
    let report = eventually("the table is reported", async || {
        let report = worker.readiness.report();
        (!report.blocked.is_empty()).then_some(report)
    })
    .await;
    assert!(!report.ready, "nothing can be written");
    assert_eq!(report.blocked.iter().map(|one| one.user_id).collect::<Vec<_>>(), [None]);
    let held_by = &report.blocked[0].held_by;
    assert!(held_by.starts_with("table simple_chat_context: process "), "{held_by}");

    holder.batch_execute("ROLLBACK").await.expect("no lock");
    fixture.drained::<ContextWriter>().await;
    free(|| worker.readiness.report()).await;
    assert_eq!(worker.stats.report().delayed, 0, "the messages waited in the worker");
    worker.stop().await.expect("a clean end");
    fixture.jetstream.client().flush().await.expect("a broker");
    while let Ok(Some(message)) = tokio::time::timeout(Duration::ZERO, settled.next()).await {
        assert!(!message.payload.starts_with(b"-NAK"), "no message was returned");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_needs_a_message_that_waits_for_a_lock_waits_for_that_message() {
    let fixture = Fixture::new().await;
    fixture.process(ContextWriter, [user(LOCKED)]).await;
    let mut settings = fixture.settings.clone();
    settings.worker.retry_attempts = 1;
    settings.worker.batch_size = 2;
    let worker = fixture.run_with(ContextWriter, settings);
    let mut holder = lock(&fixture, &format!("SELECT FROM users WHERE id = {LOCKED} FOR UPDATE")).await;
    fixture.publish([session(LOCKED, "s")]).await;
    fixture.publish((0..60).map(|n| context(LOCKED, "s", &format!("k{n}"), 1))).await;
    // With each delivery the time until the next one grows and differs more.
    eventually("all were set aside several times", async || {
        (worker.stats.report().delayed > 8 * 61).then_some(())
    })
    .await;
    holder.batch_execute("ROLLBACK").await.expect("no lock");
    fixture.drained::<ContextWriter>().await;
    assert_eq!(fixture.dead_letters().await, Vec::<String>::new());
    assert_eq!(fixture.count("simple_chat_context").await, 60);
    assert_eq!(worker.stats.report().retried, 0);
    worker.stop().await.expect("a clean end");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_service_has_a_limited_number_of_messages_that_wait_for_locks() {
    const MAY_WAIT: usize = 20;
    let fixture = with_contexts().await;
    let mut settings = fixture.settings.clone();
    settings.worker.waiting_per_service = MAY_WAIT;
    let worker = fixture.run_with(ContextWriter, settings);
    let mut holder =
        lock(&fixture, &format!("SELECT FROM chat_mode_sessions WHERE user_id = {LOCKED} FOR UPDATE")).await;
    fixture.publish((0..100).map(|n| context(LOCKED, "s", &format!("w{n}"), 1))).await;
    let consumer = fixture.consumer("CONTEXT", "context-writer").await;
    eventually("the others do not wait", async || {
        let info = consumer.get_info().await.ok()?;
        (info.num_pending == 0 && info.num_ack_pending <= MAY_WAIT).then_some(())
    })
    .await;
    // What waits has its place, and others are written.
    fixture.publish((1..=USERS).filter(|id| *id != LOCKED).map(|id| context(id, "s", "k", 2))).await;
    eventually("the others are written", async || others_have(&fixture, 2).await).await;
    holder.batch_execute("ROLLBACK").await.expect("no lock");
    fixture.drained::<ContextWriter>().await;
    let letters = fixture.dead_letters().await;
    let reason = "exhausted: too many messages of its service wait for other workers or for locked rows";
    assert!(letters.iter().all(|letter| letter == reason), "{letters:?}");
    let written = fixture.count(&format!("simple_chat_context WHERE user_id = {LOCKED}")).await;
    assert_eq!(usize::try_from(written).expect("a count") + letters.len(), 101, "one is from before");
    assert!(letters.len() >= 100 - MAY_WAIT, "{}", letters.len());
    worker.stop().await.expect("a clean end");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_statement_that_is_slow_for_one_user_holds_up_that_user_alone() {
    let fixture = with_contexts().await;
    fixture
        .execute(&format!(
            "CREATE FUNCTION slow() RETURNS trigger LANGUAGE plpgsql AS $$
             BEGIN PERFORM pg_sleep(60); RETURN NEW; END $$;
             CREATE TRIGGER slow BEFORE INSERT ON simple_chat_context
             FOR EACH ROW WHEN (NEW.user_id = {LOCKED}) EXECUTE FUNCTION slow()"
        ))
        .await;
    let mut settings = fixture.settings.clone();
    settings.worker.retry_attempts = 1;
    settings.postgres.statement_timeout_ms = 1_000;
    let worker = fixture.run_with(ContextWriter, settings);
    for version in 2..=4 {
        fixture.publish((1..=USERS).map(|id| context(id, "s", "k", version))).await;
        eventually("the others are written", async || others_have(&fixture, version).await).await;
    }
    fixture.execute("DROP TRIGGER slow ON simple_chat_context").await;
    fixture.drained::<ContextWriter>().await;
    assert_eq!(fixture.count("simple_chat_context WHERE version = 4").await, i64::from(USERS));
    assert_eq!(fixture.dead_letters().await, Vec::<String>::new());
    assert_eq!(worker.stats.report().retried, 0);
    worker.stop().await.expect("a clean end");
}
