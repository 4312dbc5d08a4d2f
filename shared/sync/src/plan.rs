//! What a sync writes: the state of the source's and the target's keys in, writes, conflicts and failures out.

use std::collections::BTreeMap;

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

use crate::cell::Cell;
use crate::clock::runs_ahead;
use crate::conflict::{Cause, Clash, Conflict, Dispute, Step, Unmergeable};
use crate::filter::{Filter, Scope, Stays, crosses};
use crate::json::Json;
use crate::key::Key;
use crate::rules::{Rule, Rules};
use crate::state::{KeyState, Shown};
use crate::vector::{Relation, Session};

/// The most arrays and objects that a cell with its state may nest: `serde_json` reads no more. Each object of a value takes three.
const NESTING: usize = 127;

/// What a session holds.
pub type Memory = BTreeMap<Key, Cell>;

/// A sync: what is carried from where to where, under what.
#[derive(Clone, Copy, Debug)]
pub struct Sync<'a> {
    /// The session that is read.
    pub source: &'a Session,
    /// The session that is written.
    pub target: &'a Session,
    /// Which keys are asked for.
    pub filter: &'a Filter,
    /// What the token allows.
    pub scope: Scope,
    /// The time, to tell what has expired and which clocks run ahead.
    pub now: DateTime<Utc>,
    /// The rules.
    pub rules: &'a Rules,
}

/// What a write does to the target.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Effect {
    /// The target did not have the key.
    Created,
    /// The source knew all that the target knew.
    FastForward,
    /// Both had written.
    Merged,
}

/// A key of the target to write.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Write {
    /// The key.
    pub key: Key,
    /// What it does.
    pub effect: Effect,
    /// The cell before, with the session's own writes taken in; absent: there was none.
    pub before: Option<Cell>,
    /// The cell after.
    pub after: Cell,
}

/// A key that was not synced, and why.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Failure {
    /// The key.
    pub key: Key,
    /// Why.
    pub error: Unmergeable,
}

/// What a sync does.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Plan {
    /// What is written to the target.
    pub writes: Vec<Write>,
    /// States that are written to the source, beside values that stay as they are. What left a session must be kept there as
    /// the ancestor of its next write: in the same transaction.
    pub kept: Vec<(Key, KeyState)>,
    /// What rules decided, for the column `conflict_resolution`.
    pub conflicts: Vec<Conflict>,
    /// What no rule may decide. A disputed node is to be raised for each.
    pub disputes: Vec<Dispute>,
    /// Keys that cannot be merged. The others are not affected.
    pub failures: Vec<Failure>,
    /// Keys that were asked for and may not leave the source.
    pub stays: Vec<(Key, Stays)>,
    /// How many keys the target knew already.
    pub unchanged: usize,
    /// How many keys were not looked at, because as many as one sync may write are written, or as much as it may compute is
    /// computed. The next sync goes on with them.
    pub left: usize,
    /// The first of these.
    pub next: Option<Key>,
    /// How many cells of tables all texts took: what can be large although the keys are small.
    pub cells: usize,
}

/// What becomes of one key.
enum Outcome {
    Unchanged,
    Written(Box<Written>),
}

struct Written {
    write: Write,
    kept: Option<KeyState>,
    conflicts: Vec<Conflict>,
    dispute: Option<Dispute>,
}

