//! Writes routing decisions and hourly routing statistics, and emits events for tool calls.
//!
//! It processes the stream `ROUTER`. One statement writes a batch of decisions: it inserts them into
//! `router_decision_log` and adds the new ones to `router_hourly_patterns`, the counts and sums by hour, mode, route,
//! tool and model that analytics queries read. The patterns therefore always equal what could be computed from the log,
//! even after redeliveries.
//!
//! A decision is immutable: a second one with the same `decision_id` changes nothing. Tool reports go to the event
//! stream only, not to a table.
//!
//! A message whose session is unknown is retried later: sessions are opened on another stream, which may lag behind.

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
            Done::Duplicate => Verdict::unchanged(message),
            Done::Missing => Verdict::missing_prerequisite(message),
        };
        Ok(batch.iter().zip(done).map(verdict).collect())
    }
}
