use crate::facts::RequestFacts;
use crate::malformed::Malformed;
use crate::redaction::{SecretField, SecretFields};
use crate::request::Request;
use crate::request_kind::RequestKind;
use crate::subject::RequestSubject;

/// The requests of one stream.
pub trait StreamRequest:
    TryFrom<Request, Error = Malformed> + serde::Serialize + Clone + Send + Sync + 'static
{
    /// What kind of request this is.
    fn kind(&self) -> &'static RequestKind;

    /// What it says about itself.
    fn facts(&self) -> &dyn RequestFacts;

    /// The same, for changing it.
    fn facts_mut(&mut self) -> &mut dyn RequestFacts;
}

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
