use schemars::{Schema, SchemaGenerator};
use serde::Serialize;

use crate::event::EventType;
pub use crate::request::REQUESTS;

/// One kind of request: where it is published, what it looks like, what it causes.
#[derive(Debug)]
pub struct RequestKind {
    /// The stream that stores it.
    pub stream: &'static str,
    /// The worker that takes it.
    pub worker: &'static str,
    /// The noun of its subject.
    pub noun: &'static str,
    /// The verb of its subject.
    pub verb: &'static str,
    /// The event that its effect appends.
    pub event: EventType,
    /// Makes the JSON Schema of its body.
    pub schema: fn(SchemaGenerator) -> Schema,
    /// Its golden file, whose messages are the examples of the AsyncAPI document.
    #[cfg(feature = "asyncapi")]
    pub golden: &'static str,
}

/// The body of one kind of request.
pub trait RequestType: Serialize {
    /// Its kind.
    const KIND: &'static RequestKind;
}

impl RequestKind {
    /// The kind that a noun and a verb name.
    pub fn find(noun: &str, verb: &str) -> Option<&'static Self> {
        REQUESTS.iter().find(|kind| kind.noun == noun && kind.verb == verb).copied()
    }

    /// `noun.verb`.
    pub fn name(&self) -> String {
        format!("{}.{}", self.noun, self.verb)
    }
}
