//! Rows of some users, in the model of retention and as statements.

use chrono::{DateTime, TimeDelta, Utc};
use fastrand::Rng;
use uuid::Uuid;

use super::retention_model::{AgentMemory, Context, Decision, Memory, Model, Place, Session, Sync};

/// The chat modes.
pub const MODES: [&str; 4] = ["simple", "smart-router", "expert-group", "socratic"];
/// The tiers of contexts.
pub const TIERS: [&str; 3] = ["private", "shared", "public"];
/// The tiers of memories of agents.
pub const AGENT_TIERS: [&str; 3] = ["private", "shared", "consensus"];

/// Deletes the rows of all users, the policies and the holds.
pub const DELETE_ALL: &str = "
    DELETE FROM simple_chat_context; DELETE FROM agent_context_states; DELETE FROM router_decision_log;
    DELETE FROM unified_memory_vectors; DELETE FROM cross_service_memory_sync; DELETE FROM chat_mode_sessions;
    DELETE FROM multi_agent_conversations; DELETE FROM data_retention_policies; DELETE FROM retention_holds;";

/// Users, each with a node to which memories refer.
pub fn users(last: i32) -> String {
    format!(
        "INSERT INTO users (id, username, email) SELECT n, 'u', 'e' FROM generate_series(1, {last}) AS n;
         INSERT INTO consensus_memory_nodes (id, user_id, node_type, node_key, title, content)
             SELECT md5('node' || n)::uuid, n, 'memory', 'm', 'm', '{{}}' FROM generate_series(1, {last}) AS n"
    )
}

/// Rows of users with the ids from one on, into the model. Gives the statements that insert them.
pub fn rows(random: &mut Rng, model: &mut Model, base: DateTime<Utc>, last: i32) -> String {
    let mut rows = Rows { random, model, base, sql: String::new() };
    for user in 1..=last {
        let mut previous = None;
        for n in 0..rows.random.usize(1..6) {
            let session = rows.add_session(user, n);
            rows.add_contexts(user, n, session);
            rows.add_decisions(user, n, session);
            rows.add_agents(user, n, session);
            rows.add_memories(user, n, session);
            if let Some(earlier) = previous {
                rows.add_sync(user, n, session, earlier);
            }
            previous = Some(session);
        }
    }
    rows.sql
}

struct Rows<'a> {
    random: &'a mut Rng,
    model: &'a mut Model,
    base: DateTime<Utc>,
    sql: String,
}

fn quoted(time: Option<DateTime<Utc>>) -> String {
    time.map_or_else(|| "NULL".to_owned(), |time| format!("'{time}'"))
}

