//! Encryption of request bodies between a service and the workers.

use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use contract::RequestSubject;
use trust::{AssociatedData, KeyRing, key_id, parse_key_id};

use crate::error::ClientError;

/// The payload keys of services. By default there are none, and bodies are published unencrypted.
#[derive(Clone, Debug, Default)]
pub struct PayloadKeys {
    ring: Arc<KeyRing>,
}

/// A body as it is published.
#[derive(Clone, Debug)]
pub struct Payload {
    /// The key that it is encrypted with, for [`contract::header::ENCRYPTION`]; none if it is not.
    pub key_id: Option<String>,
    /// The body, or its ciphertext.
    pub body: Bytes,
}

impl PayloadKeys {
    /// Reads a ring of keys; none without a file.
    ///
    /// # Errors
    /// [`ClientError::PayloadKeys`] if the file cannot be read or is not a key ring.
    pub fn read(file: Option<&Path>) -> Result<Self, ClientError> {
        let ring = file.map(KeyRing::read).transpose()?.unwrap_or_default();
        Ok(Self { ring: Arc::new(ring) })
    }

    /// Encrypts a body with the current key of the service that its subject names. Without such a key, the body is
    /// unchanged.
    ///
    /// # Errors
    /// [`ClientError::Cipher`] if the body is too long.
    pub fn encrypt(&self, subject: &str, body: Bytes) -> Result<Payload, ClientError> {
        let service = subject.parse::<RequestSubject>().ok().map(|subject| subject.service);
        let key = service.as_ref().and_then(|service| self.ring.current(service.as_str()));
        let (Some(service), Some(key)) = (service, key) else { return Ok(Payload { key_id: None, body }) };
        let sealed = key.seal(&body, AssociatedData::Payload { subject })?;
        Ok(Payload { key_id: Some(key_id(service.as_str(), key.version())), body: sealed.into() })
    }

    /// Decrypts a body that was published on this subject.
    ///
    /// # Errors
    /// If the ring does not have the key, or the key does not decrypt the body.
    pub fn decrypt(&self, id: &str, subject: &str, body: &[u8]) -> Result<Vec<u8>, ClientError> {
        let key = parse_key_id(id).and_then(|(name, version)| self.ring.get(name, version));
        let key = key.ok_or_else(|| ClientError::UnknownPayloadKey(id.to_owned()))?;
        Ok(key.open(body, AssociatedData::Payload { subject })?.to_vec())
    }
}
