//! `sync.stop`: a sync that runs carries no more.

use std::collections::{BTreeSet, HashSet};

use ::store::{Connection, Fault};
use contract::{EventType, SyncEnd, SyncStop};
use runtime::Verdict;
use sync::Rules;

use super::batch::{Item, Verdicts};
use super::events;
use super::run::State;
use super::syncs::{self, Progress};

/// Stops syncs.
pub(crate) async fn stop(
    connection: &mut Connection,
    rules: &Rules,
    items: &[Item<'_, SyncStop>],
    verdicts: &mut Verdicts,
) -> Result<(), Fault> {
    if items.is_empty() {
        return Ok(());
    }
    let ids: BTreeSet<_> = items.iter().map(|item| (item.user(), item.request.sync_id)).collect();
    let known = syncs::lock(connection, &ids).await?;
    let (mut stopped, mut taken) = (Vec::new(), HashSet::new());
    for item in items {
        let id = (item.user(), item.request.sync_id);
        let Some(row) = known.get(&id) else { continue };
        if !row.is_running() || !taken.insert(id) {
            verdicts.set(item.index, Verdict::unchanged(item.message));
            continue;
        }
        let run = row.run(item.message.request_id, false)?;
        let reason = item.request.reason.as_ref().map(contract::Text::as_str);
        let events = events::ended(&run, EventType::SyncStopped, SyncEnd::Stopped, None, reason);
        verdicts.set(item.index, Verdict::Applied(events.into()));
        stopped.push(run);
    }
    let state = State::completed(SyncEnd::Stopped);
    let progress: Vec<_> =
        stopped.iter().map(|run| Progress { run, state, round: None, is_undone: false }).collect();
    syncs::advance(connection, rules, &progress).await
}
