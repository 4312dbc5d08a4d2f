//! A round of syncs: what they compare is read and locked, `shared/sync` plans, and what it plans is written.

use std::collections::{HashMap, HashSet};

use ::store::{Connection, Fault, FaultKind};
use contract::{SyncEffect, SyncType, UserId};
use keys::OpenKeys;
use sync::{Applied, Cell, Conflict, Dispute, Effect, Key, KeyState, Memory, Plan, Rules, Sync};
use uuid::Uuid;

use super::cells::{self, Counted, Loaded, Sealed, Stored, Table};
use super::convert;
use super::dispute;
use super::events;
use super::run::{Round, Run};
use super::share;
use super::syncs;
use super::write::{CellWrite, Change, Kept, Writes};

/// How many failures and conflicts a sync names outside of its history.
pub(crate) const NAMED: usize = 100;

/// Carries one round of each sync. Syncs that concern the same session are written after each other, in this order.
pub(crate) async fn round(
    connection: &mut Connection,
    rules: &Rules,
    runs: &mut [Run],
    keys: &OpenKeys,
) -> Result<Vec<Round>, Fault> {
    let mut rounds: Vec<Round> = runs.iter().map(|_| Round::default()).collect();
    let sessions =
        runs.iter().flat_map(|run| [(run.user.get(), &*run.source), (run.user.get(), &*run.target)]);
    syncs::lock_sessions(connection, &sessions.collect()).await?;
    let mut writes = Writes::default();
    for group in groups(runs) {
        let (nodes, contexts): (Vec<usize>, Vec<usize>) =
            group.into_iter().partition(|index| runs[*index].sync_type == SyncType::KnowledgeShare);
        if !contexts.is_empty() {
            let planned = plan_group(connection, rules, runs, &contexts, keys, &mut rounds).await?;
            // Those that follow read what these have written.
            planned.write(connection, keys.current()).await?;
        }
        if !nodes.is_empty() {
            writes.extend(share::share(connection, runs, &nodes, &mut rounds).await?);
        }
    }
    writes.write(connection, keys.current()).await?;
    Ok(rounds)
}

/// Splits syncs into groups, in their order, so that none of a group writes a session that another one of it reads or writes.
fn groups(runs: &[Run]) -> Vec<Vec<usize>> {
    let mut groups: Vec<Vec<usize>> = Vec::new();
    // The first group that may write, and that may read, a session.
    let mut after_use: HashMap<(UserId, &str), usize> = HashMap::new();
    let mut after_write: HashMap<(UserId, &str), usize> = HashMap::new();
    for (index, run) in runs.iter().enumerate() {
        let (source, target) = ((run.user, &*run.source), (run.user, &*run.target));
        let of = |map: &HashMap<(UserId, &str), usize>, key| map.get(key).copied().unwrap_or(0);
        let group = of(&after_write, &source).max(of(&after_use, &target));
        if groups.len() <= group {
            groups.push(Vec::new());
        }
        groups[group].push(index);
        for key in [source, target] {
            let next = after_use.entry(key).or_default();
            *next = (*next).max(group + 1);
        }
        after_write.insert(target, group + 1);
    }
    groups
}

async fn plan_group(
    connection: &mut Connection,
    rules: &Rules,
    runs: &mut [Run],
    group: &[usize],
    keys: &OpenKeys,
    rounds: &mut [Round],
) -> Result<Writes, Fault> {
    let of_group: Vec<&Run> = group.iter().map(|index| &runs[*index]).collect();
    let first: Vec<usize> =
        group.iter().copied().filter(|index| runs[*index].resume_after.is_none()).collect();
    let counting: Vec<&Run> = first.iter().map(|index| &runs[*index]).collect();
    let counted = cells::count(connection, &counting).await?;
    let loaded = cells::load(connection, &of_group, keys).await?;
    for (place, counted) in counted {
        if let Some(run) = first.get(place).and_then(|index| runs.get_mut(*index)) {
            count(run, &counted);
        }
    }
    let mut writes = Writes::default();
    let mut disputes = Vec::new();
    for (index, loaded) in group.iter().zip(loaded) {
        let wanted = lacking(&loaded);
        if !wanted.is_empty() {
            rounds[*index].wanted = wanted;
            continue;
        }
        let run = &mut runs[*index];
        let planned = plan_one(rules, run, loaded, &mut rounds[*index])?;
        disputes.extend(planned.disputes);
        writes.extend(planned.writes);
    }
    dispute::raise(connection, &disputes).await?;
    Ok(writes)
}

/// What was counted before a pass: keys that stay, and all that cross, of which those count as known that nothing is found for.
fn count(run: &mut Run, counted: &Counted) {
    let number = |number: i64| u64::try_from(number).unwrap_or(0);
    run.counts.unchanged = number(counted.crossing);
    run.counts.private = number(counted.private);
    run.counts.expired = number(counted.expired);
    run.counts.removed = number(counted.removed);
}

