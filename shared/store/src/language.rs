//! The language of the server's error messages, which must be English.
//!
//! diesel-async passes on few SQLSTATEs, so most errors are [classified](crate::fault) by the server's message.

use diesel::result::{DatabaseErrorKind, Error};
use diesel_async::{AsyncPgConnection, SimpleAsyncConnection};

use crate::fault::{Fault, FaultKind};

/// Causes an error inside of the server and compares its message. The name of a locale does not tell which language
/// comes out of it. An error of the class `serialization_failure` has its own kind in diesel, so that it is recognized
/// in any language.
const COMPARE: &str = "
    DO $$ BEGIN
        PERFORM 1 / 0;
    EXCEPTION WHEN division_by_zero THEN
        IF SQLERRM <> 'division by zero' THEN
            RAISE serialization_failure USING MESSAGE = SQLERRM;
        END IF;
    END $$";

/// Checks that the server reports errors to this connection in English.
///
/// # Errors
/// A [`Fault`] of the kind `Unavailable` if it does not, with what to do; or a fault of the database.
pub async fn check_english(connection: &mut AsyncPgConnection) -> Result<(), Fault> {
    match connection.batch_execute(COMPARE).await {
        Ok(()) => Ok(()),
        Err(Error::DatabaseError(DatabaseErrorKind::SerializationFailure, info)) => Err(Fault {
            kind: FaultKind::Unavailable,
            reason: format!(
                "PostgreSQL reports errors in another language than English ({:?}), by which they cannot be classified; \
                 set lc_messages = 'C' in its configuration, or run ALTER DATABASE ... SET lc_messages = 'C'",
                info.message()
            ),
        }),
        Err(error) => Err(error.into()),
    }
}

/// The fault of a statement on this connection, whose transaction has been rolled back. One that was not recognized
/// because its message is in another language says nothing about the statement: it becomes `Unavailable`.
pub async fn in_english(connection: &mut AsyncPgConnection, fault: Fault) -> Fault {
    if fault.kind != FaultKind::Transient {
        return fault;
    }
    match check_english(connection).await {
        Err(language) if language.kind == FaultKind::Unavailable => language,
        Ok(()) | Err(_) => fault,
    }
}