impl Rows<'_> {
    fn ago(&mut self) -> DateTime<Utc> {
        self.base - TimeDelta::hours(self.random.i64(0..24 * 60))
    }

    /// When a row expires, and when it was removed: one of them at most.
    fn times(&mut self) -> (Option<DateTime<Utc>>, Option<DateTime<Utc>>) {
        let expires_at = self.random.bool().then(|| self.ago() + TimeDelta::days(self.random.i64(0..120)));
        let is_removed = expires_at.is_none() && self.random.bool();
        (expires_at, is_removed.then(|| self.ago()))
    }

    fn add_session(&mut self, user: i32, n: usize) -> Uuid {
        let (id, mode) = (Uuid::new_v4(), MODES[self.random.usize(..MODES.len())]);
        let ended_at = (self.random.u8(..4) > 0).then(|| self.ago());
        self.sql += &format!(
            "INSERT INTO chat_mode_sessions (id, user_id, session_id, chat_mode, is_active, ended_at)
            VALUES ('{id}', {user}, 's{n}', '{mode}', {}, {});",
            ended_at.is_none(),
            quoted(ended_at)
        );
        self.model.sessions.insert(id, Session { user, mode, ended_at });
        id
    }

    fn add_contexts(&mut self, user: i32, n: usize, session: Uuid) {
        for key in 0..self.random.usize(..5) {
            let (id, tier) = (Uuid::new_v4(), TIERS[self.random.usize(..TIERS.len())]);
            let (expires_at, removed_at) = self.times();
            let is_persistent = self.random.u8(..4) == 0;
            self.sql += &format!(
                "INSERT INTO simple_chat_context (id, user_id, session_id, context_key, context_value, access_level, is_persistent,
                expires_at, removed_at) VALUES ('{id}', {user}, 's{n}', 'k{key}', {}, '{tier}', {is_persistent}, {}, {});",
                if removed_at.is_some() { "NULL" } else { "'1'" },
                quoted(expires_at),
                quoted(removed_at)
            );
            let context = Context { session, tier, is_persistent, expires_at, removed_at };
            self.model.contexts.insert(id, context);
        }
    }

    fn add_decisions(&mut self, user: i32, n: usize, session: Uuid) {
        for _ in 0..self.random.usize(..3) {
            let (id, created_at) = (Uuid::new_v4(), self.ago());
            self.sql += &format!(
                "INSERT INTO router_decision_log (id, user_id, session_id, user_request, routing_decision, created_at)
                VALUES ('{id}', {user}, 's{n}', 'x', '{{}}', '{created_at}');"
            );
            self.model.decisions.insert(id, Decision { session, created_at, is_anonymised: false });
        }
    }

    /// In the chat session, in a conversation, or in neither.
    fn add_agents(&mut self, user: i32, n: usize, session: Uuid) {
        let ended_at = self.random.bool().then(|| self.ago());
        self.sql += &format!(
            "INSERT INTO multi_agent_conversations (id, user_id, session_id, conversation_title, started_at, completed_at)
            VALUES (gen_random_uuid(), {user}, 'c{n}', 't', '2000-01-01 00:00:00+00', {});",
            quoted(ended_at)
        );
        for key in 0..self.random.usize(..5) {
            let (id, tier) = (Uuid::new_v4(), AGENT_TIERS[self.random.usize(..AGENT_TIERS.len())]);
            let (place, name) = match self.random.u8(..3) {
                0 => (Place::Session(session), 's'),
                1 => (Place::Conversation(ended_at), 'c'),
                _ => (Place::Nowhere, 'x'),
            };
            let (expires_at, removed_at) = self.times();
            let updated_at = self.ago();
            self.sql += &format!(
                "INSERT INTO agent_context_states (id, user_id, session_id, agent_id, memory_tier, context_key, context_value, expires_at,
                removed_at, updated_at) VALUES ('{id}', {user}, '{name}{n}', 'a', '{tier}', 'k{key}', {}, {}, {}, '{updated_at}');",
                if removed_at.is_some() { "NULL" } else { "'1'" },
                quoted(expires_at),
                quoted(removed_at)
            );
            let agent = AgentMemory { user, place, tier, updated_at, expires_at, removed_at };
            self.model.agents.insert(id, agent);
        }
    }

    /// Of the session, or of none.
    fn add_memories(&mut self, user: i32, n: usize, session: Uuid) {
        for _ in 0..self.random.usize(..3) {
            let (id, updated_at) = (Uuid::new_v4(), self.ago());
            let session = self.random.bool().then_some(session);
            let removed_at = (self.random.u8(..4) == 0).then(|| self.ago());
            let (text, points) = if removed_at.is_some() { ("", 0) } else { ("a text", 1) };
            self.sql += &format!(
                "INSERT INTO unified_memory_vectors (id, user_id, vector_type, content_text, embedding_model, memory_node_id, point_count,
                session_id, updated_at, removed_at) VALUES ('{id}', {user}, 'knowledge', '{text}', '', md5('node{user}')::uuid, {points},
                {}, '{updated_at}', {});",
                if session.is_some() { format!("'s{n}'") } else { "NULL".to_owned() },
                quoted(removed_at)
            );
            self.model.memories.insert(id, Memory { user, session, updated_at, removed_at });
        }
    }

    /// One that is over, or one that goes on.
    fn add_sync(&mut self, user: i32, n: usize, source: Uuid, target: Uuid) {
        if self.random.bool() {
            return;
        }
        let (id, completed_at) = (Uuid::new_v4(), (self.random.u8(..4) > 0).then(|| self.ago()));
        let status = if completed_at.is_some() { "completed" } else { "in_progress" };
        self.sql += &format!(
            "INSERT INTO cross_service_memory_sync (id, user_id, source_session_id, target_session_id, sync_type, sync_status,
            data_transferred, created_at, completed_at) VALUES ('{id}', {user}, 's{n}', 's{}', 'context_transfer', '{status}', '{{}}',
            '2000-01-01 00:00:00+00', {});",
            n - 1,
            quoted(completed_at)
        );
        self.model.syncs.insert(id, Sync { source, target, completed_at });
    }
}