fn lacking(loaded: &Loaded) -> Vec<(UserId, u32)> {
    let sealed = |stored: &Result<Stored, Sealed>| match stored {
        Err(Sealed::Lacks(key)) => Some(*key),
        Err(Sealed::Encrypted | Sealed::Unreadable(_)) | Ok(_) => None,
    };
    let of_source = loaded.source.iter();
    let missing =
        of_source.flat_map(|(key, source)| [sealed(source), loaded.target.get(key).and_then(sealed)]);
    missing.flatten().collect::<HashSet<_>>().into_iter().collect()
}

struct Planned {
    writes: Writes,
    disputes: Vec<dispute::Raised>,
}

/// Plans a sync, and what of it is on record.
fn plan_one(rules: &Rules, run: &mut Run, loaded: Loaded, round: &mut Round) -> Result<Planned, Fault> {
    let (mut source, mut target) = (Memory::new(), Memory::new());
    let (mut rows, mut source_rows) = (HashMap::new(), HashMap::new());
    let mut writes = Writes::default();
    let Loaded { source: of_source, target: mut of_target, has_more, last } = loaded;
    let looked_at = u64::try_from(of_source.len()).unwrap_or(u64::MAX);
    run.counts.unchanged = run.counts.unchanged.saturating_sub(looked_at);
    for (key, stored) in of_source {
        match (stored, of_target.remove(&key).transpose()) {
            (Ok(stored), Ok(other)) => {
                if let Some(other) = other {
                    rows.insert(key.clone(), (other.id, other.version));
                    target.insert(key.clone(), other.cell);
                }
                source_rows.insert(key.clone(), stored.id);
                source.insert(key, stored.cell);
            }
            (Err(Sealed::Unreadable(problem)), _) | (_, Err(Sealed::Unreadable(problem))) => {
                let reason = format!("its encrypted value cannot be read: {problem}");
                fail(run, &key, reason, round, &mut writes);
            }
            (Err(Sealed::Encrypted | Sealed::Lacks(_)), _)
            | (_, Err(Sealed::Encrypted | Sealed::Lacks(_))) => {
                run.counts.encrypted += 1;
            }
        }
    }
    let filter = run.rule_filter();
    let plan = Sync {
        source: &run.source,
        target: &run.target,
        filter: &filter,
        scope: run.scope(),
        now: run.now,
        rules,
    }
    .plan(&source, &target);
    run.counts.unchanged += u64::try_from(plan.unchanged).unwrap_or(0);
    for failure in &plan.failures {
        fail(run, &failure.key, failure.error.to_string(), round, &mut writes);
    }
    keep(run, &plan, &source, &source_rows, &mut writes);
    let planned = record(run, plan, &rows, round, writes)?;
    round.has_more = has_more;
    run.resume_after = if has_more { last.or(run.resume_after) } else { None };
    Ok(planned)
}

fn fail(run: &mut Run, key: &Key, reason: String, round: &mut Round, writes: &mut Writes) {
    run.counts.failed += 1;
    if round.failures.len() < NAMED {
        round.failures.push(convert::problem(key, reason.clone()));
    }
    writes.changes.push(Change { effect: SyncEffect::Failed, reason: Some(reason), ..change(run, key) });
}

/// A change of a key that says nothing yet.
pub(crate) fn change(run: &Run, key: &Key) -> Change {
    Change {
        id: Uuid::now_v7(),
        user: run.user,
        sync_id: run.id,
        source: run.source.clone(),
        target: run.target.clone(),
        key: key.clone(),
        node_id: None,
        effect: SyncEffect::Failed,
        reason: None,
        before: None,
        before_digest: None,
        after_digest: None,
        writes: 0,
        conflicts: Vec::new(),
        disputed: Vec::new(),
        is_sensitive: false,
        request_id: run.request_id,
        at: run.now,
    }
}

fn keep(run: &Run, plan: &Plan, source: &Memory, rows: &HashMap<Key, Uuid>, writes: &mut Writes) {
    for (key, state) in &plan.kept {
        let (Some(cell), Some(row)) = (source.get(key), rows.get(key)) else { continue };
        writes.kept.push(Kept {
            user: run.user,
            table: Table::of(key),
            row: *row,
            state: state.clone(),
            writes: cell.writes,
            is_sensitive: cell.attributes.sensitive,
            request_id: run.request_id,
            at: run.now,
        });
    }
}

