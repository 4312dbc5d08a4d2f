//! What the worker takes in: every request of the contract, as far as its stream carries them.

use contract::{Confidential, ContextRequest, Malformed, Request, RequestSubject, SessionId};

/// A request whose secrets have been taken out of it at the door: whatever is written, told or logged of the request itself
/// holds none.
#[derive(Debug)]
pub struct Parted {
    /// The request, with markers where the secrets were.
    pub request: ContextRequest,
    /// The session that it belongs to; none for what belongs to the user as such.
    pub session_id: Option<SessionId>,
    /// The secrets.
    pub secrets: Vec<Confidential>,
}

impl TryFrom<Request> for Parted {
    type Error = Malformed;

    fn try_from(request: Request) -> Result<Self, Malformed> {
        let (request, secrets) = request.part();
        let session_id = request.session_id().cloned();
        Ok(Self { request: request.try_into()?, session_id, secrets })
    }
}

/// Reads a request.
///
/// # Errors
/// [`Malformed`] names the field that cannot be read.
pub fn decode(subject: &RequestSubject, body: &[u8]) -> Result<Parted, Malformed> {
    Request::decode(subject, body)?.try_into()
}