impl Sync<'_> {
    /// Plans a sync. `source` and `target` may be limited to the keys that the filter can match.
    pub fn plan(&self, source: &Memory, target: &Memory) -> Plan {
        self.plan_some(source.keys(), source, target, usize::MAX)
    }

    /// Plans these keys of the source, in this order, until their texts have taken as many cells as this. One key is planned in any
    /// case. What is left is not planned in another way: another sync goes on with it, and has the same result.
    pub fn plan_some<'k>(
        &self,
        keys: impl IntoIterator<Item = &'k Key>,
        source: &Memory,
        target: &Memory,
        cells: usize,
    ) -> Plan {
        let mut plan = Plan::default();
        let held = keys.into_iter().filter_map(|key| source.get_key_value(key));
        for (key, cell) in held.filter(|(key, cell)| self.filter.matches(key, cell)) {
            if plan.next.is_some()
                || plan.writes.len() >= self.rules.limits.keys
                || plan.cells > 0 && plan.cells >= cells
            {
                plan.left += 1;
                if plan.next.is_none() {
                    plan.next = Some(key.clone());
                }
                continue;
            }
            if let Err(stays) = self.crosses(key, cell) {
                plan.stays.push((key.clone(), stays));
                continue;
            }
            match self.key(key, cell, target.get(key), &mut plan.cells) {
                Ok(Outcome::Unchanged) => plan.unchanged += 1,
                Ok(Outcome::Written(written)) => {
                    let Written { write, kept, conflicts, dispute } = *written;
                    plan.writes.push(write);
                    plan.kept.extend(kept.map(|state| (key.clone(), state)));
                    plan.conflicts.extend(conflicts);
                    plan.disputes.extend(dispute);
                }
                Err(error) => plan.failures.push(Failure { key: key.clone(), error }),
            }
        }
        plan
    }

    /// Erasure crosses whatever the key was.
    fn crosses(&self, key: &Key, cell: &Cell) -> Result<(), Stays> {
        if cell.state.as_ref().is_some_and(KeyState::is_erased) {
            return Ok(());
        }
        crosses(key, cell, self.scope, self.now)
    }

    /// What becomes of a key. What its texts take is added to `cells`, also if it fails.
    fn key(
        &self,
        key: &Key,
        source: &Cell,
        target: Option<&Cell>,
        cells: &mut usize,
    ) -> Result<Outcome, Unmergeable> {
        let mut absorbed = |session: &Session, cell: &Cell| {
            let state = cell.state.clone().unwrap_or_default();
            state.absorb_counted(session, cell, key, self.rules, cells)
        };
        let theirs = absorbed(self.source, source);
        let ours = target.map(|cell| absorbed(self.target, cell));
        let joined = ours.as_ref().map_or_else(|| theirs.clone(), |ours| ours.join(&theirs));
        if ours.as_ref() == Some(&joined) {
            return Ok(Outcome::Unchanged);
        }
        let kept = (source.state.as_ref() != Some(&theirs)).then(|| theirs.clone());
        // A state that is kept may be larger than what it is joined to: that has less of what was superseded.
        for state in kept.iter().chain([&joined]) {
            self.check_state(state)?;
        }
        for state in ours.iter().chain([&theirs, &joined]) {
            limit("the nesting of its state", state.nesting(), NESTING)?;
        }
        let shown = joined.shown(key, self.target, self.rules, cells)?;
        self.check_value(shown.value.as_ref())?;
        let (conflicts, dispute) = self.conflicts(key, source, target.zip(ours.as_ref()), &shown, cells)?;
        let effect = match ours.as_ref().map(|ours| ours.relation(&theirs)) {
            None => Effect::Created,
            Some(Relation::Dominated) => Effect::FastForward,
            Some(Relation::Equal | Relation::Dominating | Relation::Concurrent) => Effect::Merged,
        };
        let before = target.map(|cell| Cell { state: ours, ..cell.clone() });
        let after = Cell {
            value: shown.value,
            attributes: shown.attributes,
            writes: before.as_ref().map_or(0, |cell| cell.writes),
            // Without a write of its own, there is no time of one.
            written_at: before.as_ref().map_or(DateTime::UNIX_EPOCH, |cell| cell.written_at),
            state: Some(joined),
        };
        let write = Write { key: key.clone(), effect, before, after };
        Ok(Outcome::Written(Box::new(Written { write, kept, conflicts, dispute })))
    }

    fn check_state(&self, state: &KeyState) -> Result<(), Unmergeable> {
        let (limits, ahead_ms) = (&self.rules.limits, self.rules.ahead_ms);
        limit("the number of sessions that wrote the key", state.vector().len(), limits.sessions)?;
        limit(
            "the size of its state",
            serde_json::to_vec(state).map_or(usize::MAX, |text| text.len()),
            limits.state_bytes,
        )?;
        match state.newest() {
            Some(stamp) if runs_ahead(stamp.time, self.now, ahead_ms) => {
                Err(Unmergeable::ClockAhead { session: stamp.session.to_string(), ahead_ms })
            }
            Some(_) | None => Ok(()),
        }
    }

    fn check_value(&self, value: Option<&Json>) -> Result<(), Unmergeable> {
        let Some(value) = value else { return Ok(()) };
        limit("the nesting of the value", value.depth(), self.rules.limits.depth)?;
        limit("the size of the value", value.to_string().len(), self.rules.limits.value_bytes)
    }

    /// The conflicts that the target did not have before.
    fn conflicts(
        &self,
        key: &Key,
        source: &Cell,
        target: Option<(&Cell, &KeyState)>,
        shown: &Shown,
        cells: &mut usize,
    ) -> Result<(Vec<Conflict>, Option<Dispute>), Unmergeable> {
        let known = match target {
            Some((_, ours)) if !shown.clashes.is_empty() => {
                ours.shown(key, self.target, self.rules, cells).map_or(Vec::new(), |before| before.clashes)
            }
            Some(_) | None => Vec::new(),
        };
        // By their paths: there may be as many as a state has parts.
        let mut of_path: BTreeMap<&[Step], Vec<&Clash>> = BTreeMap::new();
        known.iter().for_each(|clash| of_path.entry(&clash.path).or_default().push(clash));
        let is_new = |clash: &&Clash| {
            of_path.get(clash.path.as_slice()).is_none_or(|known| !known.iter().any(|old| old.is(clash)))
        };
        let new: Vec<_> = shown.clashes.iter().filter(is_new).collect();
        limit("the number of conflicts", new.len(), self.rules.limits.conflicts)?;
        let target = target.map(|(cell, _)| cell);
        let sensitive = [Some(source), target].iter().flatten().any(|cell| cell.attributes.sensitive)
            || shown.attributes.sensitive;
        let (of_attributes, of_value): (Vec<_>, Vec<_>) =
            new.into_iter().partition(|clash| clash.cause == Cause::Attributes);
        let (mut in_ours, mut in_theirs) =
            (Parts::new(target, &shown.rule), Parts::new(Some(source), &shown.rule));
        let conflict = |clash: &&Clash| Conflict {
            key: key.clone(),
            path: clash.path.clone(),
            cause: clash.cause,
            rule: shown.rule.merge,
            base: clash.base.clone(),
            ours: in_ours.of(clash),
            theirs: in_theirs.of(clash),
            kept: clash.kept.clone(),
            lost: clash.lost.clone(),
            sensitive,
        };
        if !shown.rule.merge.is_atomic() {
            return Ok((of_value.iter().chain(&of_attributes).map(conflict).collect(), None));
        }
        let mut values: Vec<_> = of_value.iter().flat_map(|clash| clash.candidates.clone()).collect();
        values.sort_by(|a, b| a.stamp.cmp(&b.stamp));
        values.dedup();
        let dispute = Dispute { key: key.clone(), rule: shown.rule.merge, values, sensitive };
        Ok((of_attributes.iter().map(conflict).collect(), (!of_value.is_empty()).then_some(dispute)))
    }
}

