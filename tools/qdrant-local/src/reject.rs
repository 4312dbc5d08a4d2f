//! Rejection of unsupported calls.
//!
//! Everything that this program does not do as a Qdrant server does is rejected with its name and never ignored: a
//! program that passes its tests here must behave the same with a real server. Requests are therefore destructured
//! completely, so that a field that a newer qdrant-client adds does not compile until it is supported or rejected.

use tonic::Status;

/// The error for an unsupported feature.
pub(crate) fn unsupported(what: &str) -> Status {
    Status::unimplemented(format!("qdrant-local does not support {what}"))
}

/// Rejects an unsupported feature if it is requested.
pub(crate) fn reject_if(requested: bool, what: &str) -> Result<(), Status> {
    if requested { Err(unsupported(what)) } else { Ok(()) }
}

/// The error for a request that a Qdrant server rejects too.
pub(crate) fn invalid(why: impl Into<String>) -> Status {
    Status::invalid_argument(why)
}
