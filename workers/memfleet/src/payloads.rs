//! Bodies that travel encrypted: those of services whose key this configuration names.

use std::path::Path;
use std::sync::Arc;

use anyhow::Context;
use bytes::Bytes;
use config::TrustSettings;
use contract::RequestSubject;
use trust::{AssociatedData, KeyRing, key_id, parse_key_id};

/// The keys of services.
#[derive(Clone, Debug, Default)]
pub struct Payloads {
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

impl Payload {
    /// A body as it is.
    pub fn plain(body: Bytes) -> Self {
        Self { key_id: None, body }
    }
}

impl Payloads {
    /// The keys of `trust.payload_ring_file`; none without it.
    ///
    /// # Errors
    /// If the file cannot be read or holds no ring.
    pub fn open(settings: &TrustSettings) -> anyhow::Result<Self> {
        let ring = match &settings.payload_ring_file {
            Some(file) => KeyRing::read(Path::new(file)).context("trust.payload_ring_file")?,
            None => KeyRing::default(),
        };
        Ok(Self { ring: Arc::new(ring) })
    }

    /// Encrypts a body with the current key of the service that its subject names, if there is one.
    ///
    /// # Errors
    /// If the body is too long to be encrypted.
    pub fn close(&self, subject: &str, body: Bytes) -> anyhow::Result<Payload> {
        let service = subject.parse::<RequestSubject>().ok().map(|subject| subject.service);
        let key = service.as_ref().and_then(|service| self.ring.current(service.as_str()));
        let (Some(service), Some(key)) = (service, key) else { return Ok(Payload::plain(body)) };
        let sealed = key.seal(&body, AssociatedData::Payload { subject }).context("the body")?;
        Ok(Payload { key_id: Some(key_id(service.as_str(), key.version())), body: sealed.into() })
    }

    /// Decrypts a body.
    ///
    /// # Errors
    /// If the key is not there, or does not open it.
    pub fn open_body(&self, id: &str, subject: &str, body: &[u8]) -> anyhow::Result<Vec<u8>> {
        let key = parse_key_id(id).and_then(|(name, version)| self.ring.get(name, version));
        let key = key.with_context(|| format!("trust.payload_ring_file has no key {id}"))?;
        let plain = key.open(body, AssociatedData::Payload { subject }).context("the body")?;
        Ok(plain.to_vec())
    }
}
