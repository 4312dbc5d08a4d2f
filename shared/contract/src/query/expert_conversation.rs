use chrono::{DateTime, Utc};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::{Cursor, Limit, QueryKind, QueryType, default_limit};
use crate::expert_conversation::ConversationPhase;
use crate::json::Json;
use crate::value::SessionId;

/// Reads a conversation of experts and a page of the agents' responses, the oldest first.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ExpertConversationRead {
    /// The session of the conversation.
    pub session_id: SessionId,
    /// Only responses to this task.
    #[serde(default)]
    pub task_id: Option<Uuid>,
    /// The start of the page: `next_cursor` of the previous page.
    #[serde(default)]
    pub cursor: Option<Cursor>,
    /// The maximum number of responses.
    #[serde(default = "default_limit")]
    pub limit: Limit,
}

impl QueryType for ExpertConversationRead {
    type Answer = ExpertConversationPage;

    const KIND: &'static QueryKind = &QueryKind::new::<Self>(
        "expert-conversation",
        "read",
        "A conversation of experts with the agents' responses, the oldest first.",
    );

    fn session_id(&self) -> Option<&str> {
        Some(self.session_id.as_str())
    }
}

/// A response of an agent to a task.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct ExpertResponseInfo {
    /// Its id.
    pub response_id: Uuid,
    /// The task. Absent: it was recorded before tasks were.
    pub task_id: Option<Uuid>,
    /// The agent.
    pub agent_id: String,
    /// What it says.
    pub response_text: String,
    /// The structured claim.
    pub claim: Option<Json>,
    /// What it rests on.
    pub evidence: Json,
    /// How sure the agent says it is, 0 to 1.
    pub confidence_score: Option<f64>,
    /// How long the agent took.
    pub processing_time_seconds: Option<f64>,
    /// Whether it came before the task was closed, so that it counts.
    pub counted: bool,
    /// When it was stored.
    pub created_at: DateTime<Utc>,
}

/// A conversation of experts and a page of responses. Its tasks are listed by [`TaskList`](crate::TaskList).
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct ExpertConversationPage {
    /// Its title.
    pub title: String,
    /// Its phase.
    pub phase: ConversationPhase,
    /// The agents that take part.
    pub participating_agents: Json,
    /// How many tasks were delegated.
    pub total_tasks_delegated: i64,
    /// How many of them are completed.
    pub tasks_completed: i64,
    /// When it began.
    pub started_at: DateTime<Utc>,
    /// When it ended.
    pub completed_at: Option<DateTime<Utc>>,
    /// The responses.
    pub responses: Vec<ExpertResponseInfo>,
    /// The cursor of the next page; absent on the last one.
    pub next_cursor: Option<String>,
}
