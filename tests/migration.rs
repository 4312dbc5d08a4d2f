//! Migrations while others write and read: nobody waits for long, nothing fails, nothing is lost; and each can be taken back
//! when the database is full of rows.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use context_writer::ContextWriter;
use diesel_async::{AsyncPgConnection, SimpleAsyncConnection};
use testkit::{Fixture, eventually, requests_for_all_tables};
use tokio::task::JoinHandle;

/// How long a statement may wait for a lock: with a migration that keeps one for longer it fails.
const PATIENCE: &str = "SET lock_timeout = '200ms'";
/// The migrations whose tables the writers need: accounts, sessions, conversations.
const BASE: usize = 3;
const USERS: u32 = 200;

/// Brings a database back to the migrations of the base and fills it.
async fn filled_base(fixture: &Fixture) -> usize {
    let all = store::migration::MAIN.status(fixture.connection().await).await.expect("a status").len();
    let down = store::migration::MAIN.down(fixture.connection().await, all - BASE).await.expect("down");
    assert_eq!(down.len(), all - BASE);
    fixture
        .execute(&format!(
            "INSERT INTO users (id, username, email) SELECT n, 'u', 'e' FROM generate_series(1, {USERS}) AS n;
             INSERT INTO chat_mode_sessions (id, user_id, session_id, chat_mode)
                 SELECT gen_random_uuid(), n, 's', 'simple' FROM generate_series(1, {USERS}) AS n;
             INSERT INTO simple_chat_context (id, user_id, session_id, context_key, context_value)
                 SELECT gen_random_uuid(), 1 + n % {USERS}, 's', 'k' || n, '{{\"v\": 1}}' FROM generate_series(1, 60000) AS n"
        ))
        .await;
    all
}

/// Somebody who runs statements until told to stop, and panics if one fails.
struct Busy {
    stop: Arc<AtomicBool>,
    done: Arc<AtomicU64>,
    task: JoinHandle<()>,
}

impl Busy {
    async fn start(fixture: &Fixture, sql: impl Fn(u64) -> String + Send + 'static) -> Self {
        let (stop, done) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let mut connection: AsyncPgConnection = fixture.connection().await;
        connection.batch_execute(PATIENCE).await.expect("a setting");
        let (stopped, counted) = (Arc::clone(&stop), Arc::clone(&done));
        let task = tokio::spawn(async move {
            while !stopped.load(Ordering::Relaxed) {
                let sql = sql(counted.load(Ordering::Relaxed));
                if let Err(error) = connection.batch_execute(&sql).await {
                    panic!("{error} in {sql}");
                }
                counted.fetch_add(1, Ordering::Relaxed);
            }
        });
        Self { stop, done, task }
    }

    fn count(&self) -> u64 {
        self.done.load(Ordering::Relaxed)
    }

