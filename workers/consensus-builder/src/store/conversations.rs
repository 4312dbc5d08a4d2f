//! Conversations of agents: their phases, and their counters of tasks.

use std::collections::BTreeMap;
use std::sync::LazyLock;

use ::store::unnest::{UnnestRow, with_rows};
use ::store::{Connection, Fault};
use chrono::{DateTime, Utc};
use contract::{ConversationPhase, ExpertConversationStart};
use diesel::QueryableByName;
use diesel::sql_types::{Integer, Text};
use diesel_async::RunQueryDsl;
use runtime::{Retry, Verdict};
use uuid::Uuid;

use super::batch::{Item, Verdicts, apply, json, overtaken};
use crate::Message;

/// A conversation: its user and its session.
pub(crate) type Key = (i32, String);

::store::unnest_row! {
    struct StartRow<'a> {
        id: Uuid,
        user_id: i32,
        session_id: &'a str,
        title: &'a str,
        agents: String,
        stored_at: DateTime<Utc>,
        request_id: Uuid,
    }
}

static START: LazyLock<String> = LazyLock::new(|| {
    let (arrays, names) = (StartRow::arrays(1), StartRow::names());
    format!(
        "WITH input AS MATERIALIZED (
        SELECT (i.place - 1)::integer AS ordinal, i.* FROM unnest({arrays}) WITH ORDINALITY AS i ({names}, place)
        JOIN users u ON u.id = i.user_id
    ), written AS (
        INSERT INTO multi_agent_conversations (id, user_id, session_id, conversation_title, participating_agents, started_at,
            updated_at, request_id)
        SELECT id, user_id, session_id, title, agents::jsonb, stored_at, stored_at, request_id FROM input
        ORDER BY user_id, session_id
        ON CONFLICT (user_id, session_id) DO NOTHING
        RETURNING user_id, session_id
    )
    SELECT i.ordinal, w.session_id IS NOT NULL AS is_written
    FROM input i LEFT JOIN written w ON w.user_id = i.user_id AND w.session_id = i.session_id"
    )
});

impl<'a> StartRow<'a> {
    fn new(item: &Item<'a, ExpertConversationStart>) -> Self {
        Self {
            id: item.message.event_id,
            user_id: item.user(),
            session_id: item.request.session_id.as_str(),
            title: item.request.conversation_title.as_str(),
            agents: json(&item.request.participating_agents),
            stored_at: item.message.stored_at,
            request_id: item.message.request_id,
        }
    }
}

/// Starts conversations.
pub(crate) async fn start(
    connection: &mut Connection,
    items: &[Item<'_, ExpertConversationStart>],
    verdicts: &mut Verdicts,
) -> Result<(), Fault> {
    let key = |item: &Item<'_, ExpertConversationStart>| (item.user(), item.request.session_id.clone());
    apply(connection, &START, items, key, StartRow::new, verdicts).await.map(drop)
}

/// A request that moves a conversation to another phase, its end included.
pub(crate) struct Move<'a> {
    pub index: usize,
    pub message: &'a Message,
    pub session: &'a str,
    pub phase: ConversationPhase,
}

/// What a batch adds to the counters of a conversation.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Counters {
    pub delegated: i64,
    pub completed: i64,
    /// The request that changed them last.
    pub request_id: Uuid,
}

/// The counters of a batch, by conversation.
pub(crate) type AllCounters = BTreeMap<Key, Counters>;

#[derive(QueryableByName)]
struct Current {
    #[diesel(sql_type = Integer)]
    user_id: i32,
    #[diesel(sql_type = Text)]
    session_id: String,
    #[diesel(sql_type = Text)]
    current_phase: String,
}

::store::unnest_row! {
    struct KeyRow<'a> {
        user_id: i32,
        session_id: &'a str,
    }
}

static LOCK: LazyLock<String> = LazyLock::new(|| {
    let (arrays, names) = (KeyRow::arrays(1), KeyRow::names());
    format!(
        "SELECT c.user_id, c.session_id, c.current_phase::text AS current_phase
    FROM multi_agent_conversations c JOIN unnest({arrays}) AS i ({names}) ON c.user_id = i.user_id AND c.session_id = i.session_id
    ORDER BY c.user_id, c.session_id FOR NO KEY UPDATE OF c"
    )
});

::store::unnest_row! {
    struct ChangeRow<'a> {
        user_id: i32,
        session_id: &'a str,
        phase: Option<&'a str>,
        ended_at: Option<DateTime<Utc>>,
        delegated: i64,
        completed: i64,
        request_id: Uuid,
    }
}

