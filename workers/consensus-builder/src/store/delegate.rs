//! New tasks, and their delegations to agents.

use std::sync::LazyLock;

use ::store::unnest::{UnnestRow, with_rows};
use ::store::{Connection, Fault};
use chrono::{DateTime, Utc};
use contract::{TaskDelegate, Text};
use diesel_async::RunQueryDsl;
use uuid::Uuid;

use super::batch::{Item, Verdicts, apply, json};
use super::conversations::AllCounters;

::store::unnest_row! {
    struct TaskRow<'a> {
        id: Uuid,
        user_id: i32,
        session_id: &'a str,
        pm_agent_id: &'a str,
        question: &'a str,
        task_kind: &'a str,
        node_type: &'a str,
        node_key: String,
        title: String,
        semantic_tags: String,
        options: Option<String>,
        quorum: i32,
        asked: i32,
        deadline: Option<DateTime<Utc>>,
        event_id: Uuid,
        stored_at: DateTime<Utc>,
        request_id: Uuid,
    }
}

static DELEGATE: LazyLock<String> = LazyLock::new(|| {
    let (arrays, names) = (TaskRow::arrays(1), TaskRow::names());
    format!(
        "WITH input AS MATERIALIZED (
        SELECT (i.place - 1)::integer AS ordinal, i.* FROM unnest({arrays}) WITH ORDINALITY AS i ({names}, place)
        JOIN multi_agent_conversations c ON c.user_id = i.user_id AND c.session_id = i.session_id
    ), written AS (
        INSERT INTO consensus_tasks (id, user_id, session_id, pm_agent_id, question, task_kind, node_type, node_key, title,
            semantic_tags, options, quorum, asked, deadline, event_id, created_at, updated_at, request_id)
        SELECT id, user_id, session_id, pm_agent_id, question, task_kind, node_type, node_key, title, semantic_tags::jsonb,
            options::jsonb, quorum, asked, deadline, event_id, stored_at, stored_at, request_id
        FROM input ORDER BY user_id, id
        ON CONFLICT (user_id, id) DO NOTHING
        RETURNING user_id, id
    )
    SELECT i.ordinal, w.id IS NOT NULL AS is_written FROM input i LEFT JOIN written w ON w.user_id = i.user_id AND w.id = i.id"
    )
});

impl<'a> TaskRow<'a> {
    fn new(item: &Item<'a, TaskDelegate>) -> Self {
        let Item { message, request, .. } = *item;
        let options = request.options.as_slice();
        Self {
            id: request.task_id,
            user_id: item.user(),
            session_id: request.session_id.as_str(),
            pm_agent_id: request.pm_agent_id.as_str(),
            question: request.question.as_str(),
            task_kind: request.task_kind.as_str(),
            node_type: request.node_type.as_str(),
            node_key: request.node_key.as_ref().map_or_else(|| request.task_id.to_string(), Text::to_string),
            title: title(request),
            semantic_tags: json(&request.semantic_tags),
            options: (!options.is_empty()).then(|| json(options)),
            quorum: i32::try_from(request.quorum.get()).unwrap_or(i32::MAX),
            asked: i32::try_from(request.agents.as_slice().len()).unwrap_or(i32::MAX),
            deadline: request.deadline,
            event_id: message.event_id,
            stored_at: message.stored_at,
            request_id: message.request_id,
        }
    }
}

/// The longest title of a node, in characters.
const TITLE_CHARS: usize = 512;

/// The title of the task's node: as given, or the beginning of the question.
fn title(request: &TaskDelegate) -> String {
    let given = request.title.as_ref().map(Text::to_string);
    given.unwrap_or_else(|| request.question.as_str().chars().take(TITLE_CHARS).collect())
}

::store::unnest_row! {
    struct DelegationRow<'a> {
        id: Uuid,
        user_id: i32,
        session_id: &'a str,
        pm_agent_id: &'a str,
        agent_id: &'a str,
        description: String,
        task_id: Uuid,
        event_id: Uuid,
        stored_at: DateTime<Utc>,
        request_id: Uuid,
    }
}

static DELEGATIONS: LazyLock<String> = LazyLock::new(|| {
    let (arrays, names) = (DelegationRow::arrays(1), DelegationRow::names());
    format!(
        "INSERT INTO task_delegations (id, user_id, session_id, pm_agent_id, target_agent_id, task_description, task_id,
        blackboard_event_id, created_at, updated_at, request_id)
    SELECT id, user_id, session_id, pm_agent_id, agent_id, description, task_id, event_id, stored_at, stored_at, request_id
    FROM unnest({arrays}) AS i ({names}) ORDER BY user_id, id"
    )
});

/// The id of the delegation of a task to an agent: the same on every delivery.
pub(crate) fn delegation_id(task: Uuid, agent: &str) -> Uuid {
    Uuid::new_v5(&task, agent.as_bytes())
}

/// Writes new tasks, with a delegation for each agent that is asked.
pub(crate) async fn delegate(
    connection: &mut Connection,
    items: &[Item<'_, TaskDelegate>],
    counters: &mut AllCounters,
    verdicts: &mut Verdicts,
) -> Result<(), Fault> {
    let key = |item: &Item<'_, TaskDelegate>| (item.user(), item.request.task_id);
    let written = apply(connection, &DELEGATE, items, key, TaskRow::new, verdicts).await?;
    let mut rows = Vec::new();
    for item in &written {
        let Item { message, request, .. } = *item;
        let counter = counters.entry((item.user(), request.session_id.to_string())).or_default();
        counter.delegated += 1;
        counter.request_id = message.request_id;
        rows.extend(request.agents.as_slice().iter().map(|agent| DelegationRow {
            id: delegation_id(request.task_id, agent.as_str()),
            user_id: item.user(),
            session_id: request.session_id.as_str(),
            pm_agent_id: request.pm_agent_id.as_str(),
            agent_id: agent.as_str(),
            description: title(request),
            task_id: request.task_id,
            event_id: message.event_id,
            stored_at: message.stored_at,
            request_id: message.request_id,
        }));
    }
    if !rows.is_empty() {
        with_rows(&DELEGATIONS, rows).execute(connection).await?;
    }
    Ok(())
}
