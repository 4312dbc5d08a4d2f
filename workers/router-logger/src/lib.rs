//! Routing decisions, what is learnt from them, and the calls of tools.
//!
//! Takes the stream `ROUTER`. A batch of decisions is one statement: it writes `router_decision_log` and adds what is new
//! there to `router_hourly_patterns`, the counts and sums by hour, mode, route, tool and model that analytics read. So the
//! patterns are at any time what could be computed from the log, whatever was delivered how often.
//!
//! A decision never changes: a second one with the same `decision_id` is left alone. Reports of tools go to the event stream
//! and to no table.
//!
//! A message whose session is not known waits for it: sessions are opened on another stream, which may be behind.

mod event;
pub mod store;

use ::store::{Connection, Fault};
use contract::{Malformed, RequestSubject, RouterRequest, SessionId};
use keys::DataKeys;
use runtime::{Message, Verdict, Worker};

/// What the worker takes in.
pub type Redacted = contract::Redacted<RouterRequest>;

/// The worker.
#[derive(Clone, Copy, Debug, Default)]
pub struct RouterLogger;

impl Worker for RouterLogger {
    const NAME: &'static str = "router-logger";
    const STREAM: &'static str = "ROUTER";
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
