use chrono::{DateTime, Utc};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::event::Performative;
use crate::facts::{Prerequisite, RequestFacts};
use crate::limit;
use crate::number::{Bounded, Score};
use crate::redaction::SecretFields;
use crate::value::{Json, List, SessionId, Text};

/// Logs how a request of the user was routed, once it is known how it ended. A decision never changes.
///
/// Learning is done by the hour, mode, route, tool and model. The route is `routing_decision` itself if it is a text, or
/// its text under `route`; a tool is a text, or an object's text under `name` or `tool`. Whatever has another shape is
/// stored as it is and counted as `unknown`.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct DecisionLog {
    /// Unique among the decisions of its user.
    pub decision_id: Uuid,
    /// A session that is open or has been.
    pub session_id: SessionId,
    /// What the user asked for.
    pub user_request: Text<0, { limit::TEXT_CHARS }>,
    /// Where it was routed and why.
    pub routing_decision: Json,
    /// The tools that were invoked, in order.
    #[serde(default)]
    pub tools_invoked: List<Json, 64>,
    /// How hard the request was, 0 to 1.
    #[serde(default)]
    pub complexity_score: Score,
    /// How sure the router was, 0 to 1.
    #[serde(default)]
    pub confidence_score: Score,
    /// How long it took, in milliseconds, at most a day.
    #[serde(default)]
    pub processing_time_ms: Option<Bounded<0, 86_400_000>>,
    /// How many tokens the model used.
    #[serde(default)]
    pub tokens_used: Option<Bounded<0, 1_000_000_000>>,
    /// Which model answered.
    #[serde(default)]
    pub model_used: Option<Text<1, 100>>,
    /// Whether it ended well.
    #[serde(default = "yes")]
    pub success: bool,
    /// What went wrong.
    #[serde(default)]
    pub error_details: Option<Json>,
    /// When it was decided. Absent, or later than that: when the message was published.
    #[serde(default, deserialize_with = "crate::value::time")]
    pub decided_at: Option<DateTime<Utc>>,
    /// Whether `user_request` and `error_details` are stored encrypted only, and stand in no event.
    #[serde(default)]
    pub sensitive: bool,
}

fn yes() -> bool {
    true
}

/// How far the call of a tool has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum ToolPhase {
    /// The tool was asked.
    Requested,
    /// It answered.
    Succeeded,
    /// It did not, or not in time.
    Failed,
}

/// Tells of the call of a tool while a request is worked on. It goes to the event stream alone, where agents that work on
/// the same session hear of it; what a decision came to is logged with [`DecisionLog`].
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ToolReport {
    /// A session that is open or has been.
    pub session_id: SessionId,
    /// The tool.
    pub tool: Text<1, { limit::IDENTIFIER_CHARS }>,
    /// The call, the same in each of its reports.
    pub call_id: Uuid,
    /// How far it has come.
    pub phase: ToolPhase,
    /// The decision it belongs to, if that has an id yet.
    #[serde(default)]
    pub decision_id: Option<Uuid>,
    /// How long it took, in milliseconds, at most a day.
    #[serde(default)]
    pub processing_time_ms: Option<Bounded<0, 86_400_000>>,
    /// Its arguments, its result, or what went wrong. Everybody who may hear of the session's events reads it.
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
        "a decision with this decision_id is there"
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
