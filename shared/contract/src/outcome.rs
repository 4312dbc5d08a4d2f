use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// How a request ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum OutcomeStatus {
    /// It took effect; the effect is committed.
    Applied,
    /// It was fine and changed nothing: a newer version was there.
    Unchanged,
    /// It is a dead letter.
    Dead,
}

/// What a publisher is told on the subject it named in [`header::REPLY_TO`](crate::header::REPLY_TO).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Outcome {
    /// The request this is about, if it had an id.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub request_id: Option<Uuid>,
    /// How it ended.
    pub status: OutcomeStatus,
    /// The event of its effect, if it had one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub event_id: Option<Uuid>,
    /// Why it was left unchanged or is dead.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}
