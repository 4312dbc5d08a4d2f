use std::fmt;
use std::str::FromStr;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::limit;

/// The root of request subjects.
pub const REQUEST_ROOT: &str = "memory.req";

/// A text that is not the expected subject.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SubjectError {
    /// It has the wrong number of tokens, or another root.
    #[error("expected memory.req.<service>.<noun>.<verb>.<user_id>")]
    Shape,
    /// The service is not 1 to 64 of `a-z 0-9 -`.
    #[error("the service must be 1 to {} characters out of a-z 0-9 -", limit::SERVICE_CHARS)]
    Service,
    /// The job is not 1 to 64 of `a-z 0-9 -`.
    #[error("the job must be 1 to {} characters out of a-z 0-9 -", limit::SERVICE_CHARS)]
    Job,
    /// The user id is not a decimal number from 0 to 2147483647.
    #[error("the user id must be a number from 0 to 2147483647 without leading zeros")]
    User,
}

/// The id of a user of the platform; 0 is the platform itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(try_from = "i32", into = "i32")]
pub struct UserId(#[schemars(range(min = 0))] i32);

impl TryFrom<i32> for UserId {
    type Error = SubjectError;

    fn try_from(id: i32) -> Result<Self, SubjectError> {
        Self::new(id)
    }
}

impl From<UserId> for i32 {
    fn from(id: UserId) -> Self {
        id.0
    }
}

impl UserId {
    /// The platform itself, which owns the settings that belong to no user.
    pub const PLATFORM: Self = Self(0);

    /// The user with this id, which must not be negative.
    ///
    /// # Errors
    /// [`SubjectError::User`] for a negative number.
    pub fn new(id: i32) -> Result<Self, SubjectError> {
        if id < 0 { Err(SubjectError::User) } else { Ok(Self(id)) }
    }

    /// The id.
    pub fn get(self) -> i32 {
        self.0
    }
}

impl fmt::Display for UserId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl FromStr for UserId {
    type Err = SubjectError;

    fn from_str(token: &str) -> Result<Self, SubjectError> {
        // Permissions and purges match subjects literally: every user must have exactly one spelling.
        let canonical =
            token.bytes().all(|byte| byte.is_ascii_digit()) && (token == "0" || !token.starts_with('0'));
        if !canonical {
            return Err(SubjectError::User);
        }
        token.parse().map(Self).map_err(|_| SubjectError::User)
    }
}

/// The name of a publishing service: 1 to 64 of `a-z 0-9 -`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Service(String);

impl Service {
    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether a subject is below the service's own inbox `_INBOX.<service>.`, the only place that replies are sent to.
    pub fn owns_inbox(&self, subject: &str) -> bool {
        if subject.len() > limit::REPLY_SUBJECT_BYTES {
            return false;
        }
        let own = subject.strip_prefix("_INBOX.").and_then(|rest| rest.strip_prefix(self.as_str()));
        let printable = subject.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'*' && byte != b'>');
        printable && own.is_some_and(|rest| rest.len() > 1 && rest.starts_with('.') && !rest.ends_with('.'))
    }
}

impl FromStr for Service {
    type Err = SubjectError;

    fn from_str(name: &str) -> Result<Self, SubjectError> {
        let allowed = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
        if name.is_empty() || name.len() > limit::SERVICE_CHARS || !name.bytes().all(allowed) {
            return Err(SubjectError::Service);
        }
        Ok(Self(name.to_owned()))
    }
}

impl fmt::Display for Service {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The subject of a request, `memory.req.<service>.<noun>.<verb>.<user_id>`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RequestSubject {
    /// The publishing service. NATS permissions restrict a service to its own name.
    pub service: Service,
    /// The kind of record.
    pub noun: String,
    /// The operation.
    pub verb: String,
    /// The user whose memory it changes.
    pub user_id: UserId,
}

impl FromStr for RequestSubject {
    type Err = SubjectError;

    fn from_str(subject: &str) -> Result<Self, SubjectError> {
        let rest = subject.strip_prefix(REQUEST_ROOT).ok_or(SubjectError::Shape)?;
        let mut tokens = rest.split('.');
        let (Some(""), Some(service), Some(noun), Some(verb), Some(user), None) =
            (tokens.next(), tokens.next(), tokens.next(), tokens.next(), tokens.next(), tokens.next())
        else {
            return Err(SubjectError::Shape);
        };
        if noun.is_empty() || verb.is_empty() {
            return Err(SubjectError::Shape);
        }
        Ok(Self {
            service: service.parse()?,
            noun: noun.to_owned(),
            verb: verb.to_owned(),
            user_id: user.parse()?,
        })
    }
}

impl fmt::Display for RequestSubject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{REQUEST_ROOT}.{}.{}.{}.{}", self.service, self.noun, self.verb, self.user_id)
    }
}

/// The subject of a dead letter, `memory.dead.<worker>.<user_id>`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DeadLetterSubject<'a> {
    /// The worker that dead-lettered the message.
    pub worker: &'a str,
    /// The user of the message; none if its subject is malformed.
    pub user_id: Option<UserId>,
}

impl fmt::Display for DeadLetterSubject<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.user_id {
            Some(user_id) => write!(f, "memory.dead.{}.{user_id}", self.worker),
            None => write!(f, "memory.dead.{}.unknown", self.worker),
        }
    }
}
