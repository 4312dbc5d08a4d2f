use crate::malformed::Malformed;
use crate::redaction::{SecretField, SecretFields};
use crate::request::{Request, StreamRequest};
use crate::subject::RequestSubject;

/// A request whose secrets were removed when it was decoded. No statement, event or log line of the request contains
/// one.
#[derive(Debug)]
pub struct Redacted<R> {
    /// The request, with markers in place of the secrets.
    pub request: R,
    /// The secrets.
    pub secrets: Vec<SecretField>,
}

impl<R: StreamRequest> Redacted<R> {
    /// Removes the secrets from a request.
    ///
    /// # Errors
    /// [`Malformed`] if the request does not belong to the stream of `R`.
    pub fn new(request: Request) -> Result<Self, Malformed> {
        let mut request = R::try_from(request)?;
        let mut secrets = SecretFields::default();
        request.facts_mut().redact(&mut secrets);
        Ok(Self { request, secrets: secrets.into_vec() })
    }

    /// Decodes a request.
    ///
    /// # Errors
    /// [`Malformed`] names the invalid field.
    pub fn decode(subject: &RequestSubject, body: &[u8]) -> Result<Self, Malformed> {
        Self::new(Request::decode(subject, body)?)
    }
}
