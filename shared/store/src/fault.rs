//! Classification of database errors: what to do with a message whose statement failed. No other place classifies them.

use std::fmt;

use diesel::result::{DatabaseErrorKind, Error};

/// The class of an error.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum FaultKind {
    /// A retry may succeed: a deadlock, or an unknown error.
    Transient,
    /// The statement waited longer for a lock than `lock_timeout`, or ran longer than `statement_timeout`. Usually
    /// another transaction is the cause: it has locked a row that the statement needs.
    Blocked,
    /// The database is unreachable, out of disk space, or not migrated. The message is not the cause, and no retry is
    /// counted.
    Unavailable,
    /// The connection was lost during a statement. Usually the database is unreachable; a statement that crashes its
    /// backend looks the same.
    ConnectionLost,
    /// A prerequisite is missing: the target of a foreign key.
    MissingPrerequisite,
    /// The same statement with the same values always fails.
    Permanent,
    /// Row-level security rejects it.
    Denied,
    /// Its user is erased: nothing of the user is stored any more.
    Erased,
    /// Its user is being erased. The erasure may still be cancelled; otherwise this becomes [`Erased`](Self::Erased).
    Fenced,
    /// The processing of its user's data is restricted (GDPR, article 18) until an operator lifts that.
    Restricted {
        /// Whether requests wait for the lift. Otherwise they are refused.
        waits: bool,
    },
}

impl FaultKind {
    /// Whether the server is the cause and not the statement: waiting helps, and the connection must not be used again.
    #[must_use]
    pub fn is_outage(self) -> bool {
        match self {
            Self::Unavailable | Self::ConnectionLost => true,
            Self::Transient
            | Self::Blocked
            | Self::MissingPrerequisite
            | Self::Permanent
            | Self::Denied
            | Self::Erased
            | Self::Fenced
            | Self::Restricted { .. } => false,
        }
    }

    /// Whether the database refuses the user and not the statement: a transaction without this user may succeed.
    #[must_use]
    pub fn refuses_user(self) -> bool {
        match self {
            Self::Erased | Self::Fenced | Self::Restricted { .. } => true,
            Self::Transient
            | Self::Blocked
            | Self::Unavailable
            | Self::ConnectionLost
            | Self::MissingPrerequisite
            | Self::Permanent
            | Self::Denied => false,
        }
    }
}

/// A classified error of the database.
#[derive(Debug)]
pub struct Fault {
    /// Its class.
    pub kind: FaultKind,
    /// The message of the database, without values.
    pub reason: String,
}

/// What PostgreSQL reports when it ends a statement after `statement_timeout`.
const STATEMENT_TIMEOUT: &str = "canceling statement due to statement timeout";

impl Fault {
    /// Whether a statement ran longer than `statement_timeout`. It did not wait for a lock if `lock_timeout` is shorter.
    #[must_use]
    pub fn is_statement_timeout(&self) -> bool {
        self.kind == FaultKind::Blocked && self.reason.contains(STATEMENT_TIMEOUT)
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.reason)
    }
}

impl std::error::Error for Fault {}

