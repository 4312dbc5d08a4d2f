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
//! What is secret, or marked `sensitive`, is taken out of a request when it is decoded, and written to `encrypted_fields` once the
//! row it belongs to is there.
//!
//! A message whose prerequisite is missing (a context whose session is not open yet) is retried later; the rest of the batch is
//! unaffected.

pub mod store;

use ::store::{Connection, Fault};
use contract::{CONTEXT_WRITER, ContextRequest, WorkerInfo};
use keys::DataKeys;
use runtime::{Message, Verdict, Worker};
use store::Done;

/// The worker.
#[derive(Clone, Copy, Debug, Default)]
pub struct ContextWriter;

impl Worker for ContextWriter {
    const INFO: &'static WorkerInfo = &CONTEXT_WRITER;
    const ENCRYPTS: bool = true;
    type Item = ContextRequest;

    async fn write<'a>(
        &'a self,
        connection: &'a mut Connection,
        batch: &'a [&'a Message<ContextRequest>],
        keys: &'a DataKeys,
    ) -> Result<Vec<Verdict>, Fault> {
        let done = store::write(connection, batch, keys).await?;
        let verdict = |(message, done): (&&Message<ContextRequest>, Done)| match done {
            Done::Applied(_) => Verdict::applied(message),
            Done::Stale => Verdict::unchanged(message),
            Done::Missing => Verdict::missing_prerequisite(message),
        };
        Ok(batch.iter().zip(done).map(verdict).collect())
    }
}
