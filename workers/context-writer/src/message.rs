//! What the worker takes in: every request of the contract, as far as its stream carries them.

pub use contract::Request;
use contract::{Malformed, RequestSubject};

/// Reads a request.
///
/// # Errors
/// [`Malformed`] names the field that cannot be read.
pub fn decode(subject: &RequestSubject, body: &[u8]) -> Result<Request, Malformed> {
    Request::decode(subject, body)
}
