//! What the worker takes in: every request of the contract, as far as its stream carries them.

use contract::{Confidential, Malformed, RequestSubject};

/// A request whose secrets have been taken out of it at the door: whatever is written, told or logged of the request itself
/// holds none.
#[derive(Debug)]
pub struct Parted {
    /// The request, with markers where the secrets were.
    pub request: contract::Request,
    /// The secrets.
    pub secrets: Vec<Confidential>,
}

impl From<contract::Request> for Parted {
    fn from(request: contract::Request) -> Self {
        let (request, secrets) = request.part();
        Self { request, secrets }
    }
}

/// Reads a request.
///
/// # Errors
/// [`Malformed`] names the field that cannot be read.
pub fn decode(subject: &RequestSubject, body: &[u8]) -> Result<Parted, Malformed> {
    contract::Request::decode(subject, body).map(Parted::from)
}
