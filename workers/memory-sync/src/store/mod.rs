//! The worker's SQL, and what becomes of a batch.

mod batch;
mod carry;
mod cells;
mod changes;
mod convert;
mod dispute;
mod events;
mod forget;
mod rows;
mod run;
mod share;
mod start;
mod stop;
mod syncs;
mod table;
mod tick;
mod undo;
mod work;
mod write;

use std::sync::Arc;

use ::store::{Connection, Fault, FaultKind};
use contract::{SyncRequest, SyncStart, SyncStop, SyncUndo};
use keys::OpenKeys;
use runtime::Verdict;
use serde::Serialize;
use sync::Rules;

use batch::{Item, Verdicts};
use work::Work;

use crate::prepare::WantedKeys;
use crate::{Job, Message, SyncItem};

/// Requests of one kind that follow each other in the stream.
enum Step<'a> {
    Start(Vec<Item<'a, SyncStart>>),
    Stop(Vec<Item<'a, SyncStop>>),
    Undo(Vec<Item<'a, SyncUndo>>),
}

/// The requests of a batch in the order of the stream, those of one kind together.
fn steps<'a>(batch: &[&'a Message]) -> Vec<Step<'a>> {
    let mut order: Vec<usize> = (0..batch.len()).collect();
    // What was delivered again may stand behind what came later.
    order.sort_by_key(|index| batch[*index].sequence);
    let mut steps: Vec<Step<'a>> = Vec::new();
    for index in order {
        let message = batch[index];
        let SyncItem::Request(request) = &message.request else { continue };
        match (request, steps.last_mut()) {
            (SyncRequest::SyncStart(request), Some(Step::Start(items))) => {
                items.push(Item { index, message, request });
            }
            (SyncRequest::SyncStart(request), _) => {
                steps.push(Step::Start(vec![Item { index, message, request }]));
            }
            (SyncRequest::SyncStop(request), Some(Step::Stop(items))) => {
                items.push(Item { index, message, request });
            }
            (SyncRequest::SyncStop(request), _) => {
                steps.push(Step::Stop(vec![Item { index, message, request }]));
            }
            (SyncRequest::SyncUndo(request), Some(Step::Undo(items))) => {
                items.push(Item { index, message, request });
            }
            (SyncRequest::SyncUndo(request), _) => {
                steps.push(Step::Undo(vec![Item { index, message, request }]));
            }
        }
    }
    steps
}

/// Writes a batch of requests.
pub(crate) async fn requests(
    connection: &mut Connection,
    rules: &Arc<Rules>,
    batch: &[&Message],
    keys: &OpenKeys,
    wanted: &WantedKeys,
) -> Result<Vec<Verdict>, Fault> {
    let (mut verdicts, mut work) = (Verdicts::new(batch.len()), Work::of_batch());
    for step in steps(batch) {
        match step {
            Step::Start(items) => {
                start::start(connection, rules, &items, keys, wanted, &mut verdicts, &mut work).await?;
            }
            Step::Stop(items) => stop::stop(connection, rules, &items, &mut verdicts).await?,
            Step::Undo(items) => {
                undo::undo(connection, rules, &items, keys, wanted, &mut verdicts, &mut work).await?;
            }
        }
    }
    Ok(verdicts.finish(batch))
}

/// Writes a tick.
pub(crate) async fn tick(
    connection: &mut Connection,
    rules: &Arc<Rules>,
    job: Job,
    tick: &Message,
) -> Result<Verdict, Fault> {
    let events = match job {
        Job::Carry => tick::carry_due(connection, rules, tick.request_id).await?,
        Job::Forget => {
            forget::forget(connection).await?;
            Vec::new()
        }
    };
    Ok(if events.is_empty() { Verdict::unchanged(tick) } else { Verdict::Applied(events) })
}

/// What always serializes: names, numbers, and values that were JSON before.
fn json<T: Serialize + ?Sized>(value: &T) -> String {
    serde_json::to_string(value).unwrap_or_else(|_| "null".to_owned())
}

/// Another transaction was faster: this one is tried again and sees what that one wrote.
fn overtaken(what: &str) -> Fault {
    Fault { kind: FaultKind::Transient, reason: format!("another transaction wrote {what} at the same time") }
}
