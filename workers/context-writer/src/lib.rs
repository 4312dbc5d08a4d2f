//! Writes sessions, contexts, conversations, the account mirror and the contexts of agents.
//!
//! It processes the stream `CONTEXT`; docs/ARCHITECTURE.md lists its tables. A batch is written table by table, with
//! referenced tables first: users, account records, sessions, contexts, conversations, messages, feedback, agent
//! contexts. A session and its first context may therefore be in the same batch.
//!
//! Two rules make the result independent of the order of arrival:
//!
//! - A context has a version, and the highest version wins. A removed context keeps its version as a tombstone.
//! - Any other mutable record has no version. Of two requests, the one that JetStream stored later wins.
//!
//! Secret fields, and fields marked `sensitive`, are extracted from a request during decoding. They are written to
//! `encrypted_fields` after the row they belong to.
//!
//! A message whose prerequisite is missing (a context whose session is not open yet) is retried later. The rest of the
//! batch is unaffected.

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
