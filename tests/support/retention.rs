//! Users with rows of all ages, and runs of retention-cleaner.

use retention_cleaner::{Job, RetentionCleaner};
use serde_json::{Value, json};
use testkit::{Fixture, RequestMessage, request};

use crate::support::ticks;

/// The job.
pub fn job() -> &'static str {
    runtime::Job::name(Job::Sweep)
}

/// The worker.
pub fn cleaner(fixture: &Fixture) -> RetentionCleaner {
    RetentionCleaner::open(&fixture.settings).expect("the worker")
}

/// Removes the schedule of the job: [`tick`] takes its place.
pub async fn without_schedule(fixture: &Fixture) {
    let stream = fixture.jetstream.get_stream("JOBS").await.expect("the stream");
    for subject in ["memory.schedule.retention-sweep", "memory.job.retention-sweep"] {
        stream.purge().filter(subject).await.expect("no schedule");
    }
}

/// Runs the job, and those runs that follow by themselves.
pub async fn tick(fixture: &Fixture) {
    ticks::tick(fixture, "retention-cleaner", job()).await;
    ticks::woken(fixture, "retention-cleaner").await;
}

/// Ticks until nothing is due of any user and a pass over all users is complete.
pub async fn sweep_all(fixture: &Fixture) {
    for _ in 0..50 {
        tick(fixture).await;
        // Of all users, and not of one slice: rows of users whom the pass has left may have become due since.
        let due = "(SELECT array_agg(id) AS users FROM users) AS u, LATERAL (
            SELECT user_id FROM sec.due_expired_contexts(u.users, now(), 1)
            UNION ALL SELECT user_id FROM sec.due_expired_agent_contexts(u.users, now(), 1)
            UNION ALL SELECT user_id FROM sec.due_contexts(u.users, now(), 1, NULL)
            UNION ALL SELECT user_id FROM sec.due_agent_contexts(u.users, now(), 1, NULL)
            UNION ALL SELECT user_id FROM sec.due_decisions(u.users, now(), 1, NULL)
            UNION ALL SELECT user_id FROM sec.due_memories(u.users, now(), 1)
            UNION ALL SELECT user_id FROM sec.due_syncs(u.users, now(), 1)
            UNION ALL SELECT user_id FROM sec.due_sessions(u.users, now(), 1, NULL)
            UNION ALL SELECT user_id FROM sec.due_tombstones(u.users, now(), 1)
            UNION ALL SELECT user_id FROM sec.due_events(u.users, now(), 1, NULL)
            UNION ALL SELECT user_id FROM sec.due_inbox(u.users, now(), 1)) AS d";
        let begins = "retention_state WHERE after_user = -1 AND pass_completed_at IS NOT NULL";
        if fixture.count(due).await == 0 && fixture.count(begins).await == 1 {
            return;
        }
    }
    panic!("something is still due");
}

/// The request `policy.put`.
pub fn put(user: i32, table: &str, keep_days: i32, more: Value) -> RequestMessage {
    let mut body = json!({ "table": table, "keep_days": keep_days, "action": "delete" });
    body.as_object_mut().expect("an object").extend(more.as_object().expect("fields").clone());
    request("policy.put", user, body)
}

/// Users with a session that ended this many days ago and an open one; each with a context, one that has expired, a memory of an agent
/// and a decision of the same age.
pub async fn with_old_sessions(fixture: &Fixture, users: std::ops::RangeInclusive<i32>, days: i32) {
    let (first, last) = (users.start(), users.end());
    let ago = format!("now() - interval '{days} days'");
    fixture
        .execute(&format!(
            "INSERT INTO users (id, username, email) SELECT n, 'u', 'e' FROM generate_series({first}, {last}) AS n;
             INSERT INTO chat_mode_sessions (id, user_id, session_id, chat_mode, is_active, ended_at)
                 SELECT gen_random_uuid(), n, s, 'simple', s = 'open', CASE WHEN s = 'ended' THEN {ago} END
                 FROM generate_series({first}, {last}) AS n, unnest(ARRAY['open', 'ended']) AS s;
             INSERT INTO simple_chat_context (id, user_id, session_id, context_key, context_value, expires_at)
                 SELECT gen_random_uuid(), s.user_id, s.session_id, k, '1', CASE WHEN k = 'expired' THEN now() - interval '1 minute' END
                 FROM chat_mode_sessions s, unnest(ARRAY['kept', 'expired']) AS k WHERE s.user_id BETWEEN {first} AND {last};
             INSERT INTO agent_context_states (id, user_id, session_id, agent_id, memory_tier, context_key, context_value)
                 SELECT gen_random_uuid(), s.user_id, s.session_id, 'a', 'shared', 'k', '1' FROM chat_mode_sessions s
                 WHERE s.user_id BETWEEN {first} AND {last};
             INSERT INTO router_decision_log (id, user_id, session_id, user_request, routing_decision, created_at)
                 SELECT gen_random_uuid(), s.user_id, s.session_id, 'where?', '{{}}', {ago} FROM chat_mode_sessions s
                 WHERE s.user_id BETWEEN {first} AND {last}"
        ))
        .await;
}

/// Memories of agents of these users in sessions that are no chat sessions, a private and a shared one in each. They were written 200 days
/// ago, or 10 (`written-late`, `new`); in conversations that ended 100 days ago, 10 days ago (`over-late`) or did not end (`under-way`), or in none.
pub async fn with_memories_of_no_session(fixture: &Fixture, users: std::ops::RangeInclusive<i32>) {
    let (first, last) = (users.start(), users.end());
    fixture
        .execute(&format!(
            "INSERT INTO users (id, username, email) SELECT n, 'u', 'e' FROM generate_series({first}, {last}) AS n
                 ON CONFLICT DO NOTHING;
             INSERT INTO multi_agent_conversations (id, user_id, session_id, conversation_title, started_at, completed_at)
                 SELECT gen_random_uuid(), n, s, 't', now() - interval '300 days', now() - make_interval(days => d)
                 FROM generate_series({first}, {last}) AS n,
                     (VALUES ('over', 100), ('written-late', 100), ('over-late', 10), ('under-way', NULL)) AS c (s, d);
             INSERT INTO agent_context_states (id, user_id, session_id, agent_id, memory_tier, context_key, context_value, expires_at, updated_at)
                 SELECT gen_random_uuid(), n, s, 'a', t::memorytier, 'k', '1', CASE WHEN s = 'expired' THEN now() - interval '1 minute' END,
                     now() - CASE WHEN s IN ('written-late', 'new') THEN interval '10 days' ELSE interval '200 days' END
                 FROM generate_series({first}, {last}) AS n, unnest(ARRAY['private', 'shared']) AS t,
                     unnest(ARRAY['over', 'written-late', 'over-late', 'under-way', 'old', 'new', 'expired']) AS s"
        ))
        .await;
}

/// What is left, by user and session.
pub async fn left(fixture: &Fixture) -> Vec<String> {
    let select = "line FROM (
        SELECT concat_ws(' ', user_id, session_id, context_key, CASE WHEN removed_at IS NOT NULL THEN 'empty' END) AS line
        FROM simple_chat_context
        UNION ALL SELECT concat_ws(' ', user_id, session_id, 'of', agent_id) FROM agent_context_states
        UNION ALL SELECT concat_ws(' ', user_id, session_id, user_request) FROM router_decision_log
        UNION ALL SELECT concat_ws(' ', user_id, session_id) FROM chat_mode_sessions) AS l ORDER BY line";
    let mut lines = fixture.lines(select).await;
    lines.sort();
    lines
}
