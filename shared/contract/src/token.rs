use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::subject::UserId;
use crate::value::SessionId;

/// The subject on which a service asks for its tokens, without its name: `memory.ask.token.issue.<service>`.
pub const TOKEN_ISSUE: &str = "memory.ask.token.issue";

/// Asks for a token. The service is in the subject, which the broker's permissions bind.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct TokenAsk {
    /// For which user it shall act.
    pub user_id: UserId,
    /// For one session only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub session_id: Option<SessionId>,
    /// What it shall allow, as `noun:verb` or `noun:*`; all that the service may do by default.
    #[serde(default)]
    pub scopes: Vec<String>,
    /// How long it shall be good, in seconds, 1 to 86400; 900 by default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub life_s: Option<u64>,
}

/// A token.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct TokenAnswer {
    /// For the header `Authorization`, after `Bearer `.
    pub token: String,
    /// By which it is revoked.
    pub token_id: Uuid,
    /// What it allows.
    pub scopes: Vec<String>,
    /// When it ends, in seconds since 1970.
    pub expires: u64,
}

/// Why a question has no answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct AskError {
    /// A word that stays the same: `malformed`, `denied`, `not-found`, `too-often`, `deadline`, `unavailable`, `failed`.
    pub code: String,
    /// A sentence.
    pub message: String,
    /// The field that is wrong, if one is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub field: Option<String>,
}