    async fn stop(self) -> u64 {
        self.stop.store(true, Ordering::Relaxed);
        self.task.await.expect("no statement failed");
        self.done.load(Ordering::Relaxed)
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_waits_for_a_migration_and_nothing_fails() {
    let fixture = Fixture::new().await;
    let all = filled_base(&fixture).await;
    let before = fixture.count("simple_chat_context").await;
    // As the worker does it: what a row refers to is looked at first.
    let writer = Busy::start(&fixture, |number| {
        let user = 1 + number % u64::from(USERS);
        format!(
            "INSERT INTO simple_chat_context (id, user_id, session_id, context_key, context_value)
             SELECT gen_random_uuid(), user_id, session_id, 'busy{number}', '1' FROM chat_mode_sessions WHERE user_id = {user}"
        )
    })
    .await;
    let changer = Busy::start(&fixture, |number| {
        let user = 1 + number % u64::from(USERS);
        format!(
            "BEGIN; UPDATE users SET username = 'u{number}' WHERE id = {user};
             UPDATE chat_mode_sessions SET updated_at = now() WHERE user_id = {user}; COMMIT"
        )
    })
    .await;
    let reader = Busy::start(&fixture, |number| {
        let user = 1 + number % u64::from(USERS);
        format!(
            "SELECT count(*) FROM chat_mode_sessions s JOIN simple_chat_context c USING (user_id, session_id) WHERE s.user_id = {user}"
        )
    })
    .await;
    let everybody = [&writer, &changer, &reader];
    eventually("all are busy", async || everybody.iter().all(|busy| busy.count() > 20).then_some(())).await;

    let up = store::migration::MAIN.up(fixture.connection().await).await.expect("up");
    assert_eq!(up.len(), all - BASE);
    let counts = everybody.map(Busy::count);
    eventually("all go on", async || {
        everybody.iter().zip(counts).all(|(busy, count)| busy.count() > count + 20).then_some(())
    })
    .await;
    let written = writer.stop().await;
    changer.stop().await;
    reader.stop().await;
    assert_eq!(fixture.count("simple_chat_context").await, before + i64::try_from(written).expect("a count"));
    // Whoever came before the trail has a subject too, and what was written since is told of.
    let subjects = fixture.count("audit.subjects").await;
    assert_eq!(subjects, i64::from(USERS) + 1);
    assert!(fixture.count("audit.audit_log WHERE table_name = 'simple_chat_context'").await >= 20);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_from_the_future_is_brought_back_to_the_present() {
    let fixture = Fixture::new().await;
    fixture.process(ContextWriter, [1, 2].into_iter().flat_map(requests_for_all_tables)).await;
    let all = store::migration::MAIN.status(fixture.connection().await).await.expect("a status");
    let place = all.iter().position(|state| state.name.ends_with("message_order")).expect("the migration");
    store::migration::MAIN.down(fixture.connection().await, all.len() - place).await.expect("down");
    fixture.execute("UPDATE chat_messages SET \"timestamp\" = '2099-01-01Z' WHERE user_id = 1").await;
    let past = fixture.lines("\"timestamp\" FROM chat_messages WHERE user_id = 2").await;
    store::migration::MAIN.up(fixture.connection().await).await.expect("up");
    assert_eq!(fixture.count("chat_messages WHERE user_id = 1 AND \"timestamp\" <= now()").await, 1);
    assert_eq!(fixture.lines("\"timestamp\" FROM chat_messages WHERE user_id = 2").await, past);
}

#[tokio::test(flavor = "multi_thread")]
async fn every_migration_can_be_taken_back_and_made_again_with_rows_in_every_table() {
    let fixture = Fixture::new().await;
    fixture.process(ContextWriter, (1..=20).flat_map(requests_for_all_tables)).await;
    fixture
        .execute(
            "INSERT INTO audit.security_violations (role_name, service, violation_type, severity, reason)
                 VALUES ('r', repeat('long', 30), 't', 'low', 'x');
             INSERT INTO consensus_memory_nodes (id, user_id, node_type, node_key, title, content)
                 SELECT uuid7(), id, 't', 'k', 't', '{}' FROM users;
             INSERT INTO agent_configurations (id, user_id, agent_id, agent_type, agent_role, assigned_llm, model_provider)
                 SELECT uuid7(), id, 'a', 't', 'r', 'm', 'other' FROM users;
             INSERT INTO router_decision_log (id, user_id, session_id, user_request, routing_decision)
                 SELECT uuid7(), user_id, session_id, 'x', '{}' FROM chat_mode_sessions",
        )
        .await;
    let all = store::migration::MAIN.status(fixture.connection().await).await.expect("a status").len();
    let contexts = fixture.count("simple_chat_context").await;
    assert!(contexts == 20 && fixture.count("audit.audit_log").await > 200);
    for steps in 1..=all - BASE {
        let down = store::migration::MAIN.down(fixture.connection().await, steps).await.expect("down");
        assert_eq!(down.len(), steps);
        assert_eq!(fixture.count("simple_chat_context").await, contexts, "after {steps} down");
        store::migration::MAIN.up(fixture.connection().await).await.expect("up");
        assert_eq!(fixture.count("simple_chat_context").await, contexts, "after {steps} down and up");
    }
    // A migration of its own tables takes their rows with it; what was there before is all there.
    assert_eq!(fixture.count("users").await, 21);
    assert_eq!(fixture.count("chat_messages").await, 20);
    let down = store::migration::MAIN.down(fixture.connection().await, usize::MAX).await.expect("down");
    assert_eq!(down.len(), all);
}
