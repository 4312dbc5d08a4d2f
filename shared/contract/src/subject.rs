use std::fmt;
use std::str::FromStr;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::event::EventType;
use crate::limit;

/// The root of all requests.
pub const REQUEST_ROOT: &str = "memory.req";

/// A subject that is none of ours.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SubjectError {
    /// The wrong number of tokens, or another root.
    #[error("expected memory.req.<service>.<noun>.<verb>.<user_id>")]
    Shape,
    /// A service name with other characters than `a-z 0-9 -`.
    #[error("the service must be 1 to {} characters out of a-z 0-9 -", limit::SERVICE_CHARS)]
    Service,
    /// No decimal number from 0 to 2147483647.
    #[error("the user id must be a number from 0 to 2147483647 without leading zeros")]
    User,
}

/// A user of the platform, or the platform itself.
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
    /// The platform itself: the owner of settings that are nobody's.
    pub const PLATFORM: Self = Self(0);

    /// A user by number, which is not negative.
    ///
    /// # Errors
    /// [`SubjectError::User`] for a negative number.
    pub fn new(id: i32) -> Result<Self, SubjectError> {
        if id < 0 { Err(SubjectError::User) } else { Ok(Self(id)) }
    }

    /// The number.
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
        // Two spellings of one user would be two subjects for permissions and for purging.
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

    /// Whether a subject is in the service's own inbox, the only place that answers are sent to.
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

/// `memory.req.<service>.<noun>.<verb>.<user_id>`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RequestSubject {
    /// Who publishes. A server permission binds it.
    pub service: Service,
    /// What it is about.
    pub noun: String,
    /// What is to be done with it.
    pub verb: String,
    /// Whose memory it concerns.
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

/// `memory.event.<noun>.<verb>.<user_id>`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EventSubject {
    /// What happened.
    pub event_type: EventType,
    /// Whose memory changed.
    pub user_id: UserId,
}

impl fmt::Display for EventSubject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "memory.event.{}.{}", self.event_type, self.user_id)
    }
}

/// `memory.dead.<worker>.<user_id>`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DeadLetterSubject<'a> {
    /// The worker that gave the message up.
    pub worker: &'a str,
    /// Whose message it was; unknown if its subject is malformed.
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
