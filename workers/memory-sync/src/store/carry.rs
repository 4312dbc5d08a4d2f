//! A round of syncs: what they compare is read and locked, `shared/sync` plans, and what it plans is written.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use ::store::{Connection, Fault, FaultKind};
use contract::{SyncEffect, SyncType, UserId};
use keys::OpenKeys;
use sync::{Applied, Cell, Conflict, Dispute, Effect, Key, KeyState, Memory, Plan, Rules, Sync};
use uuid::Uuid;

use super::cells::{self, Counted, Loaded};
use super::convert;
use super::dispute;
use super::events;
use super::rows::{Sealed, Stored};
use super::run::{Round, Run};
use super::share;
use super::syncs;
use super::table::Table;
use super::work::Work;
use super::write::{CellWrite, Change, Kept, Writes};

/// How many failures and conflicts a sync names outside of its history.
pub(crate) const NAMED: usize = 100;

/// Carries one round of each sync. Syncs that concern the same session are written after each other, in this order.
pub(crate) async fn round(
    connection: &mut Connection,
    rules: &Arc<Rules>,
    runs: &mut [Run],
    keys: &OpenKeys,
    work: &mut Work,
) -> Result<Vec<Round>, Fault> {
    let mut rounds: Vec<Round> = runs.iter().map(|_| Round::default()).collect();
    let sessions =
        runs.iter().flat_map(|run| [(run.user.get(), &*run.source), (run.user.get(), &*run.target)]);
    syncs::lock_sessions(connection, &sessions.collect()).await?;
    work.divide(runs.len());
    let mut writes = Writes::default();
    for group in groups(runs) {
        let (nodes, contexts): (Vec<usize>, Vec<usize>) =
            group.into_iter().partition(|index| runs[*index].sync_type == SyncType::KnowledgeShare);
        if !contexts.is_empty() {
            let planned = plan_group(connection, rules, runs, &contexts, keys, &mut rounds, work).await?;
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
    rules: &Arc<Rules>,
    runs: &mut [Run],
    group: &[usize],
    keys: &OpenKeys,
    rounds: &mut [Round],
    work: &mut Work,
) -> Result<Writes, Fault> {
    let of_group: Vec<&Run> = group.iter().map(|index| &runs[*index]).collect();
    let first: Vec<usize> =
        group.iter().copied().filter(|index| runs[*index].resume_after.is_none()).collect();
    let counting: Vec<&Run> = first.iter().map(|index| &runs[*index]).collect();
    let counted = cells::count(connection, &counting).await?;
    let portion = work.portion(of_group.len());
    let loaded = cells::load(connection, &of_group, keys, portion).await?;
    for read in &loaded {
        work.take_read(read.order.len(), read.bytes);
    }
    for (place, counted) in counted {
        if let Some(run) = first.get(place).and_then(|index| runs.get_mut(*index)) {
            count(run, &counted);
        }
    }
    let mut ready = Vec::new();
    for (index, loaded) in group.iter().zip(loaded) {
        let wanted = lacking(&loaded);
        if wanted.is_empty() {
            ready.push((*index, runs[*index].clone(), loaded));
        } else {
            rounds[*index].wanted = wanted;
        }
    }
    let mut writes = Writes::default();
    let mut disputes = Vec::new();
    for (index, planned) in plan_all(rules, ready, work.share()).await? {
        work.take(planned.cells);
        runs[index] = planned.run;
        rounds[index] = planned.round;
        disputes.extend(planned.disputes.into_iter().map(|one| (index, one)));
        writes.extend(planned.writes);
    }
    dispute::raise(connection, &mut disputes).await?;
    let nodes: HashMap<Uuid, Uuid> = disputes.iter().map(|(_, one)| (one.change, one.node_id)).collect();
    for change in &mut writes.changes {
        change.node_id = nodes.get(&change.id).copied();
    }
    for (index, one) in &disputes {
        let event = events::disputed(&runs[*index], one);
        rounds[*index].events.push(event);
    }
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

/// Plans syncs where it holds up no other task of the process.
async fn plan_all(
    rules: &Arc<Rules>,
    ready: Vec<(usize, Run, Loaded)>,
    share: usize,
) -> Result<Vec<(usize, Planned)>, Fault> {
    let rules = Arc::clone(rules);
    let planning = tokio::task::spawn_blocking(move || {
        let plan =
            |(index, run, loaded): (usize, Run, Loaded)| Ok((index, plan_one(&rules, run, loaded, share)?));
        ready.into_iter().map(plan).collect::<Result<Vec<_>, Fault>>()
    });
    planning.await.map_err(|error| Fault {
        kind: FaultKind::Transient,
        reason: format!("syncs could not be planned: {error}"),
    })?
}

/// A sync after a round, and what the round writes.
struct Planned {
    run: Run,
    round: Round,
    writes: Writes,
    disputes: Vec<dispute::Raised>,
    /// How many cells its texts took.
    cells: usize,
}

/// Plans a sync until its texts have taken its share, and what of it is on record.
fn plan_one(rules: &Rules, mut run: Run, loaded: Loaded, share: usize) -> Result<Planned, Fault> {
    let (mut source, mut target) = (Memory::new(), Memory::new());
    let (mut rows, mut source_rows) = (HashMap::new(), HashMap::new());
    let (mut writes, mut round) = (Writes::default(), Round::default());
    let Loaded { source: mut of_source, target: mut of_target, has_more, order, bytes: _ } = loaded;
    let mut sealed = Vec::new();
    for (id, key) in &order {
        let Some(stored) = of_source.remove(key) else { continue };
        match (stored, of_target.remove(key).transpose()) {
            (Ok(stored), Ok(other)) => {
                if let Some(other) = other {
                    rows.insert(key.clone(), (other.id, other.version));
                    target.insert(key.clone(), other.cell);
                }
                source_rows.insert(key.clone(), stored.id);
                source.insert(key.clone(), stored.cell);
            }
            (Err(why), _) | (_, Err(why)) => sealed.push((*id, key, why)),
        }
    }
    let filter = run.rule_filter();
    let keys = order.iter().map(|(_, key)| key);
    let mut plan = Sync {
        source: &run.source,
        target: &run.target,
        filter: &filter,
        scope: run.scope(),
        now: run.now,
        rules,
    }
    .plan_some(keys, &source, &target, share);
    // Rounds go on in the order of rows; what a round writes is in the order of keys, in which they are locked.
    plan.writes.sort_by(|a, b| a.key.cmp(&b.key));
    plan.kept.sort_by(|(a, _), (b, _)| a.cmp(b));
    plan.failures.sort_by(|a, b| a.key.cmp(&b.key));
    let end = plan.next.as_ref().and_then(|key| source_rows.get(key).copied());
    let is_before = |id: &Uuid| end.is_none_or(|end| *id < end);
    let looked_at: Vec<Uuid> = order.iter().map(|(id, _)| *id).filter(is_before).collect();
    run.counts.unchanged =
        run.counts.unchanged.saturating_sub(u64::try_from(looked_at.len()).unwrap_or(u64::MAX));
    for (_, key, why) in sealed.into_iter().filter(|(id, _, _)| is_before(id)) {
        match why {
            Sealed::Unreadable(problem) => {
                let reason = format!("it cannot be read: {problem}");
                fail(&mut run, key, reason, &mut round, &mut writes);
            }
            Sealed::Encrypted | Sealed::Lacks(_) => run.counts.encrypted += 1,
        }
    }
    run.counts.unchanged += u64::try_from(plan.unchanged).unwrap_or(0);
    for failure in &plan.failures {
        let held = [source.get(&failure.key), target.get(&failure.key)];
        let is_sensitive = held.into_iter().flatten().any(|cell| cell.attributes.sensitive);
        let reason = if is_sensitive { failure.error.without_values() } else { failure.error.to_string() };
        fail(&mut run, &failure.key, reason, &mut round, &mut writes);
    }
    keep(&run, &plan, &source, &source_rows, &mut writes);
    let cells = plan.cells;
    let disputes = record(&mut run, plan, &rows, &mut round, &mut writes)?;
    round.is_cut = end.is_some();
    round.has_more = has_more || round.is_cut;
    run.resume_after = if round.has_more { looked_at.last().copied().or(run.resume_after) } else { None };
    Ok(Planned { run, round, writes, disputes, cells })
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
    writes: &mut Writes,
) -> Result<Vec<dispute::Raised>, Fault> {
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
            let one = dispute::Raised::new(run, change.id, dispute)?;
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
    Ok(raised)
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
