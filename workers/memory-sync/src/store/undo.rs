//! `sync.undo`: the target goes back to what it was, key by key, where nothing newer depends on it.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use ::store::{Connection, Fault};
use contract::{SyncEnd, SyncProblem, SyncUndo, SyncUndone, UserId};
use diesel::QueryableByName;
use diesel::sql_types::{Array, BigInt, Integer, Nullable, Text, Uuid as SqlUuid};
use diesel_async::RunQueryDsl;
use keys::OpenKeys;
use runtime::{Reason, Retry, Verdict};
use sync::{Applied, Cell, Dependent, Key, Later, Memory, Rules, Undo};
use uuid::Uuid;

use super::batch::{Item, Verdicts};
use super::carry::NAMED;
use super::cells;
use super::changes::{self, CHANGE_BYTES, Chain};
use super::rows::{self, Sealed, Stored};
use super::run::{Run, State};
use super::start::waits_for_keys;
use super::syncs::{self, Progress};
use super::work::Work;
use super::write::{CellWrite, Writes};
use super::{convert, events};
use crate::Message;
use crate::prepare::WantedKeys;

/// The most changes that one request takes back. Another request goes on.
const CHANGES: i32 = 5_000;
/// How often one request reads on where all that it has read stays, if the batch may still read.
const PAGES: usize = 32;
/// Why an undo changes nothing that stands in a batch with another one of its sync.
const REPEATED: &str =
    "another undo of the sync was processed with it; send it again if something is left to take back";
/// How long an undo waits for a batch that has something left to read.
const TURN_WITHIN: chrono::TimeDelta = chrono::TimeDelta::days(1);

/// What other syncs did later to keys of the target, or carried on from it.
const LATER: &str = "
    SELECT c.sync_id, c.source_session_id::text AS source, c.target_session_id::text AS target, c.agent_id::text AS agent_id,
        c.memory_tier::text AS memory_tier, c.context_key::text AS context_key, max(c.position) AS position
    FROM sync_changes c
    WHERE c.user_id = $1 AND c.sync_id <> $2 AND c.undone_at IS NULL AND c.after_digest IS NOT NULL AND c.position > $3
        AND (c.source_session_id = $4 OR c.target_session_id = $4) AND c.context_key = ANY ($5)
    GROUP BY c.sync_id, c.source_session_id, c.target_session_id, c.agent_id, c.memory_tier, c.context_key";

const FORGET_REFERENCES: &str = "
    WITH found AS MATERIALIZED (
        SELECT k.user_id, k.id, k.node_id FROM session_knowledge k WHERE k.user_id = $1 AND k.sync_id = $2
    )
    SELECT f.node_id AS id FROM found f JOIN sec.delete_rows('session_knowledge', ARRAY(SELECT user_id FROM found), ARRAY(SELECT id FROM found)) AS g
        ON g.user_id = f.user_id AND g.id = f.id";

/// References that other syncs found in the target are not theirs, so nothing depends on them.
const MARK: &str = "
    UPDATE sync_changes SET undone_at = clock_timestamp() WHERE user_id = $1 AND id = ANY ($2)";
const MARK_REFERENCES: &str = "
    UPDATE sync_changes SET undone_at = clock_timestamp()
    WHERE user_id = $1 AND sync_id = $2 AND effect = 'referenced' AND undone_at IS NULL";

#[derive(QueryableByName)]
struct LaterRow {
    #[diesel(sql_type = SqlUuid)]
    sync_id: Uuid,
    #[diesel(sql_type = Text)]
    source: String,
    #[diesel(sql_type = Text)]
    target: String,
    #[diesel(sql_type = Nullable<Text>)]
    agent_id: Option<String>,
    #[diesel(sql_type = Nullable<Text>)]
    memory_tier: Option<String>,
    #[diesel(sql_type = Text)]
    context_key: String,
    #[diesel(sql_type = BigInt)]
    position: i64,
}

#[derive(QueryableByName)]
struct Node {
    #[diesel(sql_type = SqlUuid)]
    id: Uuid,
}

