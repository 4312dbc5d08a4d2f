use chrono::{DateTime, Utc};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::facts::{Prerequisite, RequestFacts};
use crate::json::Json;
use crate::limit;
use crate::number::{Bounded, Score};
use crate::performative::Performative;
use crate::redaction::SecretFields;
use crate::value::{List, SessionId, Text};

/// Logs how a request of the user was routed, after it finished. Decisions are immutable.
///
/// Statistics are kept by hour, mode, route, tool and model. The route is `routing_decision` if that is a string, or
/// else its string `route`; a tool is a string, or else its string `name` or `tool`. A value of another shape is stored
/// unchanged and counted as `unknown`.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct DecisionLog {
    /// The decision id, unique for the user.
    pub decision_id: Uuid,
    /// A session that is or was open.
    pub session_id: SessionId,
    /// The request of the user.
    pub user_request: Text<0, { limit::TEXT_CHARS }>,
    /// The chosen route and the reason.
    pub routing_decision: Json,
    /// The tools that were invoked, in order.
    #[serde(default)]
    pub tools_invoked: List<Json, 64>,
    /// The complexity of the request, 0 to 1.
    #[serde(default)]
    pub complexity_score: Score,
    /// The confidence of the router, 0 to 1.
    #[serde(default)]
    pub confidence_score: Score,
    /// The duration in milliseconds, at most one day.
    #[serde(default)]
    pub processing_time_ms: Option<Bounded<0, 86_400_000>>,
    /// The number of tokens that the model used.
    #[serde(default)]
    pub tokens_used: Option<Bounded<0, 1_000_000_000>>,
    /// The model that answered.
    #[serde(default)]
    pub model_used: Option<Text<1, 100>>,
    /// Whether the request succeeded. Default: true.
    #[serde(default = "yes")]
    pub success: bool,
    /// The error.
    #[serde(default)]
    pub error_details: Option<Json>,
    /// When it was decided. Absent, or later than the time at which JetStream stored the request: that time.
    #[serde(default, deserialize_with = "crate::time::read")]
    pub decided_at: Option<DateTime<Utc>>,
    /// Whether `user_request` and `error_details` are stored encrypted only and omitted from events.
    #[serde(default)]
    pub sensitive: bool,
}

fn yes() -> bool {
    true
}

/// The phase of a tool call.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum ToolPhase {
    /// The tool was called.
    Requested,
    /// It returned a result.
    Succeeded,
    /// It failed or timed out.
    Failed,
}

/// Reports a tool call while a request is processed. It is emitted as an event and stored nowhere else; agents that
/// work on the same session subscribe to it. The result of a decision is logged with [`DecisionLog`].
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ToolReport {
    /// A session that is or was open.
    pub session_id: SessionId,
    /// The tool.
    pub tool: Text<1, { limit::IDENTIFIER_CHARS }>,
    /// The id of the call, the same in all of its reports.
    pub call_id: Uuid,
    /// The phase of the call.
    pub phase: ToolPhase,
    /// The decision that it belongs to, if it has an id already.
    #[serde(default)]
    pub decision_id: Option<Uuid>,
    /// The duration in milliseconds, at most one day.
    #[serde(default)]
    pub processing_time_ms: Option<Bounded<0, 86_400_000>>,
    /// The arguments, the result or the error. Every subscriber to the events of the session can read it.
    #[serde(default)]
    pub detail: Option<Json>,
}

impl RequestFacts for DecisionLog {
    fn session_id(&self) -> Option<&SessionId> {
        Some(&self.session_id)
    }

    fn prerequisite(&self) -> Prerequisite<'_> {
        Prerequisite::Session(&self.session_id)
    }

    fn unchanged_reason(&self) -> &'static str {
        "a decision with this decision_id already exists"
    }

    fn redact(&mut self, secrets: &mut SecretFields) {
        if self.sensitive {
            secrets.take("user_request", &mut self.user_request);
            secrets.take_some("error_details", &mut self.error_details);
        }
    }
}

impl RequestFacts for ToolReport {
    fn session_id(&self) -> Option<&SessionId> {
        Some(&self.session_id)
    }

    fn target_agent(&self) -> Option<&str> {
        Some(self.tool.as_str())
    }

    fn performative(&self) -> Performative {
        match self.phase {
            ToolPhase::Requested => Performative::Request,
            ToolPhase::Succeeded => Performative::Inform,
            ToolPhase::Failed => Performative::Failure,
        }
    }

    fn prerequisite(&self) -> Prerequisite<'_> {
        Prerequisite::Session(&self.session_id)
    }
}
