use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// The result of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum OutcomeStatus {
    /// It was applied and committed.
    Applied,
    /// It was valid and changed nothing, for example because a newer version is stored.
    Unchanged,
    /// It was dead-lettered.
    Dead,
}

/// The outcome of a request, published on the subject that the publisher named in
/// [`header::REPLY_TO`](crate::header::REPLY_TO).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Outcome {
    /// The id of the request, if it had one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub request_id: Option<Uuid>,
    /// The result.
    pub status: OutcomeStatus,
    /// The id of the event that it emitted, if any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub event_id: Option<Uuid>,
    /// The reason why it changed nothing or was dead-lettered.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}
