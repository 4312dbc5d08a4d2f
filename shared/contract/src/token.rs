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

/// What kind of reason there is for no answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum QueryErrorCode {
    /// The query is wrong, in the field that is named.
    Malformed,
    /// The token, or the registry, does not allow it.
    Denied,
    /// The user has none of that name.
    NotFound,
    /// The answer would be larger than a message.
    TooLarge,
    /// The service asks too often; ask again later.
    TooOften,
    /// Something is wrong that only an operator can mend.
    Failed,
    /// A server is away; ask again.
    Unavailable,
    /// It took too long.
    Deadline,
}

impl QueryErrorCode {
    /// The word, which stays the same.
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

    /// The number of it in HTTP (RFC 9110, RFC 6585), which the NATS service API shows.
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

/// Why a query has no answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct QueryError {
    /// What kind of reason.
    pub code: QueryErrorCode,
    /// A sentence.
    pub message: String,
    /// The field that is wrong, if one is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub field: Option<String>,
}
