//! A sync on its way: what is asked for, how far it is, and what a round did.

use chrono::{DateTime, Utc};
use contract::{SyncCounts, SyncEnd, SyncFilter, SyncProblem, SyncStatus, SyncType, UserId};
use runtime::EventDraft;
use sync::{Filter, Scope, Session};
use uuid::Uuid;

/// A sync and how far it is.
#[derive(Clone, Debug)]
pub(crate) struct Run {
    pub(crate) user: UserId,
    pub(crate) id: Uuid,
    pub(crate) source: Session,
    pub(crate) target: Session,
    pub(crate) sync_type: SyncType,
    pub(crate) filter: SyncFilter,
    pub(crate) crosses_private: bool,
    /// The id of the row after which the round goes on.
    pub(crate) resume_after: Option<Uuid>,
    /// The logical time of the source when this pass over its keys began.
    pub(crate) pass_clock: i64,
    /// How much has been carried so far.
    pub(crate) counts: SyncCounts,
    pub(crate) rounds: i64,
    /// Whether the message may decrypt: it is a request, under a token.
    pub(crate) may_decrypt: bool,
    pub(crate) request_id: Uuid,
    /// When the round is written: the time of the database.
    pub(crate) now: DateTime<Utc>,
}

impl Run {
    pub(crate) fn scope(&self) -> Scope {
        Scope { private: self.crosses_private }
    }

    pub(crate) fn rule_filter(&self) -> Filter {
        let SyncFilter { keys, prefixes, types, access_levels, tiers } = &self.filter;
        let texts = |names: &[contract::Name]| names.iter().map(|name| name.as_str().to_owned()).collect();
        Filter {
            keys: texts(keys.as_slice()),
            prefixes: texts(prefixes.as_slice()),
            types: types.as_slice().to_vec(),
            access_levels: access_levels.as_slice().to_vec(),
            tiers: tiers.as_slice().to_vec(),
        }
    }

    /// Begins a pass over all keys of the source, whose logical time is this one.
    pub(crate) fn begin_pass(&mut self, clock: i64) {
        self.pass_clock = clock;
        self.resume_after = None;
        let SyncCounts { created, fast_forwarded, merged, conflicts, disputes, references, .. } = self.counts;
        self.counts = SyncCounts {
            created,
            fast_forwarded,
            merged,
            conflicts,
            disputes,
            references,
            ..SyncCounts::default()
        };
    }
}

/// What a round did.
#[derive(Debug, Default)]
pub(crate) struct Round {
    /// What happened, in order.
    pub(crate) events: Vec<EventDraft>,
    /// Whether it wrote anything into its target.
    pub(crate) has_written: bool,
    /// Whether keys are left.
    pub(crate) has_more: bool,
    /// Whether they are left because it has computed its share.
    pub(crate) is_cut: bool,
    /// Keys that cannot be merged, a hundred at most.
    pub(crate) failures: Vec<SyncProblem>,
    /// What rules decided, for the column `conflict_resolution`: a hundred at most.
    pub(crate) conflicts: Vec<(String, contract::SyncConflict)>,
    /// Data keys that it needs and that are not open.
    pub(crate) wanted: Vec<(UserId, u32)>,
}

/// How a sync goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct State {
    pub(crate) status: SyncStatus,
    pub(crate) end: Option<SyncEnd>,
}

impl State {
    pub(crate) const RUNNING: Self = Self { status: SyncStatus::InProgress, end: None };

    pub(crate) fn completed(end: SyncEnd) -> Self {
        Self { status: SyncStatus::Completed, end: Some(end) }
    }

    pub(crate) fn failed(end: SyncEnd) -> Self {
        Self { status: SyncStatus::Failed, end: Some(end) }
    }

    /// After a round.
    pub(crate) fn after(run: &Run, has_more: bool) -> Self {
        match run.sync_type {
            SyncType::StateSync => Self::RUNNING,
            SyncType::ContextTransfer | SyncType::KnowledgeShare if has_more => Self::RUNNING,
            SyncType::ContextTransfer | SyncType::KnowledgeShare => Self::completed(SyncEnd::Carried),
        }
    }
}

impl Round {
    /// Adds the round that follows.
    pub(crate) fn extend(&mut self, next: Self) {
        let Self { events, has_written, has_more, is_cut, failures, conflicts, wanted } = next;
        self.events.extend(events);
        self.has_written |= has_written;
        self.has_more = has_more;
        self.is_cut = is_cut;
        self.failures.extend(failures);
        self.failures.truncate(super::carry::NAMED);
        self.conflicts.extend(conflicts);
        self.conflicts.truncate(super::carry::NAMED);
        self.wanted.extend(wanted);
    }
}
