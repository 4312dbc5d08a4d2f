//! The job `sync-carry`: syncs that have keys left, and those that follow their source, go on under job grants.

use std::collections::BTreeSet;
use std::sync::Arc;

use ::store::{Connection, Fault};
use contract::{EventType, SyncEnd, SyncType};
use keys::OpenKeys;
use runtime::EventDraft;
use sync::Rules;
use uuid::Uuid;

use super::run::{Round, Run, State};
use super::syncs::{self, Progress, SyncRow};
use super::work::Work;
use super::{carry, events};

/// The most syncs of one tick. The others are due at the next one.
const SYNCS: i32 = 200;
/// The most rounds of one sync in a tick.
const ROUNDS: usize = 8;

/// What becomes of a sync in a tick.
enum Step {
    /// It carries a round.
    Carry,
    /// It carries what the source has left, and ends.
    Finish(SyncEnd),
    /// It ends.
    End(State),
}

fn step(row: &SyncRow, run: &Run, source_is_active: bool, target_is_active: bool) -> Step {
    let follows = run.sync_type == SyncType::StateSync;
    let end = |reason| if follows { State::completed(reason) } else { State::failed(reason) };
    if !row.is_allowed {
        Step::End(State::failed(SyncEnd::NotAllowed))
    } else if !target_is_active {
        Step::End(end(SyncEnd::TargetEnded))
    } else if row.expires_at.is_some_and(|at| at <= run.now) {
        Step::End(end(SyncEnd::Expired))
    } else if source_is_active {
        Step::Carry
    } else if follows {
        Step::Finish(SyncEnd::SourceEnded)
    } else {
        Step::End(end(SyncEnd::SourceEnded))
    }
}

/// Carries on the syncs of the users that the tick acts for.
pub(crate) async fn carry_due(
    connection: &mut Connection,
    rules: &Arc<Rules>,
    tick: Uuid,
) -> Result<Vec<EventDraft>, Fault> {
    let due = syncs::due(connection, SYNCS).await?;
    let named: BTreeSet<(i32, &str)> = due.iter().flat_map(SyncRow::sessions).collect();
    let sessions = syncs::sessions(connection, &named).await?;
    let (mut runs, mut finishing, mut drafts, mut ended) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    // One that cannot be read fails, and no other.
    let mut unreadable = Vec::new();
    for row in &due {
        let mut run = match row.run(tick, false) {
            Ok(run) => run,
            Err(fault) => {
                tracing::error!(user_id = row.user_id, sync = %row.id, "a sync fails: {}", fault.reason);
                unreadable.push((row.user_id, row.id));
                continue;
            }
        };
        let [source, target] =
            row.sessions().map(|(user, session)| sessions.get(&(user, session.to_owned())));
        // A foreign key sees to it that both are there.
        let (Some(source), Some(target)) = (source, target) else { continue };
        let finish = match step(row, &run, source.is_active, target.is_active) {
            Step::Carry => None,
            Step::Finish(end) => Some(end),
            Step::End(state) => {
                ended.push((run, state));
                continue;
            }
        };
        if !row.has_more {
            run.begin_pass(source.clock);
        }
        runs.push(run);
        finishing.push(finish);
    }
    let mut rounds: Vec<Round> = runs.iter().map(|_| Round::default()).collect();
    carry_rounds(connection, rules, &mut runs, &mut rounds).await?;
    let mut progress = Vec::with_capacity(due.len());
    for ((run, round), finish) in runs.iter().zip(&rounds).zip(finishing) {
        drafts.extend(round.events.iter().cloned());
        let state = match finish {
            Some(end) if !round.has_more => State::completed(end),
            Some(_) | None => State::after(run, round.has_more),
        };
        if let Some(end) = state.end {
            drafts.extend(events::ended(run, EventType::SyncCompleted, end, Some(round), None));
        }
        progress.push(Progress { run, state, round: Some(round), is_undone: false });
    }
    for (run, state) in &ended {
        let failed = state.status == contract::SyncStatus::Failed;
        let event_type = if failed { EventType::SyncFailed } else { EventType::SyncCompleted };
        if let Some(end) = state.end {
            drafts.extend(events::ended(run, event_type, end, None, None));
        }
        progress.push(Progress { run, state: *state, round: None, is_undone: false });
    }
    syncs::advance(connection, rules, &progress).await?;
    syncs::fail(connection, unreadable).await?;
    Ok(drafts)
}

/// Carries rounds until no sync has keys left or the tick has read as much as it may, a few at most. One that has computed its share
/// goes on at the next tick.
async fn carry_rounds(
    connection: &mut Connection,
    rules: &Arc<Rules>,
    runs: &mut [Run],
    rounds: &mut [Round],
) -> Result<(), Fault> {
    let (keys, mut work) = (OpenKeys::default(), Work::of_tick());
    let mut left: Vec<usize> = (0..runs.len()).collect();
    for _ in 0..ROUNDS {
        if left.is_empty() || work.is_used_up() {
            break;
        }
        let mut now: Vec<Run> = left.iter().map(|index| runs[*index].clone()).collect();
        let carried = carry::round(connection, rules, &mut now, &keys, &mut work).await?;
        let mut next = Vec::new();
        for ((index, run), round) in left.into_iter().zip(now).zip(carried) {
            runs[index] = run;
            if round.has_more && !round.is_cut {
                next.push(index);
            }
            rounds[index].extend(round);
        }
        left = next;
    }
    Ok(())
}
