//! Sessions, contexts and syncs for the tests of memory-sync.

use context_writer::ContextWriter;
use memory_sync::{Job, MemorySync};
use serde_json::{Value, json};
use testkit::{Fixture, RequestMessage, request, session, user};
use uuid::Uuid;

use crate::support::ticks;

/// A fixture with a user and these sessions.
pub async fn with_sessions(sessions: &[&str]) -> Fixture {
    open(Fixture::new().await, 1, sessions).await
}

/// Opens sessions of a user, in a fixture without the schedule of the job that carries: [`tick`] takes its place.
pub async fn open(fixture: Fixture, user_id: i32, sessions: &[&str]) -> Fixture {
    let fixture = open_scheduled(fixture, user_id, sessions).await;
    let stream = fixture.jetstream.get_stream("JOBS").await.expect("the stream");
    for subject in ["memory.schedule.sync-carry", "memory.job.sync-carry"] {
        stream.purge().filter(subject).await.expect("no schedule");
    }
    fixture
}

/// Has no event wake the job that carries.
pub async fn without_wakes(fixture: &Fixture) {
    fixture.execute("REVOKE EXECUTE ON FUNCTION sec.has_due FROM w_memory_sync").await;
}

/// Opens sessions of a user.
pub async fn open_scheduled(fixture: Fixture, user_id: i32, sessions: &[&str]) -> Fixture {
    let mut requests = vec![user(user_id)];
    requests.extend(sessions.iter().map(|id| session(user_id, id)));
    write(&fixture, requests).await;
    fixture
}

/// Has context-writer process requests to their end.
pub async fn write(fixture: &Fixture, requests: impl IntoIterator<Item = RequestMessage>) {
    fixture.process(ContextWriter, requests).await;
}

/// The worker.
pub fn syncer(fixture: &Fixture) -> MemorySync {
    MemorySync::open(&fixture.settings).expect("the worker")
}

/// Has memory-sync process requests to their end.
pub async fn process(fixture: &Fixture, requests: impl IntoIterator<Item = RequestMessage>) {
    fixture.process(syncer(fixture), requests).await;
}

/// A shared context of user 1.
pub fn put(session: &str, key: &str, value: Value, version: i64) -> RequestMessage {
    put_as(session, key, value, version, json!({ "access_level": "shared" }))
}

/// A context of user 1, with further fields.
pub fn put_as(session: &str, key: &str, value: Value, version: i64, more: Value) -> RequestMessage {
    let mut body =
        json!({ "session_id": session, "context_key": key, "context_value": value, "version": version });
    body.as_object_mut().expect("an object").extend(more.as_object().expect("fields").clone());
    request("context.put", 1, body)
}

/// The removal of a context of user 1.
pub fn remove(session: &str, key: &str, version: i64) -> RequestMessage {
    request("context.remove", 1, json!({ "session_id": session, "context_key": key, "version": version }))
}

/// A sync of user 1.
#[derive(Clone, Copy, Debug)]
pub struct Sync {
    /// Its id.
    pub id: Uuid,
}

impl Sync {
    /// A new sync.
    pub fn new() -> Self {
        Self { id: Uuid::now_v7() }
    }

    /// Starts it.
    pub fn start(self, kind: &str, source: &str, target: &str) -> RequestMessage {
        self.start_as(1, kind, source, target, json!({}))
    }

    /// Starts it for a user, with further fields.
    pub fn start_as(self, user: i32, kind: &str, source: &str, target: &str, more: Value) -> RequestMessage {
        let mut body = json!({ "sync_id": self.id, "source_session_id": source, "target_session_id": target,
            "sync_type": kind });
        body.as_object_mut().expect("an object").extend(more.as_object().expect("fields").clone());
        request("sync.start", user, body)
    }

    /// Transfers once.
    pub fn transfer(self, source: &str, target: &str) -> RequestMessage {
        self.start("context_transfer", source, target)
    }

    /// Stops it.
    pub fn stop(self) -> RequestMessage {
        request("sync.stop", 1, json!({ "sync_id": self.id, "reason": "enough" }))
    }

    /// Takes it back.
    pub fn undo(self) -> RequestMessage {
        request("sync.undo", 1, json!({ "sync_id": self.id }))
    }

    /// `status end_reason` of it.
    pub async fn state(self, fixture: &Fixture) -> String {
        let select = format!(
            "concat_ws(' ', sync_status, end_reason) FROM cross_service_memory_sync WHERE id = '{}'",
            self.id
        );
        fixture.lines(&select).await.join("|")
    }

    /// A number of its counts.
    pub async fn counted(self, fixture: &Fixture, what: &str) -> String {
        let select =
            format!("data_transferred ->> '{what}' FROM cross_service_memory_sync WHERE id = '{}'", self.id);
        fixture.lines(&select).await.join("|")
    }
}

/// `key=value` of all contexts of a session that are not removed, by key.
pub async fn memory(fixture: &Fixture, session: &str) -> Vec<String> {
    let select = format!(
        "context_key || '=' || context_value FROM simple_chat_context
        WHERE session_id = '{session}' AND removed_at IS NULL ORDER BY context_key"
    );
    fixture.lines(&select).await
}

/// Adds a node of the knowledge graph that a task of session a of user 1 made. `valid_to` is an expression.
pub async fn add_node(fixture: &Fixture, id: &str, key: &str, status: &str, valid_to: &str) {
    fixture
        .execute(&format!(
            "SET session_replication_role = replica;
             INSERT INTO consensus_memory_nodes (id, user_id, node_type, node_key, title, content, validation_status, valid_to)
             VALUES ('{id}', 1, 'fact', '{key}', 't', '{{}}', '{status}', {valid_to});
             INSERT INTO consensus_tasks (id, user_id, session_id, pm_agent_id, question, task_kind, node_type, node_key, title,
                 quorum, asked, state, close_reason, closed_at, node_id)
             VALUES (gen_random_uuid(), 1, 'a', 'pm', 'q', 'k', 'fact', '{key}', 't', 1, 1, 'closed', 'quorum', now(), '{id}')"
        ))
        .await;
}

/// The payloads of the events of a type, oldest first.
pub async fn payloads(fixture: &Fixture, event_type: &str) -> Vec<Value> {
    let select = format!(
        "event_payload::text FROM blackboard_events WHERE event_type = '{event_type}' ORDER BY event_sequence"
    );
    let texts = fixture.lines(&select).await;
    texts.iter().map(|text| serde_json::from_str(text).expect("JSON")).collect()
}

/// Has the server publish a tick, and waits until it is acknowledged, and those that events have caused.
pub async fn tick(fixture: &Fixture, job: Job) {
    ticks::tick(fixture, "memory-sync", runtime::Job::name(job)).await;
    ticks::woken(fixture, "memory-sync").await;
}

/// Asserts that the events alone give the contexts and the memories of agents of user 1, whoever wrote them.
pub async fn assert_replays(fixture: &Fixture) {
    let user = contract::UserId::new(1).expect("a user");
    let replayed = memfleet::replay::replay(&mut fixture.connection().await, user, i64::MAX).await;
    assert_eq!(replayed.expect("a replay").differences, []);
}