impl Plan {
    /// Writes the plan into the two memories it was made from.
    pub fn apply(&self, source: &mut Memory, target: &mut Memory) {
        for (key, state) in &self.kept {
            if let Some(cell) = source.get_mut(key) {
                // A sync in the other direction, planned from the same memories, may have been written first.
                cell.state =
                    Some(cell.state.as_ref().map_or_else(|| state.clone(), |known| known.join(state)));
            }
        }
        for write in &self.writes {
            target.insert(write.key.clone(), write.after.clone());
        }
    }

    /// Whether anything is written. A sync that finds nothing new is at rest.
    pub fn is_empty(&self) -> bool {
        self.writes.is_empty()
    }
}

/// A session that a sync names is not among those that were read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("session {0:?} has not been read; read every session that a sync of the round names")]
pub struct NotRead(pub String);

/// Plans a round of syncs, each after the other, and writes them into the memories: what is read once and written once gives the
/// same as if each sync had been a round of its own.
///
/// # Errors
/// If a session is not among the memories, for its syncs only.
pub fn round(memories: &mut BTreeMap<Session, Memory>, syncs: &[Sync<'_>]) -> Vec<Result<Plan, NotRead>> {
    let mut plans = Vec::with_capacity(syncs.len());
    for sync in syncs {
        plans.push(one(memories, sync));
    }
    plans
}

fn one(memories: &mut BTreeMap<Session, Memory>, sync: &Sync<'_>) -> Result<Plan, NotRead> {
    let not_read = |session: &Session| NotRead(session.to_string());
    let mut source = memories.remove(sync.source).ok_or_else(|| not_read(sync.source))?;
    let planned = match memories.get_mut(sync.target) {
        Some(target) => {
            let plan = sync.plan(&source, target);
            plan.apply(&mut source, target);
            Ok(plan)
        }
        None => Err(not_read(sync.target)),
    };
    memories.insert(sync.source.clone(), source);
    planned
}

fn limit(what: &str, value: usize, limit: usize) -> Result<(), Unmergeable> {
    if value > limit { Err(Unmergeable::Limit { what: what.into(), value, limit }) } else { Ok(()) }
}

/// What a cell holds where there are conflicts. The items of a list are put in order once, not looked through for each conflict.
struct Parts<'a> {
    cell: Option<&'a Cell>,
    rule: &'a Rule,
    /// The items of the lists at these paths, by the text of their identifying member.
    items: BTreeMap<Vec<Step>, BTreeMap<String, &'a Json>>,
}

impl<'a> Parts<'a> {
    fn new(cell: Option<&'a Cell>, rule: &'a Rule) -> Self {
        Self { cell, rule, items: BTreeMap::new() }
    }

    fn of(&mut self, clash: &Clash) -> Option<Json> {
        match clash.cause {
            Cause::Attributes => attributes(self.cell?),
            Cause::Edited | Cause::Removed | Cause::Shape => self.part(&clash.path).cloned(),
        }
    }

    /// The part that a path leads to.
    fn part(&mut self, path: &[Step]) -> Option<&'a Json> {
        let mut part = self.cell?.value.as_ref()?;
        for (at, step) in path.iter().enumerate() {
            part = match (step, part) {
                (Step::Member(name), Json::Object(members)) => members.get(name)?,
                (Step::Item(id), Json::List(items)) => {
                    let rule = self.rule;
                    let of_list = self.items.entry(path[..at].to_vec()).or_insert_with(|| by_id(items, rule));
                    of_list.get(id).copied()?
                }
                _ => return None,
            };
        }
        Some(part)
    }
}

fn by_id<'a>(items: &'a [Json], rule: &Rule) -> BTreeMap<String, &'a Json> {
    let mut by_id = BTreeMap::new();
    for item in items {
        if let (Json::Object(members), Some(name)) = (item, &rule.id)
            && let Some(id) = members.get(name)
        {
            by_id.entry(id.to_string()).or_insert(item);
        }
    }
    by_id
}

fn attributes(cell: &Cell) -> Option<Json> {
    Json::parse(&serde_json::to_string(&cell.attributes).ok()?).ok()
}