impl From<Error> for Fault {
    fn from(error: Error) -> Self {
        // The details of a database error quote values, which must not reach a log or a dead letter.
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

/// Classifies an error.
#[allow(clippy::wildcard_enum_match_arm, reason = "both enumerations of diesel are non-exhaustive")]
fn classify(error: &Error) -> FaultKind {
    match error {
        Error::DatabaseError(kind, info) => match kind {
            DatabaseErrorKind::UnableToSendCommand => client_error(info.message()),
            DatabaseErrorKind::ClosedConnection => FaultKind::ConnectionLost,
            DatabaseErrorKind::SerializationFailure => FaultKind::Transient,
            DatabaseErrorKind::ReadOnlyTransaction => FaultKind::Unavailable,
            DatabaseErrorKind::ForeignKeyViolation => FaultKind::MissingPrerequisite,
            // Every key that a request can repeat has its ON CONFLICT. In a table with two keys, a concurrent row can
            // still conflict on the other key before it is visible; a retry sees it.
            DatabaseErrorKind::UniqueViolation => FaultKind::Transient,
            DatabaseErrorKind::NotNullViolation
            | DatabaseErrorKind::CheckViolation
            | DatabaseErrorKind::RestrictViolation
            | DatabaseErrorKind::ExclusionViolation => FaultKind::Permanent,
            _ => by_message(info.message()),
        },
        Error::BrokenTransactionManager => FaultKind::ConnectionLost,
        Error::SerializationError(_)
        | Error::QueryBuilderError(_)
        | Error::DeserializationError(_)
        | Error::InvalidCString(_) => FaultKind::Permanent,
        _ => FaultKind::Transient,
    }
}

/// Errors that the client reports, not the server. Nearly all are connection errors; but a statement that the client
/// cannot encode never succeeds, so waiting for the database would never end.
fn client_error(message: &str) -> FaultKind {
    const PERMANENT: [&str; 2] = ["error serializing parameter", "error encoding message to server"];
    if PERMANENT.iter().any(|phrase| message.starts_with(phrase)) {
        FaultKind::Permanent
    } else {
        FaultKind::ConnectionLost
    }
}

/// For these errors diesel-async passes on no SQLSTATE, only the server's message, which must be English:
/// [`language`](crate::language) checks that.
fn by_message(message: &str) -> FaultKind {
    const CONNECTION_LOST: [&str; 2] = ["terminating connection", "connection closed"];
    const BLOCKED: [&str; 2] = ["canceling statement due to lock timeout", STATEMENT_TIMEOUT];
    // Classes 57 (operator intervention), 53 (insufficient resources) and 58 (system error), and of class 42 the errors
    // for missing objects and privileges (42P01, 42703, 42704, 42883, 42501): no value of a message causes them, and an
    // operator can resolve them.
    const UNAVAILABLE: [&str; 18] = [
        "too many unpublished transactions of this role",
        "the database system is",
        "remaining connection slots are reserved",
        "sorry, too many clients already",
        "too many connections for",
        "is not currently accepting connections",
        "No space left on device",
        "could not extend file",
        "could not open file",
        "could not read block",
        "could not write",
        "could not fsync file",
        "out of memory",
        "out of shared memory",
        "does not exist",
        "permission denied",
        "must be owner",
        "cached plan must not change result type",
    ];
    // At the end, where no value is quoted.
    const ERASED: &str = "refused: the user is erased";
    const FENCED: &str = "refused: the user is being erased";
    const RESTRICTED: &str = "refused: the user is restricted";
    const RESTRICTED_AND_WAITS: &str = "refused: the user is restricted, and requests wait";
    const DENIED: [&str; 2] = ["row-level security policy", "the security context is"];
    // Classes 22 (data exception) and 54 (program limit exceeded), as far as values can cause them.
    const PERMANENT: [&str; 15] = [
        "is too long for tsvector",
        "invalid memory alloc request size",
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
    let contains_any = |phrases: &[&str]| phrases.iter().any(|phrase| message.contains(phrase));
    // Errors that values can cause come first: their messages quote the value, which may contain any other phrase.
    if contains_any(&PERMANENT) {
        FaultKind::Permanent
    } else if message.ends_with(ERASED) {
        FaultKind::Erased
    } else if message.ends_with(FENCED) {
        FaultKind::Fenced
    } else if message.ends_with(RESTRICTED) {
        FaultKind::Restricted { waits: false }
    } else if message.ends_with(RESTRICTED_AND_WAITS) {
        FaultKind::Restricted { waits: true }
    } else if contains_any(&DENIED) {
        FaultKind::Denied
    } else if contains_any(&BLOCKED) {
        FaultKind::Blocked
    } else if contains_any(&CONNECTION_LOST) {
        FaultKind::ConnectionLost
    } else if contains_any(&UNAVAILABLE) {
        FaultKind::Unavailable
    } else {
        FaultKind::Transient
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kind(kind: DatabaseErrorKind, message: &str) -> FaultKind {
        Fault::from(Error::DatabaseError(kind, Box::new(message.to_owned()))).kind
    }

    #[test]
    fn server_errors_are_unavailable() {
        for message in [
            "the database system is in recovery mode",
            "sorry, too many clients already",
            "too many connections for role \"w_context_writer\"",
            "could not extend file \"base/16384/16421\": No space left on device",
            "could not write to file \"pg_wal/xlogtemp.5\": No space left on device",
            "out of memory",
            "relation \"users\" does not exist",
            "column \"removed_at\" of relation \"users\" does not exist",
            "type \"chat_mode\" does not exist",
            "permission denied for table users",
            "cached plan must not change result type",
        ] {
            assert_eq!(kind(DatabaseErrorKind::Unknown, message), FaultKind::Unavailable, "{message}");
        }
        assert_eq!(kind(DatabaseErrorKind::ReadOnlyTransaction, ""), FaultKind::Unavailable);
    }

    #[test]
    fn a_lost_connection_is_distinguished() {
        for message in
            ["connection closed", "error communicating with the server", "timeout waiting for server"]
        {
            assert_eq!(
                kind(DatabaseErrorKind::UnableToSendCommand, message),
                FaultKind::ConnectionLost,
                "{message}"
            );
        }
        let message = "terminating connection due to administrator command";
        assert_eq!(kind(DatabaseErrorKind::Unknown, message), FaultKind::ConnectionLost);
        assert_eq!(Fault::from(Error::BrokenTransactionManager).kind, FaultKind::ConnectionLost);
    }

    #[test]
    fn errors_caused_by_values_are_permanent() {
        for message in [
            "value overflows numeric format",
            "invalid input syntax for type json",
            "invalid input value for enum chat_mode: \"does not exist\"",
            "timestamp out of range",
            "value too long for type character varying(128)",
            "index row size 2896 exceeds btree version 4 maximum 2704 for index \"x\"",
            "unsupported Unicode escape sequence",
        ] {
            assert_eq!(kind(DatabaseErrorKind::Unknown, message), FaultKind::Permanent, "{message}");
        }
        for message in ["error serializing parameter 3", "error encoding message to server"] {
            assert_eq!(
                kind(DatabaseErrorKind::UnableToSendCommand, message),
                FaultKind::Permanent,
                "{message}"
            );
        }
        assert_eq!(kind(DatabaseErrorKind::CheckViolation, ""), FaultKind::Permanent);
    }

    #[test]
    fn other_errors_are_transient() {
        for message in ["deadlock detected", "something nobody has seen"] {
            assert_eq!(kind(DatabaseErrorKind::Unknown, message), FaultKind::Transient, "{message}");
        }
        assert_eq!(kind(DatabaseErrorKind::SerializationFailure, ""), FaultKind::Transient);
        assert_eq!(kind(DatabaseErrorKind::UniqueViolation, ""), FaultKind::Transient);
    }

    #[test]
    fn timeouts_of_locks_and_statements_are_distinguished() {
        for message in
            ["canceling statement due to lock timeout", "canceling statement due to statement timeout"]
        {
            assert_eq!(kind(DatabaseErrorKind::Unknown, message), FaultKind::Blocked, "{message}");
        }
        let is_of_statement = |message: &str| {
            Fault { kind: by_message(message), reason: message.to_owned() }.is_statement_timeout()
        };
        assert!(is_of_statement("canceling statement due to statement timeout"));
        assert!(!is_of_statement("canceling statement due to lock timeout"));
        let cancelled = "canceling statement due to user request";
        assert_eq!(kind(DatabaseErrorKind::Unknown, cancelled), FaultKind::Transient);
    }

    #[test]
    fn what_is_refused_of_an_erased_user_is_no_denial() {
        for what in ["the security context", "the row", "the token"] {
            for (says, expected) in [("erased", FaultKind::Erased), ("being erased", FaultKind::Fenced)] {
                let message = format!("{what} is refused: the user is {says}");
                assert_eq!(kind(DatabaseErrorKind::Unknown, &message), expected, "{message}");
            }
        }
        for message in [
            "invalid input syntax for type json: \"refused: the user is erased\"",
            "the security context is refused: the user is erased, says \"x\"",
        ] {
            let found = kind(DatabaseErrorKind::Unknown, message);
            assert!(!matches!(found, FaultKind::Erased | FaultKind::Fenced), "{message}");
        }
    }

    #[test]
    fn what_is_refused_of_a_restricted_user_waits_if_the_restriction_says_so() {
        for what in ["the security context", "the token"] {
            for (says, waits) in [("restricted", false), ("restricted, and requests wait", true)] {
                let message = format!("{what} is refused: the user is {says}");
                let found = kind(DatabaseErrorKind::Unknown, &message);
                assert_eq!(found, FaultKind::Restricted { waits }, "{message}");
                assert!(found.refuses_user() && !found.is_outage());
            }
        }
        let quoted = "the security context is refused: the user is restricted, says \"x\"";
        assert_eq!(kind(DatabaseErrorKind::Unknown, quoted), FaultKind::Denied);
    }

    #[test]
    fn denials_and_missing_prerequisites_are_distinguished() {
        for message in [
            "new row violates row-level security policy for table \"users\"",
            "the security context is refused: a grant is expired",
            "the security context is not genuine",
        ] {
            assert_eq!(kind(DatabaseErrorKind::Unknown, message), FaultKind::Denied, "{message}");
        }
        assert_eq!(kind(DatabaseErrorKind::ForeignKeyViolation, ""), FaultKind::MissingPrerequisite);
    }
}