/// Records what a plan writes.
fn record(
    run: &mut Run,
    plan: Plan,
    rows: &HashMap<Key, (Uuid, i64)>,
    round: &mut Round,
    mut writes: Writes,
) -> Result<Planned, Fault> {
    let mut conflicts: HashMap<Key, Vec<Conflict>> = HashMap::new();
    plan.conflicts.into_iter().for_each(|one| conflicts.entry(one.key.clone()).or_default().push(one));
    let mut disputes: HashMap<Key, Dispute> =
        plan.disputes.into_iter().map(|dispute| (dispute.key.clone(), dispute)).collect();
    let (mut raised, mut keys) = (Vec::new(), Vec::new());
    for mut write in plan.writes {
        let of_key = conflicts.remove(&write.key).unwrap_or_default();
        let dispute = disputes.remove(&write.key);
        // Where nothing is left to encrypt, the row says so.
        let holds =
            |cell: &Cell| cell.value.is_some() || cell.state.as_ref().is_some_and(KeyState::has_values);
        write.after.attributes.sensitive &= holds(&write.after);
        let is_sensitive = write.after.attributes.sensitive
            || write.before.as_ref().is_some_and(|cell| cell.attributes.sensitive && holds(cell))
            || of_key.iter().any(|conflict| conflict.sensitive && convert::holds_values(conflict))
            || dispute.as_ref().is_some_and(|dispute| dispute.sensitive);
        match write.effect {
            Effect::Created => run.counts.created += 1,
            Effect::FastForward => run.counts.fast_forwarded += 1,
            Effect::Merged => run.counts.merged += 1,
        }
        let of_key = of_key.iter().map(convert::conflict).collect::<Result<Vec<_>, Fault>>()?;
        run.counts.conflicts += u64::try_from(of_key.len()).unwrap_or(0);
        for conflict in &of_key {
            if round.conflicts.len() < NAMED {
                let shown =
                    if is_sensitive { super::write::without_values(conflict) } else { conflict.clone() };
                round.conflicts.push((write.key.name().to_owned(), shown));
            }
        }
        let mut change = change(run, &write.key);
        if let Some(dispute) = &dispute {
            run.counts.disputes += 1;
            let one = dispute::Raised::new(run, dispute)?;
            change.node_id = Some(one.node_id);
            change.disputed = one.values.clone();
            raised.push(one);
        }
        let applied = Applied::of(&write).map_err(|error| convert::unwritable(&error))?;
        let (row, version) = rows.get(&write.key).copied().unwrap_or_else(|| (Uuid::now_v7(), 1));
        change.effect = convert::effect(write.effect);
        change.before = write.before.as_ref().map(super::json);
        change.before_digest = write
            .before
            .as_ref()
            .map(Cell::digest)
            .transpose()
            .map_err(|error| convert::unwritable(&error))?;
        change.after_digest = Some(applied.after);
        change.writes = applied.writes;
        change.conflicts = of_key;
        change.is_sensitive = is_sensitive;
        writes.changes.push(change);
        keys.push(convert::synced(&write.key, Some((&write.after, version)), Some(write.effect))?);
        writes.cells.push(CellWrite {
            user: run.user,
            session: run.target.clone(),
            is_new: write.before.is_none(),
            key: write.key,
            row,
            cell: Some(write.after),
            request_id: run.request_id,
            at: run.now,
        });
    }
    round.has_written |= !keys.is_empty();
    round.events.extend(events::carried(run, keys));
    round.events.extend(raised.iter().map(|one| events::disputed(run, one)));
    Ok(Planned { writes, disputes: raised })
}

/// Another transaction wrote the sync meanwhile.
pub(crate) fn gone() -> Fault {
    Fault { kind: FaultKind::Transient, reason: "a sync was changed by another transaction".to_owned() }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use super::*;

    fn run(user: i32, source: &str, target: &str) -> Run {
        Run {
            user: UserId::new(user).unwrap(),
            id: Uuid::nil(),
            source: source.into(),
            target: target.into(),
            sync_type: SyncType::ContextTransfer,
            filter: contract::SyncFilter::default(),
            crosses_private: false,
            resume_after: None,
            pass_clock: 0,
            counts: contract::SyncCounts::default(),
            rounds: 0,
            may_decrypt: true,
            request_id: Uuid::nil(),
            now: chrono::DateTime::UNIX_EPOCH,
        }
    }

    #[test]
    fn no_sync_of_a_group_writes_what_another_one_reads_or_writes() {
        let groups = |runs: &[(i32, &str, &str)]| {
            groups(&runs.iter().map(|(user, source, target)| run(*user, source, target)).collect::<Vec<_>>())
        };
        assert_eq!(groups(&[(1, "a", "b"), (1, "a", "c"), (2, "b", "a")]), [vec![0, 1, 2]]);
        assert_eq!(groups(&[(1, "a", "b"), (1, "b", "a")]), [vec![0], vec![1]]);
        assert_eq!(groups(&[(1, "a", "b"), (1, "b", "c"), (1, "c", "a")]), [vec![0], vec![1], vec![2]]);
        assert_eq!(groups(&[(1, "a", "c"), (1, "b", "c"), (1, "d", "e")]), [vec![0, 2], vec![1]]);
        assert_eq!(groups(&[(1, "a", "b"), (1, "c", "a")]), [vec![0], vec![1]]);
    }
}
