//! Requests that are ready to be published.

use std::collections::BTreeMap;

use bytes::Bytes;
use contract::{JsonObject, Request, RequestKind, RequestSubject, Service, UserId};
use uuid::Uuid;

use super::Corpus;

/// The service that publishes account records.
pub(super) const ACCOUNT_SERVICE: &str = "account";

/// A request that is ready to be published.
#[derive(Clone, Debug)]
pub struct Prepared {
    /// The subject to publish on.
    pub subject: RequestSubject,
    /// The request id, derived from the dialogue.
    pub id: Uuid,
    /// The kind of request.
    pub kind: &'static RequestKind,
    /// The body.
    pub body: Bytes,
    /// Whether it adds a row to an empty database.
    pub adds_row: bool,
}

/// The slots of each service, as of its latest frame.
pub(super) type Slots = BTreeMap<String, BTreeMap<String, Vec<String>>>;

/// The id derived from these parts.
pub(super) fn id(parts: &[&str]) -> Uuid {
    let namespace = Uuid::new_v5(&Uuid::NAMESPACE_OID, b"memfleet dialogues");
    // A separator that no part contains distinguishes ("a", "bc") from ("ab", "c").
    Uuid::new_v5(&namespace, parts.join("\u{1f}").as_bytes())
}

/// Converts a JSON value to the contract's size-limited object type.
pub(super) fn object(value: &serde_json::Value) -> Result<JsonObject, String> {
    JsonObject::new(value.to_string())
}

/// Collects the requests of one user.
pub(super) struct Out {
    pub(super) corpus: Corpus,
    pub(super) user_id: UserId,
    /// The publishing service.
    pub(super) service: &'static str,
    pub(super) requests: Vec<Prepared>,
}

impl Out {
    pub(super) fn new(corpus: Corpus, user_id: UserId) -> Self {
        Self { corpus, user_id, service: ACCOUNT_SERVICE, requests: Vec::new() }
    }

    /// Adds a request. Its id is derived from kind, user and `parts`, which must be unique among them.
    pub(super) fn add(&mut self, request: Request, parts: &[&str], adds_row: bool) -> Result<(), String> {
        let (user_id, kind) = (self.user_id, request.kind());
        let (user, name) = (user_id.to_string(), kind.name());
        let service: Service = self.service.parse().map_err(|_| "invalid service name".to_owned())?;
        let subject =
            RequestSubject { service, noun: kind.noun.to_owned(), verb: kind.verb.to_owned(), user_id };
        let id = id(&[&[self.corpus.as_str(), &user, &name], parts].concat());
        let body = serde_json::to_vec(&request).map_err(|error| format!("{name}: {error}"))?;
        if body.len() > contract::limit::BODY_BYTES {
            return Err(format!(
                "{name} has {} bytes, more than the limit of {}",
                body.len(),
                contract::limit::BODY_BYTES
            ));
        }
        self.requests.push(Prepared { subject, id, kind, body: body.into(), adds_row });
        Ok(())
    }

    /// The id of a message of the user.
    pub(super) fn message_id(&self, dialogue_id: &str, turn: usize) -> Uuid {
        let (user, turn) = (self.user_id.to_string(), turn.to_string());
        id(&[self.corpus.as_str(), &user, "message", dialogue_id, &turn])
    }
}
