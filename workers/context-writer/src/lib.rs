//! Sessions, contexts, conversations, the account mirror, and what agents remember.
//!
//! Takes the stream `CONTEXT` and writes the tables of its row in docs/ARCHITECTURE.md. A batch is written table
//! by table, what others refer to first: users, what belongs to an account, sessions, contexts, conversations,
//! messages, feedback, agents' contexts. So a session and its first context may travel in one batch.
//!
//! Two rules keep the order of arrival from mattering:
//!
//! - A context carries a version, and a higher one wins. A removed context leaves its version behind.
//! - Any other record that can change carries none; of two, the one that JetStream stored later wins.
//!
//! What is secret, or marked `sensitive`, is taken out of a request when it is read, and written to `encrypted_fields` once the
//! row it belongs to is there.
//!
//! A message that needs something that is not there (a context whose session is not open yet) is given the verdict
//! [`Verdict::MissingPrerequisite`], and the rest of the batch goes through.

mod event;
pub mod store;

use ::store::{Connection, Fault};
use contract::{ContextRequest, Malformed, RequestSubject, SessionId};
use keys::DataKeys;
use runtime::{Message, Verdict, Worker};

/// What the worker takes in.
pub type Redacted = contract::Redacted<ContextRequest>;

/// The worker.
#[derive(Clone, Copy, Debug, Default)]
pub struct ContextWriter;

impl Worker for ContextWriter {
    const NAME: &'static str = "context-writer";
    const STREAM: &'static str = "CONTEXT";
    const ENCRYPTS: bool = true;
    type Request = Redacted;
    type Prepared = ();

    fn decode(&self, subject: &RequestSubject, body: &[u8]) -> Result<Redacted, Malformed> {
        Redacted::decode(subject, body)
    }

    fn session<'a>(&self, request: &'a Redacted) -> Option<&'a str> {
        request.session_id.as_ref().map(SessionId::as_str)
    }

    fn needs_key(&self, request: &Redacted) -> bool {
        !request.secrets.is_empty()
    }

    async fn write<'a>(
        &'a self,
        connection: &'a mut Connection,
        batch: &'a [&'a Message<Redacted>],
        keys: &'a DataKeys,
        (): &'a (),
    ) -> Result<Vec<Verdict>, Fault> {
        let done = store::write(connection, batch, keys).await?;
        Ok(batch.iter().zip(done).map(|(message, done)| event::verdict(message, done)).collect())
    }
}
