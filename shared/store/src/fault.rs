//! What a database error means for the message that met it. The only place that decides.

use std::fmt;

use diesel::result::{DatabaseErrorKind, Error};

/// What to do about an error.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum FaultKind {
    /// It may work next time: a deadlock, a timeout, or an error this list does not know.
    Transient,
    /// The database is away. Nobody's fault, and no try is spent.
    Unavailable,
    /// Something that must be there first is not: a foreign key has no target.
    Unmet,
    /// The same statement with the same values fails for ever.
    Permanent,
    /// A policy or a missing privilege stands against it.
    Denied,
}

/// An error of the database with its meaning.
#[derive(Debug)]
pub struct Fault {
    /// What to do about it.
    pub kind: FaultKind,
    /// What the database said, without values.
    pub reason: String,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.reason)
    }
}

impl std::error::Error for Fault {}

impl From<Error> for Fault {
    fn from(error: Error) -> Self {
        // The details of a database error quote values, which belong into no log and no dead letter.
        let reason = if let Error::DatabaseError(_, info) = &error {
            match info.constraint_name() {
                Some(constraint) => format!("{} (constraint {constraint})", info.message()),
                None => info.message().to_owned(),
            }
        } else {
            error.to_string()
        };
        Self { kind: classify(&error), reason }
    }
}

/// The kind of an error.
#[allow(clippy::wildcard_enum_match_arm, reason = "both enumerations of diesel are non-exhaustive")]
fn classify(error: &Error) -> FaultKind {
    match error {
        Error::DatabaseError(kind, info) => match kind {
            DatabaseErrorKind::UnableToSendCommand | DatabaseErrorKind::ClosedConnection => {
                FaultKind::Unavailable
            }
            DatabaseErrorKind::SerializationFailure => FaultKind::Transient,
            DatabaseErrorKind::ReadOnlyTransaction => FaultKind::Unavailable,
            DatabaseErrorKind::ForeignKeyViolation => FaultKind::Unmet,
            DatabaseErrorKind::UniqueViolation
            | DatabaseErrorKind::NotNullViolation
            | DatabaseErrorKind::CheckViolation
            | DatabaseErrorKind::RestrictViolation
            | DatabaseErrorKind::ExclusionViolation => FaultKind::Permanent,
            _ => by_message(info.message()),
        },
        Error::BrokenTransactionManager => FaultKind::Unavailable,
        Error::SerializationError(_)
        | Error::QueryBuilderError(_)
        | Error::DeserializationError(_)
        | Error::InvalidCString(_) => FaultKind::Permanent,
        _ => FaultKind::Transient,
    }
}

/// diesel-async hands on no SQLSTATE for these, only the server's message. The servers' messages are English
/// under `lc_messages = C`, which the production files set. In another language everything here is transient:
/// it is then tried more often than it need be, and nothing is lost.
fn by_message(message: &str) -> FaultKind {
    const UNAVAILABLE: [&str; 5] = [
        "terminating connection",
        "the database system is",
        "remaining connection slots are reserved",
        "sorry, too many clients already",
        "connection closed",
    ];
    const DENIED: [&str; 3] = ["permission denied", "row-level security policy", "must be owner"];
    // Class 22 (data exception) and 54 (program limit exceeded) as far as values can cause them.
    const PERMANENT: [&str; 13] = [
        "invalid input syntax",
        "invalid input value",
        "unsupported Unicode escape",
        "invalid byte sequence",
        "value too long for type",
        "out of range",
        "overflow",
        "invalid JSON",
        "stack depth limit exceeded",
        "string too long to represent",
        "total size of jsonb",
        "index row size",
        "index row requires",
    ];
    let says = |phrases: &[&str]| phrases.iter().any(|phrase| message.contains(phrase));
    if says(&UNAVAILABLE) {
        FaultKind::Unavailable
    } else if says(&DENIED) {
        FaultKind::Denied
    } else if says(&PERMANENT) {
        FaultKind::Permanent
    } else {
        FaultKind::Transient
    }
}
