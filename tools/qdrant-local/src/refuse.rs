//! How a call is refused.
//!
//! Everything that this program does not do as a Qdrant server would is refused by name, and never passed over: a
//! program that passes its tests here must not meet something new at a real server. So requests are taken apart field
//! by field, and a field that a newer qdrant-client adds does not compile until somebody has decided about it.

use tonic::Status;

/// The answer to what is not supported.
pub(crate) fn unsupported(what: &str) -> Status {
    Status::unimplemented(format!("qdrant-local does not support {what}"))
}

/// Refuses what is not supported where it is asked for.
pub(crate) fn refuse_if(asked_for: bool, what: &str) -> Result<(), Status> {
    if asked_for { Err(unsupported(what)) } else { Ok(()) }
}

/// The answer to a request that makes no sense to a Qdrant server either.
pub(crate) fn invalid(why: impl Into<String>) -> Status {
    Status::invalid_argument(why)
}
