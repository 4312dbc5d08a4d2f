use crate::confidential::Confidential;
use crate::malformed::Malformed;
use crate::request::Request;
use crate::subject::RequestSubject;
use crate::value::SessionId;

/// A request whose secrets have been taken out of it at the door: whatever is written, told or logged of the request itself
/// holds none. `R` is the part of the requests that one stream carries.
#[derive(Debug)]
pub struct Redacted<R> {
    /// The request, with markers where the secrets were.
    pub request: R,
    /// The session that it belongs to; none for what belongs to the user as such.
    pub session_id: Option<SessionId>,
    /// The secrets.
    pub secrets: Vec<Confidential>,
}

impl<R: TryFrom<Request, Error = Malformed>> Redacted<R> {
    /// Takes the secrets out of a request.
    ///
    /// # Errors
    /// [`Malformed`] if the stream of `R` does not carry it.
    pub fn new(request: Request) -> Result<Self, Malformed> {
        let (request, secrets) = request.redact();
        let session_id = request.session_id().cloned();
        Ok(Self { request: request.try_into()?, session_id, secrets })
    }

    /// Reads a request.
    ///
    /// # Errors
    /// [`Malformed`] names the field that cannot be read.
    pub fn decode(subject: &RequestSubject, body: &[u8]) -> Result<Self, Malformed> {
        Self::new(Request::decode(subject, body)?)
    }
}
