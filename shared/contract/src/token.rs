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
pub struct TokenQuery {
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

/// Why a query failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum QueryErrorCode {
    /// The query is invalid; `field` names where.
    Malformed,
    /// The token, or the registry of services, does not allow it.
    Denied,
    /// The user has nothing of that name; `field` names it.
    NotFound,
    /// The answer is larger than a message may be.
    TooLarge,
    /// A rate or concurrency limit of the service is reached; retry later.
    TooOften,
    /// Internal error; contact the operator.
    Failed,
    /// A server is unreachable; retry later.
    Unavailable,
    /// The deadline has passed.
    Deadline,
}

impl QueryErrorCode {
    /// Its name, which is stable.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Malformed => "malformed",
            Self::Denied => "denied",
            Self::NotFound => "not-found",
            Self::TooLarge => "too-large",
            Self::TooOften => "too-often",
            Self::Failed => "failed",
            Self::Unavailable => "unavailable",
            Self::Deadline => "deadline",
        }
    }

    /// Its HTTP status (RFC 9110, RFC 6585), which goes into the header of the NATS service API.
    pub fn status(self) -> u16 {
        match self {
            Self::Malformed => 400,
            Self::Denied => 403,
            Self::NotFound => 404,
            Self::TooLarge => 413,
            Self::TooOften => 429,
            Self::Failed => 500,
            Self::Unavailable => 503,
            Self::Deadline => 504,
        }
    }
}

impl std::fmt::Display for QueryErrorCode {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.as_str())
    }
}

/// The reply to a query that failed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct QueryError {
    /// The class of the error.
    pub code: QueryErrorCode,
    /// What is wrong, for people.
    pub message: String,
    /// The field that is at fault, if it is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub field: Option<String>,
}
