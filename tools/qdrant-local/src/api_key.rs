//! The API key of clients, required as a Qdrant server requires it.

use std::fs;
use std::path::Path;
use std::sync::Arc;

use subtle::ConstantTimeEq;
use tonic::metadata::MetadataMap;
use tonic::service::Interceptor;
use tonic::{Request, Status};

use crate::error::StartError;

/// The API key that calls must have, if any. Health checks need none, as with a Qdrant server.
#[derive(Clone)]
pub(crate) struct ApiKey(Option<Arc<str>>);

impl ApiKey {
    /// Reads the key from the file; without a file no key is required.
    pub(crate) fn read(file: Option<&Path>) -> Result<Self, StartError> {
        let Some(path) = file else { return Ok(Self(None)) };
        let text = fs::read_to_string(path).map_err(|source| StartError::file("read", path, source))?;
        match text.trim() {
            "" => Err(StartError::NoApiKey { path: path.to_path_buf() }),
            key => Ok(Self(Some(key.into()))),
        }
    }
}

impl Interceptor for ApiKey {
    fn call(&mut self, request: Request<()>) -> Result<Request<()>, Status> {
        let Some(key) = &self.0 else { return Ok(request) };
        match presented(request.metadata()) {
            None => Err(Status::unauthenticated("Must provide an API key or an Authorization bearer token")),
            Some(presented) if bool::from(presented.as_bytes().ct_eq(key.as_bytes())) => Ok(request),
            Some(_) => Err(Status::permission_denied("Invalid API key or JWT")),
        }
    }
}

/// The key in the metadata `api-key` or `authorization: Bearer`.
fn presented(metadata: &MetadataMap) -> Option<&str> {
    let text = |name| metadata.get(name).and_then(|value| value.to_str().ok());
    text("api-key").or_else(|| text("authorization")?.strip_prefix("Bearer "))
}