static CHANGE: LazyLock<String> = LazyLock::new(|| {
    let (arrays, names) = (ChangeRow::arrays(1), ChangeRow::names());
    format!(
        "UPDATE multi_agent_conversations c SET
        current_phase = coalesce(i.phase::conversationphase, c.current_phase),
        completed_at = coalesce(CASE WHEN i.ended_at IS NOT NULL THEN greatest(i.ended_at, c.started_at) END, c.completed_at),
        total_tasks_delegated = c.total_tasks_delegated + i.delegated, tasks_completed = c.tasks_completed + i.completed,
        updated_at = greatest(now(), c.updated_at), request_id = i.request_id
    FROM unnest({arrays}) AS i ({names}) WHERE c.user_id = i.user_id AND c.session_id = i.session_id"
    )
});

/// What becomes of a conversation in this batch.
#[derive(Default)]
struct Change {
    phase: Option<ConversationPhase>,
    ended_at: Option<DateTime<Utc>>,
    request_id: Uuid,
}

/// Moves conversations to other phases, and adds to their counters. The moves are in the order of the stream.
pub(crate) async fn advance(
    connection: &mut Connection,
    moves: &[Move<'_>],
    counters: &AllCounters,
    verdicts: &mut Verdicts,
) -> Result<(), Fault> {
    let mut keys: Vec<Key> = counters.keys().cloned().collect();
    keys.extend(moves.iter().map(|one| (one.message.user_id().get(), one.session.to_owned())));
    keys.sort_unstable();
    keys.dedup();
    if keys.is_empty() {
        return Ok(());
    }
    let rows = keys.iter().map(|(user_id, session_id)| KeyRow { user_id: *user_id, session_id }).collect();
    let found: Vec<Current> = with_rows(&LOCK, rows).load(connection).await?;
    let mut current: BTreeMap<Key, ConversationPhase> = BTreeMap::new();
    for Current { user_id, session_id, current_phase } in found {
        if let Some(phase) = ConversationPhase::from_label(&current_phase) {
            current.insert((user_id, session_id), phase);
        }
    }
    let mut changes: BTreeMap<Key, Change> = BTreeMap::new();
    for one in moves {
        let key = (one.message.user_id().get(), one.session.to_owned());
        let Some(phase) = current.get_mut(&key) else { continue };
        let verdict = follow(one, *phase);
        if let Verdict::Applied(_) = verdict {
            *phase = one.phase;
            let change = changes.entry(key).or_default();
            change.phase = Some(one.phase);
            change.ended_at = one.phase.is_end().then_some(one.message.stored_at);
            change.request_id = one.message.request_id;
        }
        verdicts.set(one.index, verdict);
    }
    write(connection, changes, counters, &current).await
}

/// Whether a phase may follow the current one. One that may not yet is tried again: the phase before it may be on its way.
fn follow(one: &Move<'_>, current: ConversationPhase) -> Verdict {
    if one.phase == current {
        return Verdict::unchanged(one.message);
    }
    if current.successors().contains(&one.phase) {
        return Verdict::applied(one.message);
    }
    let field = if one.phase.is_end() { "outcome" } else { "phase" };
    let reason = format!("{field}: {} cannot follow {current} in session {}", one.phase, one.session);
    if current.is_end() {
        return Verdict::Rejected(reason.into());
    }
    Verdict::Retry(Retry::WithinBudget, reason.into())
}

async fn write(
    connection: &mut Connection,
    mut changes: BTreeMap<Key, Change>,
    counters: &AllCounters,
    current: &BTreeMap<Key, ConversationPhase>,
) -> Result<(), Fault> {
    for (key, added) in counters {
        if !current.contains_key(key) {
            return Err(overtaken("a conversation"));
        }
        changes
            .entry(key.clone())
            .or_insert_with(|| Change { request_id: added.request_id, ..Change::default() });
    }
    if changes.is_empty() {
        return Ok(());
    }
    let rows = changes.iter().map(|(key, change)| {
        let added = counters.get(key).copied().unwrap_or_default();
        ChangeRow {
            user_id: key.0,
            session_id: &key.1,
            phase: change.phase.map(ConversationPhase::as_str),
            ended_at: change.ended_at,
            delegated: added.delegated,
            completed: added.completed,
            request_id: change.request_id,
        }
    });
    with_rows(&CHANGE, rows.collect()).execute(connection).await?;
    Ok(())
}
