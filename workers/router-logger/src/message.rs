//! What the worker takes in.

use contract::{Confidential, Malformed, Request, RequestSubject, RouterRequest};

/// A request whose secrets have been taken out of it at the door.
#[derive(Debug)]
pub struct Parted {
    /// The request, with markers where the secrets were.
    pub request: RouterRequest,
    /// The secrets.
    pub secrets: Vec<Confidential>,
}

/// Reads a request.
///
/// # Errors
/// [`Malformed`] names the field that cannot be read.
pub fn decode(subject: &RequestSubject, body: &[u8]) -> Result<Parted, Malformed> {
    let (request, secrets) = Request::decode(subject, body)?.part();
    Ok(Parted { request: request.try_into()?, secrets })
}
