use crate::malformed::Malformed;
use crate::redaction::{SecretField, SecretFields};
use crate::request::{Request, StreamRequest};
use crate::subject::RequestSubject;

/// A request without its secrets, which were taken out when it was decoded: no statement, event or log line of the request
/// holds one.
#[derive(Debug)]
pub struct Redacted<R> {
    /// The request, with markers where the secrets were.
    pub request: R,
    /// The secrets.
    pub secrets: Vec<SecretField>,
}

impl<R: StreamRequest> Redacted<R> {
    /// Takes the secrets out of a request.
    ///
    /// # Errors
    /// [`Malformed`] if the stream of `R` does not carry it.
    pub fn new(request: Request) -> Result<Self, Malformed> {
        let mut request = R::try_from(request)?;
        let mut secrets = SecretFields::default();
        request.facts_mut().redact(&mut secrets);
        Ok(Self { request, secrets: secrets.into_vec() })
    }

    /// Decodes a request.
    ///
    /// # Errors
    /// [`Malformed`] names the field that cannot be read.
    pub fn decode(subject: &RequestSubject, body: &[u8]) -> Result<Self, Malformed> {
        Self::new(Request::decode(subject, body)?)
    }
}
