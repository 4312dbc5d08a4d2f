use std::fmt;

use chrono::{DateTime, Utc};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::{Cursor, Limit, QueryKind, QueryType, default_limit};
use crate::json::Json;
use crate::label::labels;
use crate::value::{SessionId, Text};

labels! {
    /// The state of a task.
    TaskState {
        /// It waits for responses.
        Open = "open",
        /// It has its quorum, all responses, or its deadline has passed.
        Closed = "closed",
        /// It was cancelled.
        Cancelled = "cancelled",
    }
}

/// Lists the tasks that were delegated to agents, the latest first.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct TaskList {
    /// Only tasks of this conversation of experts.
    #[serde(default)]
    pub session_id: Option<SessionId>,
    /// Only tasks in this state.
    #[serde(default)]
    pub state: Option<TaskState>,
    /// Only tasks of this kind.
    #[serde(default)]
    pub task_kind: Option<Text<1, 64>>,
    /// Only tasks that this agent was asked.
    #[serde(default)]
    pub agent_id: Option<SessionId>,
    /// The start of the page: `next_cursor` of the previous page.
    #[serde(default)]
    pub cursor: Option<Cursor>,
    /// The maximum number of tasks.
    #[serde(default = "default_limit")]
    pub limit: Limit,
}

impl QueryType for TaskList {
    type Answer = TaskPage;

    const KIND: &'static QueryKind = &QueryKind::new::<Self>(
        "task",
        "list",
        "The tasks that were delegated to agents, the latest first, each with the agents asked.",
    );

    fn session_id(&self) -> Option<&str> {
        self.session_id.as_ref().map(SessionId::as_str)
    }
}

/// A task.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct TaskInfo {
    /// Its id.
    pub task_id: Uuid,
    /// The conversation of experts.
    pub session_id: String,
    /// The agent that delegated it.
    pub pm_agent_id: String,
    /// What was asked.
    pub question: String,
    /// Its kind, for which records of agents are kept.
    pub task_kind: String,
    /// The type of the node that its answers become.
    pub node_type: String,
    /// The key of that node.
    pub node_key: String,
    /// The title of that node.
    pub title: String,
    /// The semantic tags of that node.
    pub tags: Json,
    /// The fixed answers to choose from. Absent: the answer is free.
    pub options: Option<Json>,
    /// How many answers close it.
    pub quorum: i32,
    /// How many agents were asked.
    pub asked: i32,
    /// How many of them have responded before it was closed.
    pub responded: i32,
    /// How many of these have not abstained.
    pub answered: i32,
    /// When it is closed, whoever has responded.
    pub deadline: Option<DateTime<Utc>>,
    /// Its state.
    pub state: TaskState,
    /// Why it was closed: `quorum`, `all-answered` or `deadline`.
    pub close_reason: Option<String>,
    /// When it was closed.
    pub closed_at: Option<DateTime<Utc>>,
    /// The node that its answers became.
    pub node_id: Option<Uuid>,
    /// The most probable answer after all that is known of the agents by now, which may differ from what was known when the
    /// task was closed: its place in `options`, from 0; of a task without options, that among the clusters of the dossier.
    pub estimated_answer: Option<i32>,
    /// The probability of that answer, 0 to 1.
    pub estimated_probability: Option<f64>,
    /// When it was delegated.
    pub created_at: DateTime<Utc>,
    /// The agents that were asked: objects with `agent_id` and `status`, sorted by agent.
    pub agents: Json,
}

/// A page of tasks.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct TaskPage {
    /// The tasks.
    pub tasks: Vec<TaskInfo>,
    /// The cursor of the next page; absent on the last one.
    pub next_cursor: Option<String>,
}