/// Takes syncs back. All undos of a batch share what it may read; those that find nothing left have their turn in a later batch.
pub(crate) async fn undo(
    connection: &mut Connection,
    rules: &Rules,
    items: &[Item<'_, SyncUndo>],
    keys: &OpenKeys,
    wanted: &WantedKeys,
    verdicts: &mut Verdicts,
    work: &mut Work,
) -> Result<(), Fault> {
    if items.is_empty() {
        return Ok(());
    }
    let ids: BTreeSet<_> = items.iter().map(|item| (item.user(), item.request.sync_id)).collect();
    let known = syncs::lock(connection, &ids).await?;
    let (mut taken, mut waiting) = (HashSet::new(), HashSet::new());
    for item in items {
        let id = (item.user(), item.request.sync_id);
        let Some(row) = known.get(&id) else { continue };
        if waiting.contains(&id) || !taken.contains(&id) && work.is_used_up() {
            waiting.insert(id);
            verdicts.set(item.index, waits_for_turn(item.message));
            continue;
        }
        if !taken.insert(id) {
            verdicts.set(item.index, Verdict::Unchanged(REPEATED.into()));
            continue;
        }
        let run = row.run(item.message.request_id, true)?;
        let reason = item.request.reason.as_ref().map(|reason| reason.as_str().to_owned());
        let verdict = match undo_one(connection, &run, reason, row.is_running(), keys, work).await? {
            Undone::Lacks(lacking) => {
                wanted.note(lacking);
                waiting.insert(id);
                waits_for_keys(item.message)
            }
            Undone::Waits => {
                waiting.insert(id);
                waits_for_turn(item.message)
            }
            Undone::Nothing => Verdict::unchanged(item.message),
            Undone::Done(undone) => {
                let (is_undone, was_running) =
                    (!undone.restored.is_empty() || !undone.nodes.is_empty(), row.is_running());
                if is_undone || was_running {
                    let state = if was_running { State::completed(SyncEnd::Undone) } else { row.state() };
                    let progress = Progress { run: &run, state, round: None, is_undone };
                    syncs::advance(connection, rules, &[progress]).await?;
                }
                Verdict::Applied(events::undone(&run, *undone))
            }
        };
        verdicts.set(item.index, verdict);
    }
    Ok(())
}

/// Its message is delivered again at once, with others that came later.
fn waits_for_turn(message: &Message) -> Verdict {
    let retry = Retry::NotBefore { time: message.stored_at, deadline: message.stored_at + TURN_WITHIN };
    Verdict::Retry(retry, Reason::new("other undos are processed first"))
}

enum Undone {
    /// Data keys are not open.
    Lacks(Vec<(UserId, u32)>),
    /// Others have used up what the batch may read, and it has taken nothing back so far.
    Waits,
    /// There is nothing to take back.
    Nothing,
    Done(Box<SyncUndone>),
}

async fn undo_one(
    connection: &mut Connection,
    run: &Run,
    reason: Option<String>,
    is_running: bool,
    keys: &OpenKeys,
    work: &mut Work,
) -> Result<Undone, Fault> {
    syncs::lock_sessions(connection, &BTreeSet::from([(run.user.get(), &*run.target)])).await?;
    let (has_all_of_it, mut below, mut left) = (work.is_whole(), i64::MAX, CHANGES);
    let (mut restored, mut problems, mut staying) = (Vec::new(), Vec::new(), BTreeSet::<Key>::new());
    // What stays is read again by each request, and must not keep it from what is behind.
    for _ in 0..PAGES {
        if left <= 0 || !restored.is_empty() || work.is_used_up() {
            break;
        }
        let changes = changes::load(connection, run, below, left).await?;
        work.take_read(0, changes.len() * CHANGE_BYTES);
        let Some(last) = changes.last() else { break };
        below = last.position;
        left = left.saturating_sub(i32::try_from(changes.len()).unwrap_or(i32::MAX));
        let mut chains = changes::chains(changes)?;
        chains.retain(|key, _| !staying.contains(key));
        match take_back(connection, run, &chains, keys, work).await? {
            Taken::Lacks(lacking) => return Ok(Undone::Lacks(lacking)),
            Taken::Back(back, stay) => {
                restored = back;
                problems.extend(stay);
            }
        }
        staying.extend(chains.into_keys());
    }
    if restored.is_empty() && work.is_used_up() && !has_all_of_it {
        return Ok(Undone::Waits);
    }
    let nodes = forget_references(connection, run).await?;
    if restored.is_empty() && nodes.is_empty() && problems.is_empty() && !is_running {
        return Ok(Undone::Nothing);
    }
    let staying = u64::try_from(problems.len()).unwrap_or(u64::MAX);
    problems.truncate(NAMED);
    Ok(Undone::Done(Box::new(SyncUndone {
        sync_id: run.id,
        source_session_id: run.source.to_string(),
        target_session_id: run.target.to_string(),
        restored,
        nodes,
        dependents: problems,
        staying,
        reason,
    })))
}

/// What became of some keys.
enum Taken {
    /// Data keys are not open.
    Lacks(Vec<(UserId, u32)>),
    /// These went back, and these stay.
    Back(Vec<contract::SyncedKey>, Vec<SyncProblem>),
}

async fn take_back(
    connection: &mut Connection,
    run: &Run,
    chains: &BTreeMap<Key, Chain>,
    keys: &OpenKeys,
    work: &mut Work,
) -> Result<Taken, Fault> {
    let named: Vec<Key> = chains.keys().cloned().collect();
    let (cells, bytes) = cells::load_keys(connection, run.user, &run.target, &named, keys).await?;
    work.take_read(0, bytes);
    let (befores, bytes) = changes::befores(connection, chains, keys).await?;
    work.take_read(0, bytes);
    let lacks = |sealed: &Sealed| match sealed {
        Sealed::Lacks(key) => Some(*key),
        Sealed::Encrypted | Sealed::Unreadable(_) => None,
    };
    let lacking: BTreeSet<(UserId, u32)> = cells
        .values()
        .filter_map(|stored| stored.as_ref().err())
        .chain(befores.values().filter_map(|before| before.as_ref().err()))
        .filter_map(lacks)
        .collect();
    if !lacking.is_empty() {
        return Ok(Taken::Lacks(lacking.into_iter().collect()));
    }
    let later = later(connection, run, chains).await?;
    let (undo, mut problems) = plan(run, chains, &cells, befores, &later)?;
    let restored = restore(connection, run, &undo, chains, &cells, keys).await?;
    problems.extend(
        undo.dependents.iter().map(|dependent| convert::problem(key_of(dependent), dependent.to_string())),
    );
    Ok(Taken::Back(restored, problems))
}

fn key_of(dependent: &Dependent) -> &Key {
    match dependent {
        Dependent::Written(key) | Dependent::Erased(key) | Dependent::Changed(key) => key,
        Dependent::Synced { key, .. } | Dependent::Carried { key, .. } => key,
    }
}

/// Syncs that wrote or carried on keys of the target after this one.
async fn later(
    connection: &mut Connection,
    run: &Run,
    chains: &BTreeMap<Key, Chain>,
) -> Result<Vec<Later>, Fault> {
    let Some(first) = chains.values().map(|chain| chain.position).min() else { return Ok(Vec::new()) };
    let names: Vec<&str> = chains.keys().map(Key::name).collect();
    let query = diesel::sql_query(LATER)
        .bind::<Integer, _>(run.user.get())
        .bind::<SqlUuid, _>(run.id)
        .bind::<BigInt, _>(first)
        .bind::<Text, _>(&*run.target)
        .bind::<Array<Text>, _>(names);
    let rows: Vec<LaterRow> = ::store::prepared(query).load(connection).await?;
    let mut later: BTreeMap<(Uuid, String, String), BTreeSet<Key>> = BTreeMap::new();
    for row in rows {
        let key = rows::key_of(row.agent_id.as_deref(), row.memory_tier.as_deref(), &row.context_key)?;
        if chains.get(&key).is_some_and(|chain| row.position > chain.position) {
            later.entry((row.sync_id, row.source, row.target)).or_default().insert(key);
        }
    }
    let one = |((sync, source, target), keys): ((Uuid, String, String), BTreeSet<Key>)| Later {
        sync: sync.to_string(),
        source: source.into(),
        target: target.into(),
        keys,
    };
    Ok(later.into_iter().map(one).collect())
}

/// What is restored, and which keys stay because they cannot be read.
fn plan(
    run: &Run,
    chains: &BTreeMap<Key, Chain>,
    cells: &HashMap<Key, Result<Stored, Sealed>>,
    mut befores: HashMap<Uuid, Result<Option<Cell>, Sealed>>,
    later: &[Later],
) -> Result<(Undo, Vec<SyncProblem>), Fault> {
    let (mut applied, mut memory, mut problems) = (Vec::new(), Memory::new(), Vec::new());
    for (key, chain) in chains {
        let unreadable = |sealed: &Sealed| match sealed {
            Sealed::Unreadable(problem) => problem.clone(),
            Sealed::Encrypted | Sealed::Lacks(_) => "its data key is not open".to_owned(),
        };
        let before = befores.remove(&chain.first.id).unwrap_or(Ok(None));
        let stored = cells.get(key);
        if let Some(sealed) = before.as_ref().err().or(stored.and_then(|stored| stored.as_ref().err())) {
            let reason = format!("it cannot be read: {}", unreadable(sealed));
            problems.push(convert::problem(key, reason));
            continue;
        }
        if let Some(Ok(stored)) = stored {
            memory.insert(key.clone(), stored.cell.clone());
        }
        let before = before.unwrap_or(None);
        let (writes, after) = (chain.writes, chain.after.clone());
        applied.push(Applied { key: key.clone(), before, writes, after });
    }
    let undo =
        Undo::plan(&run.target, &applied, &memory, later).map_err(|error| convert::unwritable(&error))?;
    Ok((undo, problems))
}

/// Writes what is restored, and marks its changes as taken back.
async fn restore(
    connection: &mut Connection,
    run: &Run,
    undo: &Undo,
    chains: &BTreeMap<Key, Chain>,
    cells: &HashMap<Key, Result<Stored, Sealed>>,
    keys: &OpenKeys,
) -> Result<Vec<contract::SyncedKey>, Fault> {
    let (mut writes, mut marked, mut restored) = (Writes::default(), Vec::new(), Vec::new());
    for (key, cell) in &undo.restore {
        let Some(Ok(stored)) = cells.get(key) else { continue };
        marked.extend(chains.get(key).into_iter().flat_map(|chain| chain.changes.iter().copied()));
        let shown = cell.as_ref().map(|cell| (cell, stored.version));
        restored.push(convert::synced(key, shown, None)?);
        writes.cells.push(CellWrite {
            user: run.user,
            session: run.target.clone(),
            key: key.clone(),
            row: stored.id,
            is_new: false,
            cell: cell.clone(),
            request_id: run.request_id,
            at: run.now,
        });
    }
    writes.write(connection, keys.current()).await?;
    if !marked.is_empty() {
        let query =
            diesel::sql_query(MARK).bind::<Integer, _>(run.user.get()).bind::<Array<SqlUuid>, _>(marked);
        ::store::prepared(query).execute(connection).await?;
    }
    Ok(restored)
}

async fn forget_references(connection: &mut Connection, run: &Run) -> Result<Vec<Uuid>, Fault> {
    let query =
        diesel::sql_query(FORGET_REFERENCES).bind::<Integer, _>(run.user.get()).bind::<SqlUuid, _>(run.id);
    let nodes: Vec<Node> = ::store::prepared(query).load(connection).await?;
    if !nodes.is_empty() {
        let query =
            diesel::sql_query(MARK_REFERENCES).bind::<Integer, _>(run.user.get()).bind::<SqlUuid, _>(run.id);
        ::store::prepared(query).execute(connection).await?;
    }
    let mut nodes: Vec<Uuid> = nodes.into_iter().map(|node| node.id).collect();
    nodes.sort_unstable();
    Ok(nodes)
}
