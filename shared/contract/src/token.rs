use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::subject::UserId;
use crate::value::SessionId;

/// The subject on which a service requests its tokens, without the name of the service:
/// `memory.ask.token.issue.<service>`.
pub const TOKEN_ISSUE: &str = "memory.ask.token.issue";

/// Requests a token. The service is taken from the subject, which NATS permissions restrict to that service.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct TokenQuery {
    /// The user that the token acts for.
    pub user_id: UserId,
    /// The only session that the token is valid for. Absent: every session of the user.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub session_id: Option<SessionId>,
    /// The scopes, as `noun:verb` or `noun:*`. Default: every scope that the service may have.
    #[serde(default)]
    pub scopes: Vec<String>,
    /// The lifetime in seconds, 1 to 86400. Default: 900.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub life_s: Option<u64>,
}

/// An issued token.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct TokenAnswer {
    /// The token, for the header `Authorization: Bearer <token>`.
    pub token: String,
    /// Its id, for revocation.
    pub token_id: Uuid,
    /// Its scopes.
    pub scopes: Vec<String>,
    /// When it expires, in seconds since 1970.
    pub expires: u64,
}

/// Why a query was not answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum QueryErrorCode {
    /// The query is invalid; `field` names the field at fault.
    Malformed,
    /// The token or the service registry does not allow it.
    Denied,
    /// The user has no such record.
    NotFound,
    /// The answer exceeds the largest message; request a smaller page.
    TooLarge,
    /// The service exceeded its rate limit; retry later.
    TooOften,
    /// Internal error; contact the operator.
    Failed,
    /// A server is unreachable; retry.
    Unavailable,
    /// The query exceeded its deadline.
    Deadline,
}

impl QueryErrorCode {
    /// The code as text. It is part of the contract.
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

    /// The corresponding HTTP status code (RFC 9110, RFC 6585), for the NATS service API.
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

/// The reply to a query that was not answered.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct QueryError {
    /// The kind of error.
    pub code: QueryErrorCode,
    /// The error message, one sentence.
    pub message: String,
    /// The field at fault, if there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub field: Option<String>,
}
