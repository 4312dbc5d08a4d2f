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

pub mod store;

use ::store::{Connection, Fault};
use contract::{ROUTER_LOGGER, RouterRequest, WorkerInfo};
use keys::DataKeys;
use runtime::{Message, Verdict, Worker};
use store::Done;

/// The worker.
#[derive(Clone, Copy, Debug, Default)]
pub struct RouterLogger;

impl Worker for RouterLogger {
    const INFO: &'static WorkerInfo = &ROUTER_LOGGER;
    const ENCRYPTS: bool = true;
    type Item = RouterRequest;

    async fn write<'a>(
        &'a self,
        connection: &'a mut Connection,
        batch: &'a [&'a Message<RouterRequest>],
        keys: &'a DataKeys,
    ) -> Result<Vec<Verdict>, Fault> {
        let done = store::write(connection, batch, keys).await?;
        let verdict = |(message, done): (&&Message<RouterRequest>, Done)| match done {
            Done::Applied => Verdict::applied(message),
            Done::There => Verdict::unchanged(message),
            Done::Missing => Verdict::missing_prerequisite(message),
        };
        Ok(batch.iter().zip(done).map(verdict).collect())
    }
}
